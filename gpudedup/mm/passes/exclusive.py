"""The compiled passes of exclusive access: grant, revoke, add to words."""

from __future__ import annotations

import numpy as np

from gpudedup.compiled.intrinsics import compare_and_swap, load_acquire
from gpudedup.compiled.jit import compiled
from gpudedup.mm.state.arrays import Count, Frame
from gpudedup.mm.state.steps import address_of, invalidate, write_protect


@compiled
def grant(s, pages, number, left):  # type: ignore[no-untyped-def]
    """Grant pages, each the only alias of its frame, to one owner.

    :param left: (1,) int64, updated: pages that the grant holds
    """
    left[0] += len(pages)
    for p in pages:
        f = s.frame[p]
        s.counts[Count.EXCLUSIVE_FRAMES] += s.protection[f] & Frame.EXCLUSIVE == 0
        s.protection[f] |= Frame.EXCLUSIVE
        s.token[f] = number
        write_protect(s, np.int64(p))


@compiled
def take_back(s, pages, number, left):  # type: ignore[no-untyped-def]
    """End grant ``number`` for pages; return how many pages it held.

    :param left: (1,) int64, updated: pages that it holds
    """
    n = 0
    for p in pages:
        f = s.frame[p]
        if s.protection[f] & Frame.EXCLUSIVE and s.token[f] == number:
            s.protection[f] &= ~Frame.EXCLUSIVE
            s.counts[Count.EXCLUSIVE_FRAMES] -= 1
            s.token[f] = 0
            invalidate(s, p)
            n += 1
    left[0] -= n
    return n


@compiled
def holders(s, pages, numbers):  # type: ignore[no-untyped-def]
    """Write the number of the grant that holds each page, (n,) uint32; 0: none."""
    for i in range(len(pages)):
        f = s.frame[pages[i]]
        numbers[i] = s.token[f] if s.protection[f] & Frame.EXCLUSIVE else np.uint32(0)


@compiled
def add_words(s, pages, word, value, before):  # type: ignore[no-untyped-def]
    """Add to one 64-bit word of each page, atomically; write its value before."""
    for i in range(len(pages)):
        at = address_of(s, s.frame[pages[i]]) + np.uint64(8 * word[i])
        old, seen = np.uint64(0), load_acquire(at)
        while True:
            old = seen
            seen = compare_and_swap(at, old, old + value[i])
            if seen == old:
                break
        before[i] = old
