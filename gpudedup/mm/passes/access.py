"""The compiled passes of the access paths. Rows of a call are done one after another.

Passes change bookkeeping only. Where bytes must move they list (source, target) frames, to be
copied before anything else happens, in any order: no frame is a source and a target of one pass.

Steps that are handed arrays are inlined by numba: to hand one on, it counts references, with atomic
additions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.jit import compiled
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES, Count, Frame, Page
from gpudedup.mm.state.page_table import return_leaf, take_leaf
from gpudedup.mm.state.prefetch import AHEAD, ask_ahead, ask_frame, ask_page
from gpudedup.mm.state.steps import (
    address_of,
    drop,
    forget,
    free_if_unused,
    invalidate,
    join,
    leave,
    node_of,
    own,
    protect,
    replace,
    take,
)


@njit(nogil=True)
def note_store(s, p, is_file):  # type: ignore[no-untyped-def]
    """Note that a page is written; return whether that goes through without asking."""
    flags = s.flags[p]
    s.generation[p] += np.uint32(1)
    if is_file and flags & Page.DIRTY == 0:
        s.flags[p] |= Page.DIRTY
        s.counts[Count.DIRTY_PAGES] += 1
    forget(s, p)
    return flags & Page.WRITABLE != 0


@compiled
def prepare_write(s, pages, node, is_file, whole, source, target):  # type: ignore[no-untyped-def]
    """Make pages writable: each gets a frame that nobody else has.

    :param pages: (n,) uint32
    :param node: the pool of new frames, with room for n
    :param is_file: pages become dirty
    :param whole: all bytes will be written: nothing need be copied
    :param source: (n,) uint32, written: frames to copy
    :param target: (n,) uint32, written: to where
    :return: how many of these
    """
    copies = 0
    for i in range(len(pages)):
        if i + AHEAD < len(pages):
            ask_page(s, pages[i + AHEAD])
        p = pages[i]
        if note_store(s, p, is_file):
            continue
        f = np.int64(s.frame[p])
        if f != 0 and own(s, p, f):
            s.counts[Count.REUSES] += 1
            continue
        g = take(s, node)
        if not whole:
            source[copies], target[copies] = f, g
            copies += 1
        if f != 0:
            leave(s, p)
            # Not freed: an alias or a pin is left, or it could have been owned.
        join(s, p, g)
        s.flags[p] |= Page.WRITABLE
        s.counts[Count.NEW_FRAMES] += 1
    return copies


@compiled
def frames_of(s, pages, node, frames):  # type: ignore[no-untyped-def]
    """Write the frames to read pages from: of the replicas one of ``node``, if there is one.

    :return: how many are replicas
    """
    replicas = 0
    if s.counts[Count.REPLICAS] == 0:
        for i in range(len(pages)):
            frames[i] = s.frame[pages[i]]
        return replicas
    for i in range(len(pages)):
        f = np.int64(s.frame[pages[i]])
        if s.protection[f] & Frame.REPLICATED and node_of(s, f) != node:
            g = np.int64(s.ring[f])
            while g != f and node_of(s, g) != node:
                g = np.int64(s.ring[g])
            if g != f:
                replicas += 1
            f = g
        frames[i] = f
    return replicas


@compiled
def addresses_of(s, frames, addresses):  # type: ignore[no-untyped-def]
    """Write the addresses of frames, (n,) uint64; return the highest of their pools."""
    highest = np.int64(0)
    for i in range(len(frames)):
        addresses[i] = address_of(s, frames[i])
        highest = max(highest, node_of(s, frames[i]))
    return highest


@compiled
def drop_pages(s, pages):  # type: ignore[no-untyped-def]
    """Make pages read as zero; frames go with their last alias."""
    for i in range(len(pages)):
        ask_ahead(s, pages, i)
        p = pages[i]
        if s.frame[p] != 0 or s.flags[p] != 0:
            drop(s, p)


@compiled
def drop_from(s, directory, start):  # type: ignore[no-untyped-def]
    """Drop all pages of a mapping from index ``start`` on, and the leaves that lie beyond."""
    for place in range(start >> LEAF_BITS, len(directory)):
        leaf = np.int64(directory[place])
        if leaf == 0:
            continue
        skip = max(start - (place << LEAF_BITS), 0)
        for i in range(skip, LEAF_PAGES):
            p = (leaf << LEAF_BITS) | i
            if s.frame[p] != 0 or s.flags[p] != 0:
                drop(s, p)
        if skip == 0:
            directory[place] = 0
            return_leaf(s, leaf)


@njit(nogil=True)
def may_change(s, f):  # type: ignore[no-untyped-def]
    """Return whether somebody who holds a pin may write to a frame at any moment."""
    return s.pins[f] != 0 and s.protection[f] & Frame.SHARED == 0


@njit(nogil=True)
def pinned_in(s, directory):  # type: ignore[no-untyped-def]
    """Return how many pages of a mapping :func:`share_page` would have to copy."""
    pinned = 0
    for leaf in directory:
        for i in range(LEAF_PAGES if leaf != 0 else 0):
            pinned += may_change(s, s.frame[(np.int64(leaf) << LEAF_BITS) | i])
    return pinned


@njit(nogil=True, inline="always")
def share_page(s, p, q, node, source, target, copies):  # type: ignore[no-untyped-def]
    """Let page ``q``, new and without a frame, hold what ``p`` holds: an alias of the same frame.

    A page that is pinned and not shared is copied: its frame must stay its owner's.

    :return: how many copies are listed in ``source`` and ``target`` now
    """
    f = np.int64(s.frame[p])
    if f == 0:
        if s.flags[p] & Page.MERGED_ZERO:
            s.flags[q] = Page.MERGED_ZERO
            s.counts[Count.ZERO_PAGES] += 1
    elif may_change(s, f):
        g = take(s, node)
        source[copies], target[copies] = f, g
        copies += 1
        join(s, q, g)
        s.flags[q] = Page.WRITABLE
    else:
        protect(s, f)
        join(s, q, f)
    return copies


@compiled
def fork_pages(s, directory, child, child_directory, node, source, target):  # type: ignore[no-untyped-def]
    """Give a new mapping the pages of another: its aliases join the same frames.

    A page that is pinned and not shared is copied at once: its frame must stay its owner's.

    :param child: number of the new mapping
    :param child_directory: as long as ``directory``, all 0, written
    :param node: pool with room for as many frames as the mapping has pinned pages
    :param source, target: uint32, as long; written: frames to copy
    :return: how many of these; -1 - n, with nothing done, if there are n of them and the arrays
        are shorter
    """
    pinned = pinned_in(s, directory)
    if pinned > len(source):
        return np.int64(-1 - pinned)
    copies = 0
    for place in range(len(directory)):
        leaf = np.int64(directory[place])
        if leaf == 0:
            continue
        other = take_leaf(s, child, place)
        child_directory[place] = other
        for i in range(LEAF_PAGES):
            p, q = (leaf << LEAF_BITS) | i, (other << LEAF_BITS) | i
            copies = share_page(s, p, q, node, source, target, copies)
    return np.int64(copies)


@compiled
def take_dirty(s, pages, found):  # type: ignore[no-untyped-def]
    """Mark pages as written back; write the places in ``pages`` of those that were dirty.

    :param found: (n,) int64, written: each page once
    :return: how many were
    """
    n = 0
    for i in range(len(pages)):
        p = pages[i]
        if s.flags[p] & Page.DIRTY:
            s.flags[p] &= ~Page.DIRTY
            # A device that may store without asking would not make it dirty again.
            invalidate(s, p)
            s.counts[Count.DIRTY_PAGES] -= 1
            found[n] = i
            n += 1
    return n


@compiled
def mark_dirty(s, pages):  # type: ignore[no-untyped-def]
    """Undo :func:`take_dirty`."""
    for p in pages:
        s.flags[p] |= Page.DIRTY
    s.counts[Count.DIRTY_PAGES] += len(pages)


@compiled
def add_pins(s, pages, frames):  # type: ignore[no-untyped-def]
    """Pin the frames of pages, and write which they are."""
    for i in range(len(pages)):
        ask_ahead(s, pages, i)
        frames[i] = s.frame[pages[i]]
        s.pins[frames[i]] += np.uint32(1)
    s.counts[Count.PINS] += len(pages)


@compiled
def remove_pins(s, frames):  # type: ignore[no-untyped-def]
    """Undo :func:`add_pins`; a frame that only pins held is freed."""
    for i in range(len(frames)):
        if i + AHEAD < len(frames):
            ask_frame(s, frames[i + AHEAD])
        f = frames[i]
        s.pins[f] -= np.uint32(1)
        if f != 0:
            free_if_unused(s, np.int64(f))
    s.counts[Count.PINS] -= len(frames)


@compiled
def note_pin_writes(s, pages, frames, is_file):  # type: ignore[no-untyped-def]
    """Note that pages were written through pins of ``frames``, where they still have these."""
    for i in range(len(pages)):
        p = pages[i]
        if s.frame[p] == frames[i] and frames[i] != 0:
            s.generation[p] += np.uint32(1)
            forget(s, p)
            if is_file and s.flags[p] & Page.DIRTY == 0:
                s.flags[p] |= Page.DIRTY
                s.counts[Count.DIRTY_PAGES] += 1


@compiled
def pin_shared(s, pages, node, frames, source, target):  # type: ignore[no-untyped-def]
    """Pin what pages hold now, so that later stores do not show in it: what splice needs.

    Frames are shared, not copied, but those that a holder of a pin may write to.

    :param node: pool with room for n frames
    :param frames: (n,) uint32, written
    :return: how many frames to copy, told in ``source`` and ``target``
    """
    copies = 0
    for i in range(len(pages)):
        f = np.int64(s.frame[pages[i]])
        if may_change(s, f):
            g = take(s, node)
            s.protection[g] |= Frame.SHARED
            source[copies], target[copies] = f, g
            copies += 1
            f = g
        elif f != 0:
            protect(s, f)
        s.pins[f] += np.uint32(1)
        frames[i] = f
    s.counts[Count.PINS] += len(pages)
    return copies


@compiled
def migrate_pages(s, pages, node, moved, source, target):  # type: ignore[no-untyped-def]
    """Move the frames of pages to a pool with room for n; all their aliases follow.

    :param moved: (n,) bool, written: whether the page is there now; not if it is pinned or held
        exclusively
    :return: how many frames to copy, told in ``source`` and ``target``
    """
    copies = 0
    for i in range(len(pages)):
        f = np.int64(s.frame[pages[i]])
        if f == 0 or node_of(s, f) == node:
            moved[i] = True
            continue
        moved[i] = s.pins[f] == 0 and s.protection[f] & (Frame.EXCLUSIVE | Frame.CACHED) == 0
        if moved[i]:
            source[copies], target[copies] = f, replace(s, f, node)
            copies += 1
    return copies
