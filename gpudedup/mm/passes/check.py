"""The compiled passes of a check: recount from pages and frames alone, stop at a broken rule."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.jit import compiled
from gpudedup.kernels import ATOMIC, FLAGS, PRESENT, WRITE
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES, Count, Frame, Geometry, Page
from gpudedup.mm.state.steps import address_of, node_of

RULES = {
    1: "a page of a free leaf has a frame or flags",
    2: "a page has a frame that is free, a replica, or not there",
    3: "the ring of a frame's aliases is torn at a page",
    4: "a page that others share, or that has no frame, is writable",
    5: "a merged file page is dirty",
    6: "a page that merging found zero has a frame, or one that it found unique has none",
    7: "a frame is reachable from nowhere",
    8: "a frame's aliases are not as many as its count",
    9: "a merged frame has no alias, is not write-protected, or its content does not count it",
    10: "a frame that is held exclusively is shared, or has no single alias",
    11: "a frame has replicas and does not say so, or says so and has none",
    12: "a replica does not lead back to its original",
    13: "a pool's free frames are not as many as it says",
    14: "a free frame has aliases, pins, a ring or a token",
    15: "a leaf's mapping does not list it",
    16: "a page of leaf 0 has a frame",
    17: "a hidden page is the only alias of its frame",
    18: "a frame has a hidden alias and does not say so, or says so and has none",
    19: "a page says that devices mirror it and not which, or which and not that they do",
}


@njit(nogil=True)
def _check_page(s, p, seen):  # type: ignore[no-untyped-def]
    """Return the rule that a page breaks, or 0."""
    f, flags = np.int64(s.frame[p]), s.flags[p]
    if (flags & Page.MIRRORED != 0) != (s.mirrors[p] != 0):
        return 19
    if f == 0:
        if flags & (Page.WRITABLE | Page.UNSHARED | Page.DIRTY | Page.HIDDEN):
            return 4 if flags & Page.WRITABLE else 6
        return 0
    if f >= len(s.protection):
        return 2
    protection = s.protection[f]
    if protection & Frame.USED == 0 or protection & Frame.REPLICA:
        return 2
    seen[f] += np.uint32(1)
    after, before = np.int64(s.next[p]), np.int64(s.prev[p])
    if s.prev[after] != p or s.next[before] != p or s.frame[after] != f or s.frame[before] != f:
        return 3
    if flags & Page.WRITABLE and (
        s.aliases[f] != 1
        or protection & (Frame.SHARED | Frame.MERGED | Frame.REPLICATED | Frame.EXCLUSIVE)
    ):
        return 4
    if flags & Page.DIRTY and protection & Frame.MERGED:
        return 5
    if flags & Page.MERGED_ZERO:
        return 6
    if flags & Page.HIDDEN and s.aliases[f] == 1 and s.pins[f] == 0:
        return 17
    return 0


@compiled
def check_pages(s, seen, counted, populated):  # type: ignore[no-untyped-def]
    """Check all pages; return (rule, page) of the first that breaks one, or (0, 0).

    :param seen: (frames,) uint32, all 0; written: aliases of each frame
    :param counted: (len(Count),) int64, all 0; written: counts of pages
    :param populated: (mappings,) int64, all 0; written: pages with a frame
    """
    for leaf in range(len(s.leaf_mapping)):
        mapping = np.int64(s.leaf_mapping[leaf])
        for i in range(LEAF_PAGES):
            p = (leaf << LEAF_BITS) | i
            if mapping == 0:
                if s.frame[p] != 0 or s.flags[p] != 0 or s.mirrors[p] != 0:
                    return (16 if leaf == 0 else 1), p
                continue
            rule = _check_page(s, p, seen)
            if rule:
                return rule, p
            flags = s.flags[p]
            if s.frame[p] != 0:
                counted[Count.PAGES] += 1
                populated[mapping] += 1
                hidden = flags & Page.HIDDEN != 0
                counted[Count.HIDDEN_PAGES] += hidden
                if s.protection[s.frame[p]] & Frame.MERGED and not hidden:
                    counted[Count.MERGED_PAGES] += 1
            counted[Count.ZERO_PAGES] += flags & Page.MERGED_ZERO != 0
            counted[Count.UNSHARED_PAGES] += flags & Page.UNSHARED != 0
            counted[Count.DIRTY_PAGES] += flags & Page.DIRTY != 0
            counted[Count.MIRRORED_PAGES] += flags & Page.MIRRORED != 0
    return 0, 0


@njit(nogil=True)
def _check_frame(s, f, seen, holders, replicas, per_content):  # type: ignore[no-untyped-def]
    """Return the rule that a used frame breaks, or 0."""
    protection = s.protection[f]
    if protection & Frame.REPLICA:
        replicas[s.first[f]] += np.uint32(1)
        return 12 if s.protection[s.first[f]] & (Frame.REPLICATED | Frame.CACHED) == 0 else 0
    n = np.int64(s.aliases[f])
    if n != seen[f]:
        return 8
    if n == 0 and s.pins[f] == 0:
        return 7
    holders[0] += np.int64(s.pins[f])
    steps, hidden, p = 0, 0, np.int64(s.first[f])
    while n and steps <= n:
        p = np.int64(s.next[p])
        steps += 1
        hidden += s.flags[p] & Page.HIDDEN != 0
        if p == s.first[f]:
            break
    if steps != n:
        return 3
    if hidden != (protection & Frame.OWNED != 0):
        return 18
    if protection & Frame.MERGED:
        if protection & Frame.SHARED == 0 or s.token[f] == 0 or n == 0:
            return 9
        per_content[s.token[f]] += np.uint32(1)
    if protection & Frame.EXCLUSIVE and (
        protection & (Frame.SHARED | Frame.MERGED | Frame.REPLICATED) or n != 1
    ):
        return 10
    if (s.ring[f] != 0) != (protection & (Frame.REPLICATED | Frame.CACHED) != 0):
        return 11
    return 0


@compiled
def check_frames(s, seen, replicas, per_content, counted, holders):  # type: ignore[no-untyped-def]
    """Check all frames; return (rule, frame) of the first that breaks one, or (0, 0).

    :param seen: aliases of each, from :func:`check_pages`
    :param replicas: (frames,) uint32, all 0: scratch
    :param per_content: (contents,) uint32, all 0; written: merged frames of each
    :param holders: (1,) int64, written: pins of all frames
    """
    free_of = np.zeros(len(s.room), np.int64)
    holders[0] = np.int64(s.pins[0])
    for chunk in range(len(s.base)):
        if s.base[chunk] == 0:
            continue
        bits = s.geometry[Geometry.CHUNK_BITS]
        first = chunk << bits
        free_of[s.chunk_node[chunk]] += (np.int64(1) << bits) - s.chunk_fresh[chunk]
        for f in range(max(first, 1), first + s.chunk_fresh[chunk]):
            if s.protection[f] & Frame.USED == 0:
                free_of[node_of(s, f)] += 1
                if s.protection[f] or seen[f] != 0 or s.ring[f] != 0 or s.token[f] != 0:
                    return 14, f
                continue
            counted[Count.FRAMES] += 1
            counted[Count.MERGED_FRAMES] += s.protection[f] & Frame.MERGED != 0
            counted[Count.REPLICAS] += s.protection[f] & Frame.REPLICA != 0
            counted[Count.EXCLUSIVE_FRAMES] += s.protection[f] & Frame.EXCLUSIVE != 0
            rule = _check_frame(s, f, seen, holders, replicas, per_content)
            if rule:
                return rule, f
    for f in range(len(s.ring)):
        if s.protection[f] & (Frame.REPLICATED | Frame.CACHED):
            g, steps = np.int64(s.ring[f]), 0
            while g != f and steps <= replicas[f]:
                if s.protection[g] & Frame.REPLICA == 0 or s.first[g] != f:
                    return 12, g
                g = np.int64(s.ring[g])
                steps += 1
            if steps != replicas[f] or steps == 0:
                return 12, f
        elif replicas[f]:
            return 12, f
    for content in range(len(per_content)):
        n = per_content[content]
        if n >= 2:
            counted[Count.CHAINS] += 1
            counted[Count.CHAIN_FRAMES] += n
    return _check_pools(s, free_of)


@njit(nogil=True)
def _check_pools(s, free_of):  # type: ignore[no-untyped-def]
    for node in range(len(s.room)):
        if free_of[node] != s.room[node]:
            return 13, node
        fresh, chunk = 0, s.fresh[node]
        while chunk >= 0:
            fresh += (np.int64(1) << s.geometry[Geometry.CHUNK_BITS]) - s.chunk_fresh[chunk]
            chunk = s.chunk_link[chunk]
        listed, f = 0, np.int64(s.free[node])
        while f != 0 and listed <= free_of[node]:
            if s.protection[f] != 0 or node_of(s, f) != node:
                return 14, f
            f = np.int64(s.first[f])
            listed += 1
        if fresh + listed != s.room[node]:
            return 13, node
    return 0, 0


@compiled
def check_entries(s, pages, device, zero_page, entries):  # type: ignore[no-untyped-def]
    """Return the position of the first device entry that contradicts the state, or -1."""
    node = s.geometry[Geometry.NODES] + device
    for i in range(len(pages)):
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        entry = entries[i]
        address = entry & ~np.uint64(FLAGS)
        if s.mirrors[p] >> device & 1 == 0 or entry & np.uint64(PRESENT) == 0:
            return i
        exclusive = s.protection[f] & Frame.EXCLUSIVE != 0
        if entry & np.uint64(ATOMIC) and not exclusive:
            return i
        if entry & np.uint64(WRITE) and not exclusive and s.flags[p] & Page.WRITABLE == 0:
            return i
        if f == 0:
            if address != zero_page or entry & np.uint64(WRITE):
                return i
            continue
        g = f
        while node_of(s, g) != node:
            g = np.int64(s.ring[g]) if s.protection[f] & Frame.REPLICATED else f
            if g == f:
                return i
        if address != address_of(s, g) or (g != f and entry & np.uint64(WRITE)):
            return i
    return -1
