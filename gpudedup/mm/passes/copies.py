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
    """Return whether a frame, or a replica of it, lies on a node."""
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
    """Give the frames of pages a read-only copy on a node with room for n.

    :param there: (n,) bool, written: whether loads there are served there now; not if the frame is
        pinned
    :return: how many frames to copy, told in ``source`` and ``target``
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
    return copies


@compiled
def collapse_pages(s, pages):  # type: ignore[no-untyped-def]
    """Let the replicas of pages go."""
    for p in pages:
        f = np.int64(s.frame[p])
        if s.protection[f] & Frame.REPLICATED:
            collapse(s, f)


@compiled
def cache_pages(s, pages, node, there, source, target):  # type: ignore[no-untyped-def]
    """Hold pages on a node with room for n, in place of their frames, which become their homes.

    :param there: (n,) bool, written: whether the page is held there now; not if others share it,
        or it is pinned, or held on a third node, or lies on a device
    :return: how many frames to copy, told in ``source`` and ``target``
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
            # Its home might be lost, and the page with it.
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
    return copies


@compiled
def flush_pages(s, pages, source, target):  # type: ignore[no-untyped-def]
    """Write cached pages back to their homes where they were written; they stay cached.

    :return: how many frames to copy, told in ``source`` and ``target``
    """
    copies = 0
    for p in pages:
        f = np.int64(s.frame[p])
        if s.protection[f] & Frame.CACHED and s.flags[p] & Page.WRITABLE:
            # A holder of a pin may write at any moment: it stays written.
            if s.pins[f] == 0:
                s.flags[p] &= ~Page.WRITABLE
            source[copies], target[copies] = f, s.ring[f]
            copies += 1
    return copies


@compiled
def evict_pages(s, pages):  # type: ignore[no-untyped-def]
    """Give cached pages their homes back, after :func:`flush_pages`; pinned ones stay."""
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
def cached_of(s, directory, pages):  # type: ignore[no-untyped-def]
    """Write the cached pages of a mapping; return how many there are, more perhaps than written."""
    n = 0
    for leaf in directory:
        for i in range(LEAF_PAGES if leaf != 0 else 0):
            p = (np.int64(leaf) << LEAF_BITS) | i
            if s.protection[s.frame[p]] & Frame.CACHED:
                if n < len(pages):
                    pages[n] = p
                n += 1
    return n


@compiled
def reflink_pages(  # type: ignore[no-untyped-def]
    s, directory, copy, copy_directory, hidden, hidden_directory, node, source, target
):  # fmt: skip
    """Give a file's pages to a copy of it; their frames get an alias of a hidden mapping too.

    :param copy, hidden: numbers of the two mappings, whose directories are as long as
        ``directory``, all 0, and are written
    :param node: pool with room for as many frames as the file has pinned pages
    :return: as :func:`gpudedup.mm.passes.access.fork_pages`
    """
    pinned = pinned_in(s, directory)
    if pinned > len(source):
        return np.int64(-1 - pinned)
    copies = 0
    for place in range(len(directory)):
        leaf = np.int64(directory[place])
        if leaf == 0:
            continue
        copied, owned = take_leaf(s, copy, place), take_leaf(s, hidden, place)
        copy_directory[place], hidden_directory[place] = copied, owned
        for i in range(LEAF_PAGES):
            p, q, h = (leaf << LEAF_BITS) | i, (copied << LEAF_BITS) | i, (owned << LEAF_BITS) | i
            copies = share_page(s, p, q, node, source, target, copies)
            f = np.int64(s.frame[p])
            if f != 0 and s.frame[q] == f and s.protection[f] & Frame.OWNED == 0:
                join(s, h, f)
                s.flags[h] = Page.HIDDEN
                s.protection[f] |= Frame.OWNED
    return np.int64(copies)
