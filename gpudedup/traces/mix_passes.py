"""The compiled pass that makes the events of a mix. Every number is drawn from seed and row."""

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
"""A prime, so that multiples of it, modulo a number of pages, are all different."""

_DRAWS = 16
"""Numbers that one event may draw."""

APPENDS = 10
"""Of a hundred file writes, how many put a page at the end."""

MOST_SPLICES = 64
"""Held at a time."""


class At(IntEnum):
    """Places in :attr:`Left.made`."""

    ROW = 0
    MAPPINGS = 1
    """numbers given out"""
    CHILDREN = 2
    """forks that are alive"""
    OLDEST = 3
    """place of the oldest of them in the ring"""
    SPLICES = 4
    FIRST_SPLICE = 5


@njit(nogil=True)
def _draw(key, row, which):  # type: ignore[no-untyped-def]
    """Return a number of 64 bits."""
    return mixed(key + np.uint64(row * _DRAWS + which) * np.uint64(GAMMA))


@njit(nogil=True)
def _below(key, row, which, limit):  # type: ignore[no-untyped-def]
    """Return a number from 0 to ``limit`` - 1."""
    return np.int64(_draw(key, row, which) % np.uint64(limit))


@njit(nogil=True)
def _share(key, row, which):  # type: ignore[no-untyped-def]
    """Return a number from 0 to 1, 1 excluded."""
    return np.float64(_draw(key, row, which) >> np.uint64(11)) / 9007199254740992.0


@njit(nogil=True)
def _hot(key, row, which, limit, skew):  # type: ignore[no-untyped-def]
    """Return a number from 0 to ``limit`` - 1, some much more often than others."""
    drawn = _share(key, row, which)
    share = drawn
    for _ in range(skew - 1):
        share *= drawn
    place = np.uint64(np.float64(limit) * share)
    # The hot ones do not lie side by side.
    return np.int64(place * np.uint64(_APART) % np.uint64(limit))


class Drawn(NamedTuple):
    """What events are drawn from; most as in :class:`gpudedup.traces.generating.Mix`.

    :param key: uint64, of the numbers drawn
    :param bounds: (operations,) float64, ascending to 1: shares of the operations, summed up
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
    """The pages that events may touch, by mapping.

    :param page_mapping: (pages,) int32, ascending
    :param page_index: (pages,) int64
    :param first: (mappings + 1,) int64, where in these each mapping begins
    :param length: (mappings,) int64, pages of each in the image
    """

    page_mapping: npt.NDArray[np.int32]
    page_index: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]


class Left(NamedTuple):
    """What the events so far have left behind; written.

    :param size: (mappings,) int64, pages of each now
    :param children: (most forks alive, 2) int64, number and parent of each, a ring
    :param splices: (MOST_SPLICES, 3) int64, mapping, index and count of each, a ring
    :param made: (6,) int64, places :class:`At`
    """

    size: npt.NDArray[np.int64]
    children: npt.NDArray[np.int64]
    splices: npt.NDArray[np.int64]
    made: npt.NDArray[np.int64]


@compiled
def make_events(  # type: ignore[no-untyped-def]
    drawn, touched, left, operation, mapping, index, count, node, device, seed
):
    """Make the next events.

    :param drawn: :class:`Drawn`
    :param touched: :class:`Touched`
    :param left: :class:`Left`, written
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
        if op == Operation.SPLICE and made[At.SPLICES] == MOST_SPLICES:
            op = Operation.CLOSE
        if (
            at >= size[m]
            and op != Operation.TRUNCATE
            and op != Operation.FILE_WRITE
            and op != Operation.CLOSE
        ):
            # Of a file that was cut.
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
            made[At.FIRST_SPLICE] = (made[At.FIRST_SPLICE] + 1) % MOST_SPLICES
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
            last = (made[At.FIRST_SPLICE] + made[At.SPLICES]) % MOST_SPLICES
            splices[last, 0], splices[last, 1], splices[last, 2] = target, at, n
            made[At.SPLICES] += 1
        mapping[i], index[i], count[i] = target, at, n
