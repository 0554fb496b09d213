"""The compiled passes of the access paths. Rows of a call are done one after another.

Passes change bookkeeping only. Where bytes must move they list (source, target) frames, to be
copied before anything else happens, in any order: no frame is a source and a target of one pass.
How many they listed is in ``Count.COPIES`` until it is done: an exception between a pass and its
copies leaves a list that the next call finishes.
numba counts references to each array passed to a step, atomically, also where it is inlined: steps
of a page take none, and return the frame to copy to.
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

UNPINNED = np.uint32(0xFFFFFFFF)
"""In place of a frame that was pinned; no frame has this number."""


@njit(nogil=True)
def note_store(s, p, is_file):  # type: ignore[no-untyped-def]
    """Note a store to a page; return whether the page is writable already."""
    flags = s.flags[p]
    s.generation[p] += np.uint32(1)
    if is_file and flags & Page.DIRTY == 0:
        s.flags[p] |= Page.DIRTY
        s.counts[Count.DIRTY_PAGES] += 1
    forget(s, p)
    return flags & Page.WRITABLE != 0


@njit(nogil=True)
def break_cow(s, p, f, node):  # type: ignore[no-untyped-def]
    """Give a page a frame of its own in place of ``f``, which :func:`own` refused or which is 0.

    The caller copies the bytes from ``f``, which keeps an alias or a pin.

    :param node: the pool of the new frame, with room
    """
    g = take(s, node)
    if f != 0:
        leave(s, p)
    join(s, p, g)
    s.flags[p] |= Page.WRITABLE
    s.counts[Count.NEW_FRAMES] += 1
    return g


@compiled
def prepare_write(s, pages, node, is_file, source, target):  # type: ignore[no-untyped-def]
    """Make pages writable, each in a frame of its own; return how many frames to copy.

    :param pages: (n,) uint32
    :param node: the pool of new frames, with room for n
    :param is_file: pages become dirty
    :param source, target: (n,) uint32, written: frames to copy, and to where
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
        source[copies], target[copies] = f, break_cow(s, p, f, node)
        copies += 1
    s.counts[Count.COPIES] = copies
    return copies


@compiled
def frames_of(s, pages, node, frames):  # type: ignore[no-untyped-def]
    """Write frames to read pages from, preferably on ``node``; return how many are replicas."""
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
    """Make pages read as zero; dropping the last alias frees the frame."""
    for i in range(len(pages)):
        ask_ahead(s, pages, i)
        p = pages[i]
        if s.frame[p] != 0 or s.flags[p] != 0:
            drop(s, p)


@compiled
def drop_from(s, directory, places, start):  # type: ignore[no-untyped-def]
    """Drop all pages of a mapping from index ``start`` on; free leaves that lie wholly beyond.

    :param places: (k,) int64, those that have leaves, from that of ``start`` on
    """
    for place in places:
        leaf = np.int64(directory[place])
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
    """Return whether the holder of a pin may write to a frame at any moment."""
    return s.pins[f] != 0 and s.protection[f] & Frame.SHARED == 0


@njit(nogil=True)
def pinned_in(s, leaves):  # type: ignore[no-untyped-def]
    """Return how many pages of some leaves :func:`share_page` must copy."""
    pinned = 0
    for leaf in leaves:
        for i in range(LEAF_PAGES):
            pinned += may_change(s, s.frame[(np.int64(leaf) << LEAF_BITS) | i])
    return pinned


@njit(nogil=True)
def share_page(s, p, q, node):  # type: ignore[no-untyped-def]
    """Make page ``q``, new and without a frame, an alias of the frame of ``p``.

    A frame that is pinned and not shared is copied instead: it must stay its owner's.

    :return: the copy's frame, to which the bytes of that of ``p`` must be copied; 0: none
    """
    f, g = np.int64(s.frame[p]), np.int64(0)
    if f == 0:
        if s.flags[p] & Page.MERGED_ZERO:
            s.flags[q] = Page.MERGED_ZERO
            s.counts[Count.ZERO_PAGES] += 1
    elif may_change(s, f):
        g = take(s, node)
        join(s, q, g)
        s.flags[q] = Page.WRITABLE
    else:
        protect(s, f)
        join(s, q, f)
    return g


@compiled
def fork_pages(s, leaves, places, child, child_directory, node, source, target):  # type: ignore[no-untyped-def]
    """Make pages of a new mapping aliases of another's frames, by :func:`share_page`.

    :param leaves: (k,) uint32, all that the other has
    :param places: (k,) int64, where its directory has them
    :param child: number of the new mapping
    :param child_directory: as long as the other's, all 0, written
    :param node: pool with room for :func:`pinned_in` frames
    :param source, target: (:func:`pinned_in`,) uint32, written: frames to copy, and to where
    :return: frames to copy; -1 - n, with nothing done, if these are n and the arrays shorter
    """
    pinned = pinned_in(s, leaves)
    if pinned > len(source):
        return np.int64(-1 - pinned)
    copies = 0
    for k in range(len(leaves)):
        leaf = np.int64(leaves[k])
        other = take_leaf(s, child, places[k])
        child_directory[places[k]] = other
        for i in range(LEAF_PAGES):
            p, q = (leaf << LEAF_BITS) | i, (other << LEAF_BITS) | i
            g = share_page(s, p, q, node)
            if g != 0:
                source[copies], target[copies] = s.frame[p], g
                copies += 1
    s.counts[Count.COPIES] = copies
    return np.int64(copies)


@compiled
def take_dirty(s, pages):  # type: ignore[no-untyped-def]
    """Mark pages clean, before they are written back."""
    for p in pages:
        if s.flags[p] & Page.DIRTY:
            s.flags[p] &= ~Page.DIRTY
            # A device store that does not fault would not mark the page dirty again.
            invalidate(s, p)
            s.counts[Count.DIRTY_PAGES] -= 1


@compiled
def mark_dirty(s, pages):  # type: ignore[no-untyped-def]
    """Mark pages of files dirty; this undoes :func:`take_dirty`."""
    for p in pages:
        if s.frame[p] != 0 and s.flags[p] & Page.DIRTY == 0:
            s.flags[p] |= Page.DIRTY
            s.counts[Count.DIRTY_PAGES] += 1


@compiled
def add_pins(s, pages, frames):  # type: ignore[no-untyped-def]
    """Pin the frames of pages, and write them to ``frames``, (n,) uint32."""
    for i in range(len(pages)):
        ask_ahead(s, pages, i)
        frames[i] = s.frame[pages[i]]
        s.pins[frames[i]] += np.uint32(1)
    s.counts[Count.PINS] += len(pages)


@compiled
def remove_pins(s, frames):  # type: ignore[no-untyped-def]
    """Unpin frames, and free those that only pins held. Calling it again does nothing.

    :param frames: (n,) uint32, written: :data:`UNPINNED`
    """
    for i in range(len(frames)):
        if i + AHEAD < len(frames) and frames[i + AHEAD] != UNPINNED:
            ask_frame(s, frames[i + AHEAD])
        f = frames[i]
        if f == UNPINNED:
            continue
        frames[i] = UNPINNED
        s.pins[f] -= np.uint32(1)
        s.counts[Count.PINS] -= 1
        if f != 0:
            free_if_unused(s, np.int64(f))


@compiled
def note_pin_writes(s, pages, frames, is_file):  # type: ignore[no-untyped-def]
    """Note stores through pins of ``frames``, for pages that still have these frames."""
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
    """Pin what pages hold now, for a splice; return how many frames to copy.

    Later stores do not show: frames are shared, and copied where the holder of a pin may write.

    :param node: pool with room for n frames
    :param frames: (n,) uint32, written
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
    s.counts[Count.COPIES] = copies
    return copies


@compiled
def migrate_pages(s, pages, node, moved, source, target):  # type: ignore[no-untyped-def]
    """Migrate frames, with all aliases, to a pool with room for n; return how many to copy.

    :param moved: (n,) bool, written: True where the pool now has the page; False for pages pinned,
        exclusive or cached
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
    s.counts[Count.COPIES] = copies
    return copies
