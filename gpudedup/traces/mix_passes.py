"""The compiled pass that generates the events of a mix; seed and row make every random number."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from gpudedup.compiled.jit import compiled
from gpudedup.compiled.splitmix import GAMMA
from gpudedup.schema import Operation
from gpudedup.traces.contents import mixed

_APART = 2654435761
"""A prime: its multiples modulo a smaller number of pages are all different."""

_DRAWS = 16
"""Random numbers per event."""

APPENDS = 10
"""File writes per hundred that append a page."""

MAX_SPLICES = 64
"""Limit of splices held at a time."""


class At(IntEnum):
    """Places in :attr:`Left.made`."""

    ROW = 0
    MAPPINGS = 1
    """mapping numbers given out"""
    CHILDREN = 2
    """forks alive"""
    OLDEST = 3
    """place of the oldest fork in ``Left.children``"""
    SPLICES = 4
    FIRST_SPLICE = 5


@njit(nogil=True)
def _draw(key, row, which):  # type: ignore[no-untyped-def]
    """Return random number ``which`` of a row, uint64."""
    return mixed(key + np.uint64(row * _DRAWS + which) * np.uint64(GAMMA))


@njit(nogil=True)
def _below(key, row, which, limit):  # type: ignore[no-untyped-def]
    """Return a number from 0 to ``limit`` - 1."""
    return np.int64(_draw(key, row, which) % np.uint64(limit))


@njit(nogil=True)
def _share(key, row, which):  # type: ignore[no-untyped-def]
    """Return a number from 0 to 1, without 1."""
    return np.float64(_draw(key, row, which) >> np.uint64(11)) / 9007199254740992.0


@njit(nogil=True)
def _hot(key, row, which, limit, skew):  # type: ignore[no-untyped-def]
    """Return a number from 0 to ``limit`` - 1, skewed as in ``Mix.skew``."""
    drawn = _share(key, row, which)
    share = drawn
    for _ in range(skew - 1):
        share *= drawn
    place = np.uint64(np.float64(limit) * share)
    # Hot pages would be neighbours otherwise.
    return np.int64(place * np.uint64(_APART) % np.uint64(limit))


class Drawn(NamedTuple):
    """Parameters of the events; those not listed as in :class:`gpudedup.traces.generating.Mix`.

    :param key: seed of the random numbers
    :param bounds: (operations,) float64, cumulative shares of the operations, up to 1
    """

    key: np.uint64
    bounds: npt.NDArray[np.float64]
    nodes: int
    devices: int
    skew: int
    span: int
    burst: int
    merge_every: int


class Touched(NamedTuple):
    """Pages that events may touch, in the order of mappings.

    :param page_mapping, page_index: (pages,) int32, ascending, and int64
    :param first: (mappings + 1,) int64, places of each mapping's first page in these
    :param length: (mappings,) int64, pages of each mapping in the image
    """

    page_mapping: npt.NDArray[np.int32]
    page_index: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]


class Left(NamedTuple):
    """State that events leave to the next ones; updated.

    :param size: (mappings,) int64, pages of each mapping now
    :param children: (``Mix.children``, 2) int64, number and parent of each fork, a ring
    :param splices: (MAX_SPLICES, 3) int64, mapping, index and count of each splice, a ring
    :param made: (len(At),) int64, places :class:`At`
    """

    size: npt.NDArray[np.int64]
    children: npt.NDArray[np.int64]
    splices: npt.NDArray[np.int64]
    made: npt.NDArray[np.int64]


@compiled
def make_events(  # type: ignore[no-untyped-def]
    drawn, touched, left, operation, mapping, index, count, node, device, seed
):
    """Generate the next events.

    :param drawn, touched, left: :class:`Drawn`, :class:`Touched`, and :class:`Left`, updated
    :param operation, mapping, index, count, node, device, seed: (n,), the events; written
    """
    key, bounds, nodes, devices, skew, span, burst, merge_every = drawn
    page_mapping, page_index, first, length = touched
    size, children, splices, made = left
    for i in range(len(operation)):
        row = made[At.ROW]
        made[At.ROW] += 1
        node[i] = device[i] = -1
        index[i], count[i], mapping[i] = 0, 0, 0
        seed[i] = _draw(key, row, 0)
        if merge_every != 0 and row % merge_every == merge_every - 1:
            operation[i] = Operation.MERGE
            continue
        op = np.searchsorted(bounds, _share(key, row // burst, 1), side="right")
        m = np.int64(page_mapping[_hot(key, row // burst, 2, len(page_mapping), skew)])
        at = page_index[first[m] + _hot(key, row, 10, first[m + 1] - first[m], skew)]
        if op == Operation.FORK and made[At.CHILDREN] == len(children):
            op = Operation.DROP
        if op == Operation.DROP and made[At.CHILDREN] == 0:
            op = Operation.FORK
        if op == Operation.CLOSE and made[At.SPLICES] == 0:
            op = Operation.SPLICE
        if op == Operation.SPLICE and made[At.SPLICES] == MAX_SPLICES:
            op = Operation.CLOSE
        if (
            at >= size[m]
            and op != Operation.TRUNCATE
            and op != Operation.FILE_WRITE
            and op != Operation.CLOSE
        ):
            # The file was truncated below this page.
            if size[m] == 0:
                op = Operation.FILE_WRITE
            else:
                at %= size[m]
        operation[i] = op
        if op == Operation.DROP:
            mapping[i] = children[made[At.OLDEST], 0]
            made[At.OLDEST] = (made[At.OLDEST] + 1) % len(children)
            made[At.CHILDREN] -= 1
            continue
        if op == Operation.CLOSE:
            held = splices[made[At.FIRST_SPLICE]]
            mapping[i], index[i], count[i] = held[0], held[1], held[2]
            made[At.FIRST_SPLICE] = (made[At.FIRST_SPLICE] + 1) % MAX_SPLICES
            made[At.SPLICES] -= 1
            continue
        if op == Operation.TRUNCATE:
            if size[m] < length[m] and _below(key, row, 3, 2):
                size[m] = length[m]
            else:
                size[m] -= _below(key, row, 4, size[m] // 4 + 1)
            mapping[i], index[i] = m, size[m]
            continue
        target = m
        if made[At.CHILDREN] != 0:
            which = _below(key, row, 5, made[At.CHILDREN] + 1)
            child = children[(made[At.OLDEST] + which) % len(children)]
            if which < made[At.CHILDREN] and child[1] == m:
                target = child[0]
        if op == Operation.FORK:
            last = (made[At.OLDEST] + made[At.CHILDREN]) % len(children)
            children[last, 0], children[last, 1] = made[At.MAPPINGS], m
            made[At.CHILDREN] += 1
            made[At.MAPPINGS] += 1
            mapping[i] = target
            continue
        n = np.int64(1)
        if op not in (Operation.READ, Operation.WRITE, Operation.FILE_WRITE, Operation.FORK):
            n = min(1 + _below(key, row, 6, span), size[m] - at)
        if op == Operation.FILE_WRITE:
            if _below(key, row, 7, 100) < APPENDS and size[m] < 2 * length[m]:
                at = size[m]
            size[m] = max(size[m], at + 1)
        if op in (Operation.READ, Operation.MIGRATE, Operation.REPLICATE):
            node[i] = _below(key, row, 8, nodes)
        if op in (Operation.DEVICE_READ, Operation.DEVICE_WRITE, Operation.ATOMIC_ADD):
            device[i] = _below(key, row, 9, devices)
        if op == Operation.SPLICE:
            last = (made[At.FIRST_SPLICE] + made[At.SPLICES]) % MAX_SPLICES
            splices[last, 0], splices[last, 1], splices[last, 2] = target, at, n
            made[At.SPLICES] += 1
        mapping[i], index[i], count[i] = target, at, n
