"""The compiled passes of merging: survey, plan, compare, apply.

The order is the kernel's. The survey notes which pages there are and their generation. Without the
lock, frames are digested, and the pages of equal digests become *groups*. Then, under the lock,
each page of a group is checked: not written since (its generation), not moved (its frame), not
pinned, equal to the group's first page byte by byte. What passed is write-protected and moved.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.engines.intrinsics import memcmp, prefetch_l2
from gpudedup.engines.jit import compiled
from gpudedup.mm.links import (
    address_of,
    forget,
    join,
    join_content,
    leave,
    leave_content,
    mapping_of,
    merge_frame,
    move,
    node_of,
    own,
    settle,
    take,
)
from gpudedup.mm.state import (
    CACHED,
    EXCLUSIVE,
    HIDDEN,
    MERGED,
    MERGED_ZERO,
    REPLICA,
    UNSHARED,
    USED,
    WRITABLE,
    Count,
    Geometry,
)

READY, ALREADY, WRITTEN, PINNED, UNEQUAL, BUSY = range(6)
"""Verdicts on a page of a group: it may move; is in a merged frame; was written or moved since; is
pinned; has the digest of the others and not their bytes; is held exclusively, cached, or merged
within another domain."""

_ZERO_PAGES, _UNSHARED_PAGES = int(Count.ZERO_PAGES), int(Count.UNSHARED_PAGES)
_COPIES = int(Count.COPIES)
_PAGE_SIZE = int(Geometry.PAGE_SIZE)
_AHEAD = 24


@compiled
def survey(s, start, stop, eligible, rows, pages, row_of, generation):  # type: ignore[no-untyped-def]
    """List frames ``start .. stop - 1`` that may be merged, and their pages that may.

    :param eligible: (mappings,) bool
    :param rows: uint32, written: frames
    :param pages, row_of, generation: uint32, written: of each page its number, the place of its
        frame in ``rows``, its generation
    :return: frames, pages, and pages left out because their frame is pinned
    """
    n, m, pinned = 0, 0, 0
    for f in range(start, stop):
        guard = s.protection[f]
        if guard & USED == 0 or guard & (REPLICA | EXCLUSIVE | CACHED):
            continue
        first = m
        p = np.int64(s.first[f])
        for _ in range(s.aliases[f]):
            if eligible[mapping_of(s, p)] and s.flags[p] & HIDDEN == 0:
                pages[m], row_of[m], generation[m] = p, n, s.generation[p]
                m += 1
            p = np.int64(s.next[p])
        if m > first:
            if s.pins[f] != 0:
                pinned += m - first
                m = first
            else:
                rows[n] = f
                n += 1
    return n, m, pinned


@compiled
def aliases_between(s, start, stop):  # type: ignore[no-untyped-def]
    """Return how many aliases frames ``start .. stop - 1`` have."""
    total = np.int64(0)
    for f in range(start, stop):
        if s.protection[f] & (USED | REPLICA) == USED:
            total += np.int64(s.aliases[f])
    return total


@compiled
def stretches(s, rows, first_row, base):  # type: ignore[no-untyped-def]
    """Write where frames lie one after another in memory; return how many such stretches.

    :param first_row: (len(rows) + 1,) int64, written
    :param base: (len(rows),) uint64, written
    """
    n, expected = 0, np.uint64(0)
    for i in range(len(rows)):
        address = address_of(s, rows[i])
        if i == 0 or address != expected:
            first_row[n], base[n] = i, address
            n += 1
        expected = address + np.uint64(s.geometry[_PAGE_SIZE])
    first_row[n] = len(rows)
    return n


@compiled
def keys(s, pages, rows, row_of, by_domain, by_node, key):  # type: ignore[no-untyped-def]
    """Write what else pages must have in common: domain, node of the frame, or both."""
    nodes = len(s.room)
    for i in range(len(pages)):
        k = np.int64(0)
        if by_domain:
            k = np.int64(s.domain[mapping_of(s, pages[i])]) + 1
        if by_node:
            k = k * nodes + node_of(s, rows[row_of[i]])
        key[i] = k


@compiled
def select(row_of, representative, frames_of, zero_row, chosen):  # type: ignore[no-untyped-def]
    """Write which pages belong to contents of two frames or more, or are zero; return how many.

    :param frames_of: (rows,) uint32, all 0: scratch
    :param zero_row: representative of zero pages that need no frame, or -1
    """
    for r in representative:
        frames_of[r] += np.uint32(1)
    n = 0
    for i in range(len(row_of)):
        r = representative[row_of[i]]
        if frames_of[r] >= 2 or r == zero_row:
            chosen[n] = i
            n += 1
    return n


@compiled
def group(chosen, row_of, representative, place, order):  # type: ignore[no-untyped-def]
    """Sort pages by content, keeping their order within (a counting sort).

    :param chosen: (n,) int64, sorted by ``key``
    :param place: (rows + 1,) int64, all 0: scratch
    :param order: (n,) int64, written
    """
    for i in chosen:
        place[representative[row_of[i]] + 1] += 1
    for r in range(1, len(place)):
        place[r] += place[r - 1]
    for i in chosen:
        r = representative[row_of[i]]
        order[place[r]] = i
        place[r] += 1


@compiled
def groups(  # type: ignore[no-untyped-def]
    order, row_of, representative, key, zero_row, out, starts, is_zero, scope, per_domain
):  # fmt: skip
    """Split sorted pages where content or key change; leave out groups of a single frame.

    :param out: (n,) int64, written: ``order`` without those
    :param starts: (n + 1,) int64, written: where groups begin in ``out``, and the end
    :param is_zero: (n,) bool, written: pages of the group need no frame
    :param scope: (n,) uint32, written: 1 + domain, or 0
    :param per_domain: keys of one domain; 0: they do not tell the domain
    :return: how many groups, how many pages
    """
    g, n, a = 0, 0, 0
    while a < len(order):
        r, k = representative[row_of[order[a]]], key[order[a]]
        b, alone = a, True
        while b < len(order) and representative[row_of[order[b]]] == r and key[order[b]] == k:
            alone &= row_of[order[b]] == row_of[order[a]]
            b += 1
        if not alone or r == zero_row:
            starts[g], is_zero[g] = n, r == zero_row
            scope[g] = k // per_domain if per_domain else 0
            g += 1
            for i in range(a, b):
                out[n] = order[i]
                n += 1
        a = b
    starts[g] = n
    return g, n


@njit(nogil=True)
def _verdict(s, p, generation, f, anchor, last, scope, zero):  # type: ignore[no-untyped-def]
    if s.generation[p] != generation or s.frame[p] != f:
        return WRITTEN
    if s.pins[f] != 0:
        return PINNED
    guard = s.protection[f]
    if guard & (EXCLUSIVE | CACHED):
        return BUSY
    if guard & MERGED and scope != 0 and s.scope[s.token[f]] != scope:
        return BUSY
    if f != last and (zero or anchor != 0):
        size = np.uint64(s.geometry[_PAGE_SIZE])
        if memcmp(address_of(s, f), address_of(s, anchor), size) != 0:
            return UNEQUAL
    return ALREADY if guard & MERGED else READY


@compiled
def compare(  # type: ignore[no-untyped-def]
    s, first, stop, starts, is_zero, scope, pages, generation, frames, verdict, tally
):  # fmt: skip
    """Judge the pages of groups ``first .. stop - 1``.

    :param pages, generation, frames: (n,) uint32, as surveyed
    :param verdict: (n,) uint8, written
    :param tally: (6,) int64: pages of each verdict are added
    """
    for g in range(first, stop):
        anchor, last = np.int64(0), np.int64(-1)
        for i in range(starts[g], starts[g + 1]):
            f = np.int64(frames[i])
            found = _verdict(
                s, np.int64(pages[i]), generation[i], f, anchor, last, scope[g], is_zero[g]
            )
            if found in (READY, ALREADY):
                last = f
                if anchor == 0 and not is_zero[g]:
                    anchor = f
            verdict[i] = found
            tally[found] += 1


@njit(nogil=True)
def _ask(array, at):  # type: ignore[no-untyped-def]
    prefetch_l2(np.uint64(array.ctypes.data) + np.uint64(at) * np.uint64(array.itemsize))


@njit(nogil=True)
def _ask_ahead(s, i, pages, frames):  # type: ignore[no-untyped-def]
    """Ask for what moving a page needs, before it is needed."""
    if i < len(pages):
        p, f = pages[i], frames[i]
        _ask(s.frame, p)
        _ask(s.next, p)
        _ask(s.prev, p)
        _ask(s.flags, p)
        _ask(s.protection, f)
        _ask(s.aliases, f)
        _ask(s.first, f)
        _ask(s.pins, f)


@njit(nogil=True)
def _next_merged(s, i, stop, pages, verdict, cap):  # type: ignore[no-untyped-def]
    """Return the first page from ``i`` on whose merged frame has room, or ``stop``."""
    while i < stop:
        if verdict[i] == ALREADY and s.aliases[s.frame[pages[i]]] < cap:
            break
        i += 1
    return i


@njit(nogil=True)
def _content_of(s, start, stop, pages, verdict, scope):  # type: ignore[no-untyped-def]
    """Return the content of merged frames in a group, made one; 0 if there are none."""
    content = np.int64(0)
    for i in range(start, stop):
        if verdict[i] != ALREADY:
            continue
        f = s.frame[pages[i]]
        if content == 0:
            content = np.int64(s.token[f])
            s.scope[content] = scope
        elif s.token[f] != content:
            leave_content(s, f)
            join_content(s, f, content)
    return content


@njit(nogil=True)
def _merge_group(s, start, stop, pages, frames, verdict, cap, scope):  # type: ignore[no-untyped-def]
    """Move the pages of one group together; return how many moved.

    Merged frames with room are filled first. Then the first page's frame becomes the target of
    the others, until it has ``cap`` aliases, and so on. A target that nobody else joined, with one
    alias, stays as it was.
    """
    content = _content_of(s, start, stop, pages, verdict, scope)
    at = start if content != 0 else stop
    moved, target = 0, np.int64(0)
    for i in range(start, stop):
        _ask_ahead(s, i + _AHEAD, pages, frames)
        if verdict[i] != READY:
            continue
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        if f == target or s.protection[f] & MERGED:
            continue
        if target == 0 or s.aliases[target] >= cap:
            if target != 0 and s.protection[target] & MERGED == 0:
                content = merge_frame(s, target, content)
                s.scope[content] = scope
            at = _next_merged(s, at, stop, pages, verdict, cap)
            if at == stop:
                target = f
                continue
            target = np.int64(s.frame[pages[at]])
        if s.protection[target] & MERGED == 0:
            content = merge_frame(s, target, content)
            s.scope[content] = scope
        move(s, p, f, target)
        settle(s, f)
        moved += 1
    left = target != 0 and s.protection[target] & MERGED == 0
    if left and content != 0 and s.aliases[target] >= 2:
        merge_frame(s, target, content)
    return moved


@njit(nogil=True)
def _zero_group(s, start, stop, pages, frames, verdict):  # type: ignore[no-untyped-def]
    """Take the frames from pages that are zero; return how many."""
    moved = 0
    for i in range(start, stop):
        _ask_ahead(s, i + _AHEAD, pages, frames)
        if verdict[i] not in (READY, ALREADY):
            continue
        p = np.int64(pages[i])
        forget(s, p)
        s.flags[p] = (s.flags[p] & ~WRITABLE) | MERGED_ZERO
        s.counts[_ZERO_PAGES] += 1
        settle(s, leave(s, p))
        moved += 1
    return moved


@compiled
def apply(s, first, stop, starts, is_zero, scope, pages, frames, verdict, cap):  # type: ignore[no-untyped-def]
    """Move the pages of groups ``first .. stop - 1`` that may.

    There must be room for one content for each group.

    :return: how many pages merged, how many need no frame any more
    """
    merged, zeroed = 0, 0
    for g in range(first, stop):
        if is_zero[g]:
            zeroed += _zero_group(s, starts[g], starts[g + 1], pages, frames, verdict)
        else:
            merged += _merge_group(
                s, starts[g], starts[g + 1], pages, frames, verdict, cap, scope[g]
            )
    return merged, zeroed


@compiled
def mark_unshared(s, pages, generation, frames, eligible):  # type: ignore[no-untyped-def]
    """Mark pages that are left alone, one for each frame; return how many others there are.

    Those were written since the survey, or share by fork a frame that merging left alone.
    """
    volatile = 0
    for i in range(len(pages)):
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        if s.generation[p] != generation[i]:
            volatile += f != 0
            continue
        if f == 0 or s.protection[f] & MERGED:
            continue
        head = np.int64(s.first[f])
        first_here = i == 0 or frames[i] != frames[i - 1]
        if p == head or (first_here and not eligible[mapping_of(s, head)]):
            if s.flags[p] & UNSHARED == 0:
                s.flags[p] |= UNSHARED
                s.counts[_UNSHARED_PAGES] += 1
        else:
            volatile += 1
            forget(s, p)
    return volatile


@compiled
def unmerge_pages(s, pages, node, merged, source, target):  # type: ignore[no-untyped-def]
    """Give merged pages, and zero pages that merging made, a frame of their own again.

    :param node: pool of new frames, with room for n
    :param merged: (n,) bool, written: whether the page still is, for its frame is pinned
    :return: how many frames to copy, told in ``source`` and ``target``
    """
    copies = 0
    for i in range(len(pages)):
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        merged[i] = s.protection[f] & MERGED != 0 and s.pins[f] != 0
        if merged[i] or not (s.protection[f] & MERGED or s.flags[p] & MERGED_ZERO):
            continue
        forget(s, p)
        if f != 0 and own(s, p, f):
            continue
        g = take(s, node)
        source[copies], target[copies] = f, g
        copies += 1
        if f != 0:
            leave(s, p)
        join(s, p, g)
        s.flags[p] |= WRITABLE
        s.counts[_COPIES] += 1
    return copies
