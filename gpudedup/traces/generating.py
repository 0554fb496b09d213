"""Traces made to order: stated mixes of operations on the pages of an image.

Which page an event touches is drawn from those that the image has, holes are left alone. Equal
arguments make equal traces, on every machine; a longer one begins as a shorter one does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import MAX_DEVICES, MAX_NODES
from gpudedup.errors import UsageError
from gpudedup.images.base import Image
from gpudedup.images.memory import open_array
from gpudedup.images.opening import open_image
from gpudedup.schema import OPERATIONS
from gpudedup.traces.events import NONE, PIECE, Events
from gpudedup.traces.mix_passes import MOST_SPLICES, At, make_events
from gpudedup.traces.mixes import MIXES
from gpudedup.traces.writer import trace_file


@dataclass(frozen=True, slots=True)
class Mix:
    """What a trace is made of.

    :param name: one of :data:`gpudedup.traces.mixes.MIXES`
    :param events: how many
    :param seed: 0 to 2**64 - 1
    :param nodes: that loads come from, 1 to 64
    :param devices: that take part, 1 to 8
    :param skew: of the accesses, x ** (1 / skew) go to the hottest x of the pages; 1: evenly
    :param span: most pages of an event that is no load, store or file write of the host
    :param burst: events of one operation on one mapping in a row; None: 1, device-atomics 64
    :param children: most forks alive
    :param merge_every: events from one merge to the next; 0: none
    :raises UsageError: if there is no such mix
    """

    name: str
    events: int
    seed: int = 0
    nodes: int = 2
    devices: int = 1
    skew: int = 4
    span: int = 16
    burst: int | None = None
    children: int = 16
    merge_every: int = 0

    def __post_init__(self) -> None:
        if self.name not in MIXES:
            raise UsageError(f"mix {self.name!r}: not one of {', '.join(MIXES)}")
        for name, least, most in (
            ("events", 0, 1 << 40),
            ("seed", 0, (1 << 64) - 1),
            ("nodes", 1, MAX_NODES),
            ("devices", 1, MAX_DEVICES),
            ("skew", 1, 100),
            ("span", 1, 1 << 20),
            ("burst", 1, 1 << 40),
            ("children", 1, 1 << 16),
            ("merge_every", 0, 1 << 40),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} {value}: not from {least} to {most}")


def generate_trace(
    image: Any,
    path: str | os.PathLike[str],
    mix: Mix,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a trace for an image.

    :param image: path, image, or array of pages, (n, page_size) uint8
    :param force: replace an existing file
    :param progress: called with events done and events in all
    :raises ImageError: if the image cannot be read
    :raises UsageError: if it has no pages of the kinds that the mix is about
    :raises OutputError: if the file exists (without force) or cannot be written; nothing is left
    """
    if isinstance(image, str | os.PathLike):
        with open_image(image) as opened:
            generate_trace(opened, path, mix, force=force, progress=progress)
        return
    if not isinstance(image, Image):
        image = open_array(image)
    pages = _touched(image, MIXES[mix.name].kinds)
    if not len(pages[0]):
        kinds = " or ".join(MIXES[mix.name].kinds)
        raise UsageError(f"{image.path}: no pages of kind {kinds}, which {mix.name} is about")
    source = f"mix {mix.name}, seed {mix.seed}"
    with trace_file(path, image.page_size, source, force=force) as write:
        for events in _events(image, mix, *pages):
            write(events)
            if progress:
                progress(events.row + len(events), mix.events)


def _touched(
    image: Image, kinds: tuple[str, ...]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return mapping and index of all pages of some kinds that the image has, by mapping."""
    wanted = np.array([m.kind in kinds for m in image.mappings], np.bool_)
    mappings, indices = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for piece in image.columns():
        kept = wanted[piece.mapping]
        mappings.append(piece.mapping[kept])
        indices.append(piece.index[kept].astype(np.int64))
    mapping, index = np.concatenate(mappings), np.concatenate(indices)
    order = np.argsort(mapping, kind="stable")
    return mapping[order], index[order]


def _events(
    image: Image, mix: Mix, mapping: npt.NDArray[np.int32], index: npt.NDArray[np.int64]
) -> Iterator[Events]:
    """Yield all events of a mix on these pages."""
    shares = np.zeros(len(OPERATIONS))
    for word, share in MIXES[mix.name].shares.items():
        shares[OPERATIONS.index(word)] = share / 1000
    bounds = np.cumsum(shares)
    # Beyond rounding: the last number drawn is below it.
    bounds[bounds > 1 - 1e-9] = 1
    first = np.searchsorted(mapping, np.arange(len(image.mappings) + 1))
    length = np.zeros(len(image.mappings), np.int64)
    np.maximum.at(length, mapping, index + 1)
    size = length.copy()
    children = np.zeros((mix.children, 2), np.int64)
    splices = np.zeros((MOST_SPLICES, 3), np.int64)
    made = np.zeros(len(At), np.int64)
    made[At.MAPPINGS] = len(image.mappings)
    burst = MIXES[mix.name].burst if mix.burst is None else mix.burst
    key = np.uint64((mix.seed * 0x9E3779B97F4A7C15 + 1) % (1 << 64))
    for row in range(0, mix.events, PIECE):
        new = Events.empty(row, min(PIECE, mix.events - row))
        make_events(
            key, bounds, mix.nodes, mix.devices, mix.skew, mix.span, burst, mix.merge_every,
            mapping, index, first, length, size, children, splices, made, new.operation,
            new.mapping, new.index, new.count, new.node, new.device, new.seed,
        )  # fmt: skip
        yield new if mix.nodes > 1 else replace(new, node=np.full(len(new), NONE, np.int16))
