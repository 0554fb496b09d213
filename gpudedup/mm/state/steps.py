"""The smallest steps, of which every compiled pass is made: take a frame, join it, leave it.

They keep all rules of :mod:`gpudedup.mm.state.arrays` but one: a frame that has been taken is to be
given an alias, or be freed, by the same pass. In all of them ``s`` is the state, ``p`` a page,
``f`` a frame.
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
    """Note that no device may reach a page by the entry that it has, if one has any."""
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
    """Do that for all aliases of a frame."""
    if s.counts[Count.MIRRORED_PAGES] == 0:
        return
    p = np.int64(s.first[f])
    for _ in range(s.aliases[f]):
        invalidate(s, p)
        p = np.int64(s.next[p])


@njit(nogil=True)
def write_protect(s, p):  # type: ignore[no-untyped-def]
    """Make every later store to a page ask first, from the host and from devices.

    Entries that only loads go by may stay: devices store only to what is writable.
    """
    if s.flags[p] & Page.WRITABLE:
        s.flags[p] &= ~Page.WRITABLE
        invalidate(s, p)


@njit(nogil=True)
def take(s, node):  # type: ignore[no-untyped-def]
    """Return a free frame of a pool that has room; it has no alias, ring or token yet."""
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
    """Put one frame, of whatever kind, on its pool's list of free ones."""
    node = node_of(s, f)
    if s.protection[f] & ~(Frame.USED | Frame.SHARED):
        # Of all others these are 0.
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
    """Let all replicas of a frame go; or the home of a cached one."""
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
    """Count a merged frame among those of its content."""
    s.token[f] = content
    s.chain[content] += np.uint32(1)
    if s.chain[content] == 2:
        s.counts[Count.CHAINS] += 1
        s.counts[Count.CHAIN_FRAMES] += 1
    if s.chain[content] >= 2:
        s.counts[Count.CHAIN_FRAMES] += 1


@njit(nogil=True)
def leave_content(s, f):  # type: ignore[no-untyped-def]
    """Undo :func:`join_content`; the number of a content that has no frame left is free."""
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
def merge_frame(s, f, content):  # type: ignore[no-untyped-def]
    """Make a frame a merged one of ``content``; 0: of a new one, which there must be room for.

    :return: the content
    """
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
    s.counts[Count.MERGED_PAGES] += s.aliases[f]
    p = np.int64(s.first[f])
    for _ in range(s.aliases[f]):
        forget(s, p)
        p = np.int64(s.next[p])
    join_content(s, f, content)
    return content


@njit(nogil=True)
def unmerge(s, f):  # type: ignore[no-untyped-def]
    """Make a merged frame one that is merely shared; its content may have others."""
    s.protection[f] &= ~Frame.MERGED
    s.counts[Count.MERGED_FRAMES] -= 1
    s.counts[Count.MERGED_PAGES] -= s.aliases[f]
    leave_content(s, f)


@njit(nogil=True)
def free(s, f):  # type: ignore[no-untyped-def]
    """Free a frame that has no alias and no pin, with its replicas."""
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
    if s.protection[f] & Frame.MERGED:
        s.counts[Count.MERGED_PAGES] += 1
    s.counts[Count.PAGES] += 1
    s.populated[mapping_of(s, p)] += 1


@njit(nogil=True)
def leave(s, p):  # type: ignore[no-untyped-def]
    """Take a page from the ring of its frame, not 0; return the frame, which may have none left."""
    invalidate(s, p)
    f = np.int64(s.frame[p])
    _unlink(s, p, f)
    s.aliases[f] -= 1
    s.frame[p] = 0
    if s.protection[f] & Frame.MERGED:
        s.counts[Count.MERGED_PAGES] -= 1
        if s.aliases[f] == 0:
            # Only pins keep it now: it is nobody's merged page, as in the kernel.
            unmerge(s, f)
    s.counts[Count.PAGES] -= 1
    s.populated[mapping_of(s, p)] -= 1
    return f


@njit(nogil=True, inline="always")
def move(s, p, f, g):  # type: ignore[no-untyped-def]
    """Make an alias of ``f`` one of ``g``, write-protected; both are frames other than 0.

    As :func:`leave` and :func:`join`, without what these would count twice.
    """
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
    """Clear what merging noted about a page that is about to change."""
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
    """Let a hidden alias go; its frame may have none left."""
    s.protection[leave(s, p)] &= ~Frame.OWNED
    s.flags[p] = 0
    s.generation[p] += np.uint32(1)
    s.counts[Count.HIDDEN_GONE] += 1


@njit(nogil=True)
def free_if_unused(s, f):  # type: ignore[no-untyped-def]
    """After an alias or a pin left: free the frame if nobody needs it any more."""
    if s.protection[f] & Frame.OWNED and s.aliases[f] == 1 and s.pins[f] == 0:
        drop_hidden(s, np.int64(s.first[f]))
    if s.aliases[f] == 0 and s.pins[f] == 0:
        free(s, f)


@njit(nogil=True)
def drop(s, p):  # type: ignore[no-untyped-def]
    """Make a page one that was never written."""
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
    """Give its only alias a frame, as it is, to write; return whether that is allowed.

    Not if others read the frame: through an alias, a pin of when it was shared, or a splice. A pin
    of a page that was never shared is its owner's own, who wants stores to show in it.
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
    """Let a frame of another pool take the place of one without pins; return the new one.

    All aliases follow, and whatever is known of the frame; replicas go. The bytes are the caller's
    to copy: ``f`` is free afterwards.
    """
    if s.ring[f] != 0:
        collapse(s, f)
    g = take(s, node)
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
    """Make every later store to a frame ask first."""
    if s.protection[f] & Frame.SHARED == 0:
        s.protection[f] |= Frame.SHARED
        if s.aliases[f] != 0:
            write_protect(s, np.int64(s.first[f]))
