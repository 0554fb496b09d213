"""The compiled passes from ``(mapping, index)`` to page numbers, by directories of leaves."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.jit import compiled
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES, Count
from gpudedup.mm.state.prefetch import ask_ahead

ABSENT = 256
"""Bit beside those of ``protection``: a leaf is absent."""

_IN_LEAF = LEAF_PAGES - 1

BLOCK_BITS = 12
BLOCK_PLACES = 1 << BLOCK_BITS
"""Places of a directory for which there is one mark: walks skip those without."""


@compiled
def locate(s, directory, size, index, pages):  # type: ignore[no-untyped-def]
    """Find the pages of a mapping; return which of EXCLUSIVE, CACHED and ABSENT were met.

    Frames are read, which takes most of the time, only if any is exclusive, replicated or cached.
    Other bits of protections may be among those returned, and mean nothing.

    :param directory: (k,) uint32, the mapping's leaves
    :param size: pages of the mapping
    :param index: (n,) int64
    :param pages: (n,) uint32, written
    :return: bits; or -1 - i, if row i lies outside
    """
    met = np.int64(0)
    for i in range(len(index)):
        at = index[i]
        if at < 0 or at >= size:
            return np.int64(-1 - i)
        leaf = np.int64(directory[at >> LEAF_BITS])
        if leaf == 0:
            met |= ABSENT
        p = (leaf << LEAF_BITS) | (at & _IN_LEAF)
        pages[i] = p
    if s.counts[Count.EXCLUSIVE_FRAMES] == 0 and s.counts[Count.REPLICAS] == 0:
        return met
    for i in range(len(pages)):
        ask_ahead(s, pages, i)
        met |= np.int64(s.protection[s.frame[pages[i]]])
    return met


@njit(nogil=True)
def take_leaf(s, mapping, place):  # type: ignore[no-untyped-def]
    """Return a leaf for a place in a mapping's directory; LEAVES_LEFT must not be 0."""
    leaf = s.counts[Count.LEAF_FREE]
    if leaf != 0:
        s.counts[Count.LEAF_FREE] = np.int64(s.leaf_place[leaf])
    else:
        leaf = s.counts[Count.LEAF_FRESH]
        s.counts[Count.LEAF_FRESH] += 1
    s.counts[Count.LEAVES_LEFT] -= 1
    s.leaf_mapping[leaf] = mapping
    s.leaf_place[leaf] = place
    return leaf


@njit(nogil=True)
def return_leaf(s, leaf):  # type: ignore[no-untyped-def]
    """Free a leaf none of whose pages has a frame."""
    s.leaf_mapping[leaf] = 0
    s.leaf_place[leaf] = s.counts[Count.LEAF_FREE]
    s.counts[Count.LEAF_FREE] = leaf
    s.counts[Count.LEAVES_LEFT] += 1


@compiled
def missing_leaves(directory, index):  # type: ignore[no-untyped-def]
    """Return how many leaves, at most, :func:`add_leaves` takes for ``index``."""
    missing, last = 0, np.int64(-1)
    for at in index:
        place = at >> LEAF_BITS
        if directory[place] == 0 and place != last:
            missing += 1
        last = place
    return missing


@compiled
def add_leaves(s, directory, marks, mapping, index):  # type: ignore[no-untyped-def]
    """Give a mapping the leaves that ``index`` needs; LEAVES_LEFT must suffice.

    :param marks: (m,) bool, True for a block of BLOCK_PLACES places that may have leaves
    """
    for at in index:
        place = at >> LEAF_BITS
        if directory[place] == 0:
            marks[place >> BLOCK_BITS] = True
            directory[place] = take_leaf(s, mapping, place)


@compiled
def leaf_places(directory, marks, start, places):  # type: ignore[no-untyped-def]
    """Write the places from ``start`` on that have leaves, in order; return how many there are.

    :param marks: as for :func:`add_leaves`
    :param places: (n,) int64, written: as many as fit
    """
    n, place = 0, start
    while place < len(directory):
        if not marks[place >> BLOCK_BITS]:
            place = ((place >> BLOCK_BITS) + 1) << BLOCK_BITS
            continue
        if directory[place] != 0:
            if n < len(places):
                places[n] = place
            n += 1
        place += 1
    return n
