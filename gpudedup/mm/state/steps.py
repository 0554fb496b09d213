"""The smallest steps, of which every compiled pass is made: take a frame, join it, leave it.

They keep all rules of :mod:`gpudedup.mm.state.arrays` but one: the pass that takes a frame must
give it an alias, a pin or an original, or free it. ``s`` is the state, ``p`` a page, ``f`` a frame.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES, Count, Frame, Geometry, Page
from gpudedup.mm.state.prefetch import AHEAD, ask_frame

CLEAN_STATE = np.uint8(0xFF ^ (Page.UNSHARED | Page.MERGED_ZERO))


@njit(nogil=True)
def node_of(s, f):  # type: ignore[no-untyped-def]
    """Return the pool of a frame."""
    return np.int64(s.chunk_node[np.int64(f) >> s.geometry[Geometry.CHUNK_BITS]])


@njit(nogil=True)
def address_of(s, f):  # type: ignore[no-untyped-def]
    """Return the address of a frame."""
    bits = s.geometry[Geometry.CHUNK_BITS]
    inside = np.int64(f) & ((np.int64(1) << bits) - 1)
    return s.base[np.int64(f) >> bits] + np.uint64(inside * s.geometry[Geometry.PAGE_SIZE])


@njit(nogil=True)
def mapping_of(s, p):  # type: ignore[no-untyped-def]
    """Return the number of the mapping that a page belongs to."""
    return np.int64(s.leaf_mapping[np.int64(p) >> LEAF_BITS])


@njit(nogil=True)
def invalidate(s, p):  # type: ignore[no-untyped-def]
    """List the device entries of a page, if it has any, for invalidation."""
    if s.flags[p] & Page.MIRRORED == 0:
        return
    n, leaf = s.counts[Count.GONE], np.int64(p) >> LEAF_BITS
    s.gone_mapping[n] = s.leaf_mapping[leaf]
    s.gone_index[n] = (np.int64(s.leaf_place[leaf]) << LEAF_BITS) | (np.int64(p) & (LEAF_PAGES - 1))
    s.gone_mirrors[n] = s.mirrors[p]
    s.counts[Count.GONE] += 1
    s.mirrors[p] = 0
    s.flags[p] &= ~Page.MIRRORED
    s.counts[Count.MIRRORED_PAGES] -= 1


@njit(nogil=True)
def invalidate_all(s, f):  # type: ignore[no-untyped-def]
    """List the device entries of all aliases of a frame for invalidation."""
    if s.counts[Count.MIRRORED_PAGES] == 0:
        return
    p = np.int64(s.first[f])
    for _ in range(s.aliases[f]):
        invalidate(s, p)
        p = np.int64(s.next[p])


@njit(nogil=True)
def write_protect(s, p):  # type: ignore[no-untyped-def]
    """Write-protect a page; if it was not writable, its device entries are read-only and stay."""
    if s.flags[p] & Page.WRITABLE:
        s.flags[p] &= ~Page.WRITABLE
        invalidate(s, p)


@njit(nogil=True)
def take(s, node):  # type: ignore[no-untyped-def]
    """Take a free frame of a pool that has room, and return it, without alias, ring or token."""
    f = np.int64(s.free[node])
    if f != 0:
        s.free[node] = s.first[f]
        ask_frame(s, s.pins[f])
    else:
        chunk = s.fresh[node]
        f = (chunk << s.geometry[Geometry.CHUNK_BITS]) + s.chunk_fresh[chunk]
        s.chunk_fresh[chunk] += 1
        if s.chunk_fresh[chunk] == np.int64(1) << s.geometry[Geometry.CHUNK_BITS]:
            s.fresh[node] = s.chunk_link[chunk]
    s.room[node] -= 1
    s.counts[Count.FRAMES] += 1
    s.protection[f] = Frame.USED
    s.aliases[f] = 0
    s.pins[f] = 0
    return f


@njit(nogil=True)
def give_back(s, f):  # type: ignore[no-untyped-def]
    """Put a frame of any kind on its pool's free list."""
    node = node_of(s, f)
    if s.protection[f] & ~(Frame.USED | Frame.SHARED):
        # In all other frames these are 0.
        s.ring[f] = 0
        s.token[f] = 0
    s.protection[f] = 0
    s.first[f] = s.free[node]
    s.free[node] = f
    s.room[node] += 1
    s.counts[Count.FRAMES] -= 1
    place = node * AHEAD + (s.room[node] & (AHEAD - 1))
    s.pins[f] = s.freed[place]
    s.freed[place] = f


@njit(nogil=True)
def collapse(s, f):  # type: ignore[no-untyped-def]
    """Free all replicas of a frame, or the home of a cached one."""
    invalidate_all(s, f)
    replica = np.int64(s.ring[f])
    while replica != f:
        following = np.int64(s.ring[replica])
        give_back(s, replica)
        s.counts[Count.REPLICAS] -= 1
        replica = following
    s.ring[f] = 0
    s.protection[f] &= ~(Frame.REPLICATED | Frame.CACHED)
    s.counts[Count.COLLAPSES] += 1


@njit(nogil=True)
def join_content(s, f, content):  # type: ignore[no-untyped-def]
    """Add a merged frame to those of its content."""
    s.token[f] = content
    s.chain[content] += np.uint32(1)
    if s.chain[content] == 2:
        s.counts[Count.CHAINS] += 1
        s.counts[Count.CHAIN_FRAMES] += 1
    if s.chain[content] >= 2:
        s.counts[Count.CHAIN_FRAMES] += 1


@njit(nogil=True)
def leave_content(s, f):  # type: ignore[no-untyped-def]
    """Undo :func:`join_content`; free the number of a content that has no frame left."""
    content = np.int64(s.token[f])
    s.token[f] = 0
    s.chain[content] -= np.uint32(1)
    left = s.chain[content]
    if left >= 1:
        s.counts[Count.CHAIN_FRAMES] -= 1
        if left == 1:
            s.counts[Count.CHAIN_FRAMES] -= 1
            s.counts[Count.CHAINS] -= 1
    else:
        s.chain[content] = s.counts[Count.CHAIN_FREE]
        s.counts[Count.CHAIN_FREE] = content


@njit(nogil=True)
def sharers(s, f):  # type: ignore[no-untyped-def]
    """Return how many aliases a frame has without a HIDDEN one, which is no reader of its own."""
    return np.int64(s.aliases[f]) - (s.protection[f] & Frame.OWNED != 0)


@njit(nogil=True)
def merge_frame(s, f, content):  # type: ignore[no-untyped-def]
    """Make a frame a merged one of ``content`` (0: a new one; there is room), and return that."""
    if content == 0:
        content = s.counts[Count.CHAIN_FREE]
        if content != 0:
            s.counts[Count.CHAIN_FREE] = np.int64(s.chain[content])
        else:
            content = s.counts[Count.CHAIN_FRESH]
            s.counts[Count.CHAIN_FRESH] += 1
        s.chain[content] = 0
        s.scope[content] = 0
    protect(s, f)
    s.protection[f] |= Frame.MERGED
    s.counts[Count.MERGED_FRAMES] += 1
    s.counts[Count.MERGED_PAGES] += sharers(s, f)
    p = np.int64(s.first[f])
    for _ in range(s.aliases[f]):
        forget(s, p)
        p = np.int64(s.next[p])
    join_content(s, f, content)
    return content


@njit(nogil=True)
def unmerge(s, f):  # type: ignore[no-untyped-def]
    """Make a merged frame a merely shared one; other frames of its content stay merged."""
    s.protection[f] &= ~Frame.MERGED
    s.counts[Count.MERGED_FRAMES] -= 1
    s.counts[Count.MERGED_PAGES] -= sharers(s, f)
    leave_content(s, f)


@njit(nogil=True)
def free(s, f):  # type: ignore[no-untyped-def]
    """Free a frame that has no alias and no pin, with its replicas or home."""
    if s.protection[f] & (Frame.REPLICATED | Frame.CACHED):
        collapse(s, f)
    give_back(s, f)


@njit(nogil=True)
def _link(s, p, f):  # type: ignore[no-untyped-def]
    """Put a page last in the ring of a frame that has aliases."""
    head = np.int64(s.first[f])
    tail = np.int64(s.prev[head])
    s.next[tail] = p
    s.prev[p] = tail
    s.next[p] = head
    s.prev[head] = p


@njit(nogil=True)
def _unlink(s, p, f):  # type: ignore[no-untyped-def]
    """Take a page out of the ring of a frame."""
    before, after = np.int64(s.prev[p]), np.int64(s.next[p])
    s.next[before] = after
    s.prev[after] = before
    if s.first[f] == p:
        s.first[f] = after


@njit(nogil=True)
def join(s, p, f):  # type: ignore[no-untyped-def]
    """Make a page that has no frame an alias of ``f``, the last in its ring."""
    invalidate(s, p)
    if s.aliases[f] == 0:
        s.first[f] = p
        s.next[p] = p
        s.prev[p] = p
    else:
        _link(s, p, f)
    s.aliases[f] += 1
    s.frame[p] = f
    if s.protection[f] & Frame.MERGED and s.flags[p] & Page.HIDDEN == 0:
        s.counts[Count.MERGED_PAGES] += 1
    s.counts[Count.PAGES] += 1
    s.populated[mapping_of(s, p)] += 1


@njit(nogil=True)
def leave(s, p):  # type: ignore[no-untyped-def]
    """Remove a page from its frame, not 0; return the frame, which may have no alias left."""
    invalidate(s, p)
    f = np.int64(s.frame[p])
    _unlink(s, p, f)
    s.aliases[f] -= 1
    s.frame[p] = 0
    if s.protection[f] & Frame.MERGED:
        s.counts[Count.MERGED_PAGES] -= s.flags[p] & Page.HIDDEN == 0
        if sharers(s, f) == 0:
            # Only pins hold the frame now: it counts as merged no longer, as in the kernel.
            unmerge(s, f)
    s.counts[Count.PAGES] -= 1
    s.populated[mapping_of(s, p)] -= 1
    return f


@njit(nogil=True, inline="always")
def move(s, p, f, g):  # type: ignore[no-untyped-def]
    """Move an alias of ``f`` to ``g``, neither 0, write-protected: a leave() and join() in one."""
    flags = s.flags[p]
    if flags & Page.UNSHARED:
        s.counts[Count.UNSHARED_PAGES] -= 1
    s.flags[p] = flags & (CLEAN_STATE ^ Page.WRITABLE)
    if flags & Page.MIRRORED:
        invalidate(s, p)
    n = s.aliases[f]
    if n != 1:
        _unlink(s, p, f)
    s.aliases[f] = n - 1
    _link(s, p, g)
    s.aliases[g] += 1
    s.frame[p] = g
    if s.protection[f] & Frame.MERGED:
        s.counts[Count.MERGED_PAGES] -= 1
    if s.protection[g] & Frame.MERGED:
        s.counts[Count.MERGED_PAGES] += 1


@njit(nogil=True)
def forget(s, p):  # type: ignore[no-untyped-def]
    """Clear the flags that a merge set on a page that is about to change."""
    flags = s.flags[p]
    if flags & Page.UNSHARED:
        s.counts[Count.UNSHARED_PAGES] -= 1
    if flags & Page.MERGED_ZERO:
        s.counts[Count.ZERO_PAGES] -= 1
    s.flags[p] = flags & CLEAN_STATE


@njit(nogil=True)
def only_hidden_beside(s, p, f):  # type: ignore[no-untyped-def]
    """Return whether a frame has two aliases, ``p`` and a hidden one."""
    return (
        s.aliases[f] == 2
        and s.flags[s.next[p]] & Page.HIDDEN != 0
        and s.flags[p] & Page.HIDDEN == 0
    )


@njit(nogil=True)
def drop_hidden(s, p):  # type: ignore[no-untyped-def]
    """Drop a hidden alias; its frame may have no alias left."""
    s.protection[s.frame[p]] &= ~Frame.OWNED
    leave(s, p)
    s.flags[p] = 0
    s.generation[p] += np.uint32(1)
    s.counts[Count.HIDDEN_GONE] += 1
    s.counts[Count.HIDDEN_PAGES] -= 1


@njit(nogil=True)
def free_if_unused(s, f):  # type: ignore[no-untyped-def]
    """Free a frame that has no pin left, and no alias but a hidden one, which is dropped."""
    if s.protection[f] & Frame.OWNED and s.aliases[f] == 1 and s.pins[f] == 0:
        drop_hidden(s, np.int64(s.first[f]))
    if s.aliases[f] == 0 and s.pins[f] == 0:
        free(s, f)


@njit(nogil=True)
def drop(s, p):  # type: ignore[no-untyped-def]
    """Make a page read as zero, as if never written; dropping the last alias frees its frame."""
    invalidate(s, p)
    forget(s, p)
    if s.flags[p] & Page.DIRTY:
        s.counts[Count.DIRTY_PAGES] -= 1
    s.flags[p] = 0
    s.generation[p] += np.uint32(1)
    if s.frame[p] != 0:
        free_if_unused(s, leave(s, p))


@njit(nogil=True)
def own(s, p, f):  # type: ignore[no-untyped-def]
    """Make ``p`` writable in its frame ``f``, as it is; return False if others read the frame.

    Others are aliases, and pins of a shared frame, splices included. A pin of a frame that is not
    shared belongs to the page's owner, whose stores must show in it.
    """
    if only_hidden_beside(s, p, f) and s.pins[f] == 0:
        drop_hidden(s, np.int64(s.next[p]))
    if s.aliases[f] != 1 or (s.protection[f] & Frame.SHARED and s.pins[f] != 0):
        return False
    if s.protection[f] & Frame.MERGED:
        unmerge(s, f)
    if s.protection[f] & Frame.REPLICATED:
        collapse(s, f)
    s.protection[f] &= ~Frame.SHARED
    s.flags[p] |= Page.WRITABLE
    return True


@njit(nogil=True)
def replace(s, f, node):  # type: ignore[no-untyped-def]
    """Replace a frame without pins by one of another pool; return the new frame.

    Aliases, protection and token follow; replicas are freed. The caller copies the bytes from
    ``f``, which is free afterwards.
    """
    return _replace_by(s, f, take(s, node))


@njit(nogil=True)
def replace_by_fresh(s, f, node):  # type: ignore[no-untyped-def]
    """Replace a frame as :func:`replace` does, by one that was never used: it is no freed source.

    There must be one in a chunk of the pool.
    """
    free, s.free[node] = s.free[node], np.uint32(0)
    g = take(s, node)
    s.free[node] = free
    return _replace_by(s, f, g)


@njit(nogil=True)
def _replace_by(s, f, g):  # type: ignore[no-untyped-def]
    if s.ring[f] != 0:
        collapse(s, f)
    s.first[g], s.aliases[g] = s.first[f], s.aliases[f]
    s.protection[g], s.token[g] = s.protection[f], s.token[f]
    p = np.int64(s.first[f])
    for _ in range(s.aliases[f]):
        s.frame[p] = g
        invalidate(s, p)
        p = np.int64(s.next[p])
    give_back(s, f)
    return g


@njit(nogil=True)
def protect(s, f):  # type: ignore[no-untyped-def]
    """Mark a frame SHARED, and write-protect its alias: a frame not SHARED has one at most."""
    if s.protection[f] & Frame.SHARED == 0:
        s.protection[f] |= Frame.SHARED
        if s.aliases[f] != 0:
            write_protect(s, np.int64(s.first[f]))
