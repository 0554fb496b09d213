"""Read a file wholly, in every way that its format has; return what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gpudedup as gd
from gpudedup.errors import GpudedupError, ImageError, TraceError
from gpudedup.images.dumps.inputs import inputs_of
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.opening import open_image
from gpudedup.merged.opened import MergedDump
from gpudedup.mm.mapping import Mapping
from gpudedup.traces.checking import check_trace
from gpudedup.traces.events import as_trace
from gpudedup.traces.replay import replay
from gpudedup.traces.summary import summary

from ..images.common import holds_together
from ..traces.common import DEVICES, NODES

REPLAYED_PAGES = 300
"""Pages of a trace's events, and of its longest mapping, up to which it is replayed."""


class Refusals:
    """Counts the refusals of one file, each of which must name it in one line."""

    def __init__(self, path: str) -> None:
        self.path, self.count = path, 0

    @contextmanager
    def allowed(self, *errors: type[GpudedupError]) -> Iterator[None]:
        try:
            yield
        except errors as error:
            message = str(error)
            assert message.startswith(f"{self.path}:"), message
            assert message.isprintable(), message
            assert "alloc" not in message, message
            self.count += 1


def read_image(path: str, size: int, format: str | None, page_size: int | None) -> int:
    """Read an image; return how often it was refused."""
    refusals = Refusals(path)
    with (
        refusals.allowed(ImageError),
        open_image(path, format=format, page_size=page_size) as image,
    ):
        with refusals.allowed(ImageError):
            holds_together(image, size)
        if image.format in ("arrow", "merged"):
            with refusals.allowed(ImageError):
                for one in image.batches():
                    one.validate(full=True)
            with refusals.allowed(ImageError):
                inputs_of(image)
        if isinstance(image, MergedImage):
            _read_merged(image, refusals)
    return refusals.count


def _read_merged(image: MergedImage, refusals: Refusals) -> None:
    with refusals.allowed(ImageError):
        gd.verify(refusals.path, threads=1)
    dump = MergedDump(image)
    with refusals.allowed(ImageError):
        for number in range(len(dump.mappings)):
            mapping = dump[number]
            found = mapping.pages(mapping.index)
            assert found.shape == (len(mapping.index), image.page_size)


def read_trace(path: str, image: Path, mappings: list[Mapping]) -> int:
    """Read a trace, and replay it if that is little work; return how often it was refused."""
    refusals = Refusals(path)
    with refusals.allowed(TraceError):
        found = summary(path)
        trace = as_trace(path)
        highest = 0
        for piece in trace.pieces():
            highest = max([highest, *piece.index.tolist()])
        assert check_trace(trace, mappings, NODES, DEVICES) == found.events
        if found.pages <= REPLAYED_PAGES and highest <= REPLAYED_PAGES:
            done = replay(image, path, nodes=NODES, devices=DEVICES, device_engine="cpu")
            assert done.events == found.events
    return refusals.count
