"""Generate traces: stated mixes of operations on the pages of an image.

Pages are drawn from those that the image stores, not from its holes. Equal arguments make equal
traces, on every machine; a longer trace begins with the shorter one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import MAX_DEVICES, MAX_NODES
from gpudedup.compiled.splitmix import GAMMA
from gpudedup.errors import UsageError
from gpudedup.images.base import Image
from gpudedup.images.opening import image_of
from gpudedup.output import check_room
from gpudedup.schema import OPERATIONS
from gpudedup.traces.events import NONE, PIECE, Events
from gpudedup.traces.mix_passes import MAX_SPLICES, At, Drawn, Left, Touched, make_events
from gpudedup.traces.mixes import MIXES
from gpudedup.traces.writer import EVENT_BYTES, trace_file


@dataclass(frozen=True, slots=True)
class Mix:
    """What a trace is made of.

    :param name: one of :data:`gpudedup.traces.mixes.MIXES`
    :param events: events of the trace
    :param seed: 0 to 2**64 - 1
    :param nodes: nodes that loads come from and pages move to; 1: the trace names none
    :param devices: devices that act
    :param skew: x ** (1 / skew) of the accesses go to the hottest x of the pages; 1: evenly
    :param span: limit of pages per event other than a load, store or file write of the host
    :param burst: events of one operation on one mapping in a row; None: the mix's own
    :param children: limit of forks alive at a time
    :param merge_every: events from one merge to the next; 0: no merges
    :raises UsageError: if there is no such mix, or a number lies outside its range
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
    """Generate a trace of a mix for an image.

    :param image: path, image, or array of pages, (n, page_size) uint8
    :param force: replace an existing file
    :param progress: called with events done and events in all
    :raises ImageError: if the image cannot be read
    :raises UsageError: if the image has no pages of the mix's kinds
    :raises OutputError: if the file exists (without force), there is no room for it, or it cannot
        be written; nothing is left
    """
    with ExitStack() as opened:
        source = image_of(image, opened)
        pages = _touched(source, MIXES[mix.name].kinds)
        if not len(pages[0]):
            kinds = " or ".join(MIXES[mix.name].kinds)
            raise UsageError(f"{source.path}: no pages of kind {kinds}, which {mix.name} is about")
        stated = f"mix {mix.name}, seed {mix.seed}"
        with trace_file(path, source.page_size, stated, force=force) as write:
            check_room(path, mix.events * EVENT_BYTES)
            for events in _events(source, mix, *pages):
                write(events)
                if progress:
                    progress(events.row + len(events), mix.events)


def _touched(
    image: Image, kinds: tuple[str, ...]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return mapping and index of the stored pages of some kinds, in the order of mappings."""
    wanted = np.array([m.kind in kinds for m in image.mappings], np.bool_)
    mappings, indices = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for piece in image.rows:
        kept = wanted[piece.mapping]
        mappings.append(piece.mapping[kept])
        indices.append(piece.index[kept].astype(np.int64))
    mapping, index = np.concatenate(mappings), np.concatenate(indices)
    order = np.argsort(mapping, kind="stable")
    return mapping[order], index[order]


def _events(
    image: Image, mix: Mix, mapping: npt.NDArray[np.int32], index: npt.NDArray[np.int64]
) -> Iterator[Events]:
    shares = np.zeros(len(OPERATIONS))
    for word, share in MIXES[mix.name].shares.items():
        shares[OPERATIONS.index(word)] = share / 1000
    bounds = np.cumsum(shares)
    # Rounding may leave the last bound below 1, and a number drawn above it.
    bounds[bounds > 1 - 1e-9] = 1
    first = np.searchsorted(mapping, np.arange(len(image.mappings) + 1))
    length = np.zeros(len(image.mappings), np.int64)
    np.maximum.at(length, mapping, index + 1)
    made = np.zeros(len(At), np.int64)
    made[At.MAPPINGS] = len(image.mappings)
    key = np.uint64((mix.seed * GAMMA + 1) % (1 << 64))
    burst = MIXES[mix.name].burst if mix.burst is None else mix.burst
    drawn = Drawn(key, bounds, mix.nodes, mix.devices, mix.skew, mix.span, burst, mix.merge_every)
    touched = Touched(mapping, index, first, length)
    left = Left(
        size=length.copy(),
        children=np.zeros((mix.children, 2), np.int64),
        splices=np.zeros((MAX_SPLICES, 3), np.int64),
        made=made,
    )
    for row in range(0, mix.events, PIECE):
        new = Events.empty(row, min(PIECE, mix.events - row))
        make_events(
            drawn, touched, left, new.operation, new.mapping, new.index, new.count, new.node,
            new.device, new.seed,
        )  # fmt: skip
        yield new if mix.nodes > 1 else _without_nodes(new)


def _without_nodes(events: Events) -> Events:
    """Return the events without nodes, but for those that must name one."""
    need = np.isin(events.operation, [OPERATIONS.index(word) for word in ("migrate", "replicate")])
    return replace(events, node=np.where(need, events.node, np.int16(NONE)))
