"""The compiled passes of pages with several frames (replicas, cached pages) and of reflinks."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.jit import compiled
from gpudedup.mm.passes.access import pinned_in, share_page
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES, Count, Frame, Geometry, Page
from gpudedup.mm.state.page_table import take_leaf
from gpudedup.mm.state.steps import collapse, give_back, join, leave, node_of, take, write_protect


@njit(nogil=True)
def _is_on(s, f, node):  # type: ignore[no-untyped-def]
    """Return whether a frame or one of its replicas lies on a node."""
    if node_of(s, f) == node:
        return True
    g = np.int64(s.ring[f]) if s.protection[f] & Frame.REPLICATED else f
    while g != f:
        if node_of(s, g) == node:
            return True
        g = np.int64(s.ring[g])
    return False


@compiled
def replicate_pages(s, pages, node, there, source, target):  # type: ignore[no-untyped-def]
    """Replicate the frames of pages on a node with room for n; return how many frames to copy.

    :param there: (n,) bool, written: True where the node now has a copy; False for pages pinned,
        exclusive or cached
    """
    copies = 0
    for i in range(len(pages)):
        f = np.int64(s.frame[pages[i]])
        there[i] = f == 0 or _is_on(s, f, node)
        if there[i] or s.pins[f] != 0 or s.protection[f] & (Frame.EXCLUSIVE | Frame.CACHED):
            continue
        g = take(s, node)
        s.protection[g] = Frame.USED | Frame.REPLICA
        s.first[g] = f
        s.ring[g] = s.ring[f] if s.ring[f] != 0 else f
        s.ring[f] = g
        s.protection[f] |= Frame.REPLICATED
        write_protect(s, np.int64(s.first[f]))
        s.counts[Count.REPLICAS] += 1
        source[copies], target[copies] = f, g
        copies += 1
        there[i] = True
    s.counts[Count.COPIES] = copies
    return copies


@compiled
def collapse_pages(s, pages):  # type: ignore[no-untyped-def]
    """Free the replicas of pages."""
    for p in pages:
        f = np.int64(s.frame[p])
        if s.protection[f] & Frame.REPLICATED:
            collapse(s, f)


@compiled
def cache_pages(s, pages, node, there, source, target):  # type: ignore[no-untyped-def]
    """Cache pages on a node with room for n: frames become homes; return how many to copy.

    :param there: (n,) bool, written: True where the node now has the page; False for pages shared,
        pinned, exclusive, cached elsewhere or on a device
    """
    copies = 0
    for i in range(len(pages)):
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        there[i] = f == 0 or node_of(s, f) == node
        protection = s.protection[f]
        if (
            there[i]
            or s.pins[f] != 0
            or protection & (Frame.SHARED | Frame.EXCLUSIVE | Frame.CACHED)
        ):
            continue
        if node_of(s, f) >= s.geometry[Geometry.NODES]:
            # A device's frame cannot be a home: losing the device would lose the page.
            continue
        if protection & Frame.REPLICATED:
            collapse(s, f)
        g = take(s, node)
        leave(s, p)
        join(s, p, g)
        s.protection[g] |= Frame.CACHED
        s.ring[g] = f
        s.protection[f] = Frame.USED | Frame.REPLICA
        s.first[f] = g
        s.ring[f] = g
        s.flags[p] &= ~Page.WRITABLE
        s.counts[Count.REPLICAS] += 1
        source[copies], target[copies] = f, g
        copies += 1
        there[i] = True
    s.counts[Count.COPIES] = copies
    return copies


@compiled
def flush_pages(s, pages, source, target):  # type: ignore[no-untyped-def]
    """Flush to their homes the cached pages that were written; return how many frames to copy."""
    copies = 0
    for p in pages:
        f = np.int64(s.frame[p])
        if s.protection[f] & Frame.CACHED and s.flags[p] & Page.WRITABLE:
            # The holder of a pin may write at any moment: the page stays to be flushed.
            if s.pins[f] == 0:
                s.flags[p] &= ~Page.WRITABLE
            source[copies], target[copies] = f, s.ring[f]
            copies += 1
    s.counts[Count.COPIES] = copies
    return copies


@compiled
def evict_pages(s, pages):  # type: ignore[no-untyped-def]
    """Give cached pages back their homes, after :func:`flush_pages`; pinned ones stay cached."""
    for i in range(len(pages)):
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        if s.protection[f] & Frame.CACHED == 0 or s.pins[f] != 0:
            continue
        home = np.int64(s.ring[f])
        leave(s, p)
        s.ring[f] = 0
        give_back(s, f)
        s.counts[Count.REPLICAS] -= 1
        s.protection[home] = Frame.USED
        s.ring[home] = 0
        s.aliases[home] = 0
        join(s, p, home)


@compiled
def cached_of(s, leaves, pages):  # type: ignore[no-untyped-def]
    """Write the cached pages of some leaves, as many as fit; return how many there are."""
    n = 0
    for leaf in leaves:
        for i in range(LEAF_PAGES):
            p = (np.int64(leaf) << LEAF_BITS) | i
            if s.protection[s.frame[p]] & Frame.CACHED:
                if n < len(pages):
                    pages[n] = p
                n += 1
    return n


@compiled
def reflink_pages(  # type: ignore[no-untyped-def]
    s, leaves, places, copy, copy_directory, hidden, hidden_directory, node, source, target
):  # fmt: skip
    """Make a copy's pages aliases of a file's frames, each with an alias of a hidden mapping too.

    The arguments, and what is returned, are as for :func:`gpudedup.mm.passes.access.fork_pages`.

    :param copy, hidden: numbers of the new mappings; their directories are as ``child_directory``
    """
    pinned = pinned_in(s, leaves)
    if pinned > len(source):
        return np.int64(-1 - pinned)
    copies = 0
    for k in range(len(leaves)):
        leaf, place = np.int64(leaves[k]), places[k]
        copied, owned = take_leaf(s, copy, place), take_leaf(s, hidden, place)
        copy_directory[place], hidden_directory[place] = copied, owned
        for i in range(LEAF_PAGES):
            p, q, h = (leaf << LEAF_BITS) | i, (copied << LEAF_BITS) | i, (owned << LEAF_BITS) | i
            f, g = np.int64(s.frame[p]), share_page(s, p, q, node)
            if g != 0:
                source[copies], target[copies] = f, g
                copies += 1
            if f != 0 and s.frame[q] == f and s.protection[f] & Frame.OWNED == 0:
                s.flags[h] = Page.HIDDEN
                join(s, h, f)
                s.counts[Count.HIDDEN_PAGES] += 1
                s.protection[f] |= Frame.OWNED
    s.counts[Count.COPIES] = copies
    return np.int64(copies)
