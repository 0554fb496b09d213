"""Import: images of any format, several at once, into one dump.

Frames of different images are different frames, but a dump has one column for all of them. So each
image's frame numbers are raised by a *base*, one more than the highest before. The schema metadata
``gpudedup.frame_base`` lists the bases: a frame's image is the last whose base is not above it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError, UsageError
from gpudedup.images.base import UNKNOWN_FRAME, Image, check_page_sizes
from gpudedup.images.dumps.writer import DumpWriter, Written
from gpudedup.images.files import file_name
from gpudedup.images.opening import open_image

MAX_LOSSES = 20
"""Lines about unreadable stretches; the rest is only counted."""

_MAX_NAMES = 16
"""Images named in the dump's ``gpudedup.source``."""

NUMBERED_ANEW = "frames of all images do not fit into 64 bits together: numbered anew"

_MAX_FRAME = int(UNKNOWN_FRAME) - 1

Frames = npt.NDArray[np.uint64]


def import_images(
    inputs: str | os.PathLike[str] | Image | Iterable[str | os.PathLike[str] | Image],
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    page_size: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write all pages of ``inputs`` to one dump.

    Pages that cannot be read are left out and counted in ``absent.unreadable``.

    :param inputs: paths of images, or images, which stay open; one or several
    :param format: of all paths, if it shall not be recognised: ``arrow``, ``elf`` or ``raw``
    :param page_size: bytes, for formats that do not tell; None: 4096
    :param force: replace an existing file
    :param progress: called with pages done and pages in all
    :raises ImageError: if an input cannot be read as what it is, page sizes differ, or not a
        single page can be read
    :raises OutputError: if the dump exists (without force) or cannot be written; nothing is left
    :raises UsageError: if there is no input, or an argument is out of range
    """
    items = [inputs] if isinstance(inputs, str | os.PathLike | Image) else list(inputs)
    with ExitStack() as opened:
        images: list[Image] = []
        for item in items:
            if isinstance(item, Image):
                images.append(item)
            else:
                image = open_image(item, format=format, page_size=page_size)
                images.append(opened.enter_context(image))
        if not images:
            raise UsageError("no image to import")
        check_page_sizes(images, "dump")
        numbered = numberings(images)
        copy = _Copy(images, progress or (lambda done, total: None))
        with DumpWriter(
            path,
            images[0].page_size,
            [mapping for image in images for mapping in image.mappings],
            source=source_of(images),
            metadata=frame_base(numbered),
            force=force,
        ) as dump:
            for image, numbering in zip(images, numbered, strict=True):
                copy.add(image, numbering, dump)
            losses = [*(line for image in images for line in image.losses), *copy.losses.lines()]
            if losses and not copy.written:
                name, _, reason = losses[0].partition(": ")
                raise ImageError(name, reason)
    notes = [line for image in images for line in image.notes]
    if any(n.order is not None for n in numbered):
        notes.append(NUMBERED_ANEW)
    return Written(copy.written, copy.mappings, dump.absent, losses, notes)


def source_of(images: Sequence[Image]) -> str:
    """Return what a dump of them comes from, in a few words."""
    names = ", ".join(file_name(image.path) for image in images[:_MAX_NAMES])
    more = len(images) - _MAX_NAMES
    return f"import of {names}" + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Numbering:
    """How one image's frames are numbered in the dump.

    :param base: added to the number
    :param order: the image's frames, ascending: its place here is a frame's number; None: the
        number stays
    """

    base: int
    order: Frames | None = None

    def __call__(self, frame: Frames | None) -> Frames | None:
        """Return the dump's numbers of an image's frames."""
        if frame is None or (self.order is None and not self.base):
            return frame
        new = frame if self.order is None else np.searchsorted(self.order, frame).astype(np.uint64)
        return np.where(frame == UNKNOWN_FRAME, UNKNOWN_FRAME, new + np.uint64(self.base))


def numberings(images: Sequence[Image]) -> list[Numbering]:
    """Number frames so that none of one image equals one of another; a single image keeps its."""
    if len(images) == 1:
        return [Numbering(0)]
    bases = list(accumulate((_highest(image) + 1 for image in images), initial=0))
    if bases[-1] <= _MAX_FRAME + 1:
        return [Numbering(base) for base in bases[:-1]]
    orders = [_distinct(image) for image in images]
    bases = list(accumulate(map(len, orders), initial=0))
    return [Numbering(base, order) for base, order in zip(bases, orders, strict=False)]


def _known_frames(image: Image) -> Iterable[Frames]:
    for piece in image.columns():
        if piece.frame is not None:
            yield piece.frame[piece.frame != UNKNOWN_FRAME]


def _highest(image: Image) -> int:
    """Return the highest frame number of an image, -1 if none is known."""
    return max((int(known.max()) for known in _known_frames(image) if len(known)), default=-1)


def _distinct(image: Image) -> Frames:
    """Return all frames of an image once, ascending."""
    found = np.empty(0, np.uint64)
    for known in _known_frames(image):
        found = np.union1d(found, known)
    return found


def frame_base(numbered: Sequence[Numbering]) -> dict[str, str]:
    """Return metadata that tells the original frames; null: they cannot be told."""
    if len(numbered) == 1:
        return {}
    bases = [n.base if n.order is None else None for n in numbered]
    return {"gpudedup.frame_base": json.dumps(bases)}


class _Copy:
    """Copies images into a dump, one after another; all page bytes pass through one buffer."""

    def __init__(self, images: Sequence[Image], progress: Callable[[int, int], None]) -> None:
        self.written = 0
        self.mappings = 0
        self.losses = _Losses()
        self._progress = progress
        self._done = 0
        self._total = sum(image.pages for image in images)
        most = min(images[0].batch_pages, max(image.pages for image in images))
        self._pages = np.empty((most, images[0].page_size), np.uint8)
        progress(0, self._total)

    def add(self, image: Image, numbering: Numbering, dump: DumpWriter) -> None:
        """Append all rows of ``image`` whose bytes can be read."""
        dump.absent.add(image.absent)
        for columns in image.batch_columns():
            read = self._read(image, columns.row, len(columns))
            kept = columns.where(read, self.written)
            if len(kept):
                mapping = kept.mapping + np.int32(self.mappings)
                kept = replace(kept, mapping=mapping, frame=numbering(kept.frame))
                dump.write(kept, self._pages[: len(kept)])
            self.written += len(kept)
            dump.absent.unreadable += len(columns) - len(kept)
            self._done += len(columns)
            self._progress(self._done, self._total)
        self.mappings += len(image.mappings)

    def _read(self, image: Image, row: int, rows: int) -> npt.NDArray[np.bool_]:
        """Read rows into the buffer, without gaps; return which of them could be read."""
        read = np.ones(rows, np.bool_)
        try:
            image.read_pages(row, self._pages[:rows])
        except ImageError:
            kept = 0
            for at in range(rows):
                try:
                    image.read_pages(row + at, self._pages[kept : kept + 1])
                    kept += 1
                except ImageError as error:
                    read[at] = False
                    self.losses.add(image, row + at, error.reason)
        return read


class _Losses:
    """Stretches of rows that could not be read; only the first :data:`MAX_LOSSES` are kept."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, str]] = []
        self._pages: list[int] = []
        self._more = 0
        self._next: tuple[int, int] | None = None

    def add(self, image: Image, row: int, reason: str) -> None:
        """Take note of a row; rows of an image come in ascending order."""
        if self._next != (id(image), row):
            if len(self._kept) < MAX_LOSSES:
                self._kept.append((f"{image.path}: offset {image.offset_of(row)}", reason))
                self._pages.append(0)
            else:
                self._more += 1
        if not self._more:
            self._pages[-1] += 1
        self._next = id(image), row + 1

    def lines(self) -> list[str]:
        """Return one line for each stretch that was kept, and one for the others."""
        lines = [
            f"{place}: {pages} pages could not be read: {reason}"
            for (place, reason), pages in zip(self._kept, self._pages, strict=True)
        ]
        return [*lines, f"and {self._more} more such places"] if self._more else lines
