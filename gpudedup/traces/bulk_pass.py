"""The compiled pass over loads and stores of many mappings; it runs those that need no fault."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.intrinsics import load32, load64, prefetch, store64
from gpudedup.compiled.jit import compiled
from gpudedup.mm.passes.access import note_store
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES, Frame, Page
from gpudedup.mm.state.prefetch import AHEAD, ask_ahead
from gpudedup.mm.state.steps import address_of, node_of
from gpudedup.traces.contents import word_of

DONE = 0
BREAKS = 1
"""A store to a page that is not writable: it needs a frame of its own."""
ASKS = 2
"""An access for the manager's paths: no leaf yet, held exclusively, or in a device's pool."""

_IN_LEAF = LEAF_PAGES - 1


class Directories(NamedTuple):
    """The mappings of a manager, by their numbers in the trace.

    :param address, leaves: (mappings,) uint64 and int64, address and length of the directory
    :param home, is_file: (mappings,) int64 and bool, node of the mapping, and True for files
    """

    address: npt.NDArray[np.uint64]
    leaves: npt.NDArray[np.int64]
    home: npt.NDArray[np.int64]
    is_file: npt.NDArray[np.bool_]


@compiled
def do_accesses(  # type: ignore[no-untyped-def]
    s, nodes, directories, stores, mapping, index, node, seed, pages, how
):
    """Run loads and stores of 8 bytes that need no fault, and leave the rest.

    The stores to a page are all run or all left: their order is kept.

    :param nodes: pools from this number on are devices'
    :param directories: :class:`Directories`
    :param stores: (n,) bool, False for loads
    :param mapping, index, node, seed: (n,), as in :class:`gpudedup.traces.events.Events`
    :param pages: (n,) uint32, written: page numbers, below LEAF_PAGES where there is no leaf
    :param how: (n,) uint8, written: DONE, BREAKS or ASKS
    :return: accesses left, and the sum of the words loaded
    """
    directory, leaves, home, is_file = directories
    left, total = 0, np.uint64(0)
    for i in range(len(index)):
        place = np.int64(index[i]) >> LEAF_BITS
        leaf = np.uint32(0)
        if place < leaves[mapping[i]]:
            leaf = load32(directory[mapping[i]] + np.uint64(4 * place))
        pages[i] = np.int64(leaf) << LEAF_BITS | np.int64(index[i]) & _IN_LEAF
    for i in range(len(index)):
        ask_ahead(s, pages, i)
        if i + AHEAD // 2 < len(index):
            prefetch(address_of(s, s.frame[pages[i + AHEAD // 2]]))
        p, m = pages[i], mapping[i]
        f = np.int64(s.frame[p])
        protection = s.protection[f]
        if protection & Frame.EXCLUSIVE or (stores[i] and p < LEAF_PAGES):
            how[i] = ASKS
            left += 1
            continue
        if stores[i]:
            if s.flags[p] & Page.WRITABLE == 0:
                how[i] = BREAKS
                left += 1
                continue
        elif protection & Frame.REPLICATED:
            where = np.int64(node[i]) if node[i] >= 0 else home[m]
            if node_of(s, f) != where:
                g = np.int64(s.ring[f])
                while g != f and node_of(s, g) != where:
                    g = np.int64(s.ring[g])
                f = g
        if node_of(s, f) >= nodes:
            how[i] = ASKS
            left += 1
            continue
        how[i] = DONE
        if stores[i]:
            note_store(s, p, is_file[m])
            store64(address_of(s, f), word_of(seed[i], np.int64(index[i])))
        else:
            total += load64(address_of(s, f))
    return left, total
