"""The compiled passes of a merge: compare, apply; and those that undo it.

The survey lists pages with their frame and generation. Without the lock, frames are digested, and
the pages of equal digests become *groups*. Then, under the lock, each page of a group is checked as
in the kernel: not written since (its generation), not moved (its frame), not pinned, equal to the
group's first page byte by byte. Pages that pass are write-protected and moved.

Steps of a group are inlined: numba counts references to each array that is passed.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.intrinsics import memcmp
from gpudedup.compiled.jit import compiled
from gpudedup.mm.passes.access import break_cow
from gpudedup.mm.state.arrays import Count, Frame, Geometry, Page
from gpudedup.mm.state.prefetch import ask_frame, ask_page
from gpudedup.mm.state.steps import (
    address_of,
    forget,
    free_if_unused,
    join_content,
    leave,
    leave_content,
    mapping_of,
    merge_frame,
    move,
    own,
    sharers,
)

READY, ALREADY, WRITTEN, PINNED, UNEQUAL, BUSY = range(6)
"""Verdicts on a page of a group: may move; is in a merged frame; was written or moved since the
survey; is pinned; differs in bytes; is exclusive, cached, or merged within another domain."""

_AHEAD = 24


@njit(nogil=True)
def _verdict(s, p, generation, f, anchor, last, scope, zero):  # type: ignore[no-untyped-def]
    if s.generation[p] != generation or s.frame[p] != f:
        return WRITTEN
    if s.pins[f] != 0:
        return PINNED
    protection = s.protection[f]
    if protection & (Frame.EXCLUSIVE | Frame.CACHED):
        return BUSY
    if protection & Frame.MERGED and scope != 0 and s.scope[s.token[f]] != scope:
        return BUSY
    if f != last and (zero or anchor != 0):
        size = np.uint64(s.geometry[Geometry.PAGE_SIZE])
        if memcmp(address_of(s, f), address_of(s, anchor), size) != 0:
            return UNEQUAL
    return ALREADY if protection & Frame.MERGED else READY


@compiled
def compare(  # type: ignore[no-untyped-def]
    s, first, stop, starts, is_zero, scope, pages, generation, frames, verdict, tally
):  # fmt: skip
    """Judge the pages of groups ``first .. stop - 1``.

    :param pages, generation, frames: (n,) uint32, as surveyed
    :param verdict: (n,) uint8, written
    :param tally: int64: pages of each verdict are added
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
def _ask_ahead(s, i, pages, frames):  # type: ignore[no-untyped-def]
    """Prefetch the records that moving row ``i`` needs."""
    if i < len(pages):
        ask_page(s, pages[i])
        ask_frame(s, frames[i])


@njit(nogil=True, inline="always")
def _next_merged(s, i, stop, pages, verdict, cap):  # type: ignore[no-untyped-def]
    """Return the first row from ``i`` on whose merged frame has room, or ``stop``."""
    while i < stop:
        if verdict[i] == ALREADY and sharers(s, s.frame[pages[i]]) < cap:
            break
        i += 1
    return i


@njit(nogil=True, inline="always")
def _content_of(s, start, stop, pages, verdict, scope):  # type: ignore[no-untyped-def]
    """Unite the contents of a group's merged frames; return the content, 0 if there is none."""
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
def _in_one_domain(s, p, scope):  # type: ignore[no-untyped-def]
    """Return whether all aliases of a page's frame are pages of one domain, ``scope - 1``."""
    q = p
    while s.domain[mapping_of(s, q)] + np.int64(1) == scope:
        q = np.int64(s.next[q])
        if q == p:
            return True
    return False


@njit(nogil=True, inline="always")
def _merge_group(s, start, stop, pages, frames, verdict, cap, scope):  # type: ignore[no-untyped-def]
    """Move the pages of one group together; return how many moved.

    Merged frames with room are filled first. Then the next page's frame becomes the target of
    those after it, up to ``cap`` aliases. A last target that no page joined stays as it was, unless
    it has several aliases and the content has merged frames.

    With ``scope``, pages of frames that other domains share come last, and may leave these frames;
    no page joins them.
    """
    content = _content_of(s, start, stop, pages, verdict, scope)
    at = start if content != 0 else stop
    moved, target = 0, np.int64(0)
    last, mixed = np.int64(0), False
    for mixed_turn in range(2 if scope != 0 else 1):
        for i in range(start, stop):
            _ask_ahead(s, i + _AHEAD, pages, frames)
            if verdict[i] != READY:
                continue
            p = np.int64(pages[i])
            f = np.int64(s.frame[p])
            if f == target or s.protection[f] & Frame.MERGED:
                continue
            if scope != 0 and f != last:
                # Pages of one frame follow one another: its aliases are walked once a turn.
                last, mixed = f, not _in_one_domain(s, p, scope)
            if mixed != (mixed_turn == 1):
                continue
            if target == 0 or sharers(s, target) >= cap:
                following = _next_merged(s, at, stop, pages, verdict, cap)
                if following == stop and mixed:
                    break
                if target != 0 and s.protection[target] & Frame.MERGED == 0:
                    content = merge_frame(s, target, content)
                    s.scope[content] = scope
                at = following
                if at == stop:
                    target = f
                    continue
                target = np.int64(s.frame[pages[at]])
            if s.protection[target] & Frame.MERGED == 0:
                content = merge_frame(s, target, content)
                s.scope[content] = scope
            move(s, p, f, target)
            free_if_unused(s, f)
            moved += 1
    left = target != 0 and s.protection[target] & Frame.MERGED == 0
    if left and content != 0 and sharers(s, target) >= 2:
        merge_frame(s, target, content)
    return moved


@njit(nogil=True, inline="always")
def _zero_group(s, start, stop, pages, frames, verdict):  # type: ignore[no-untyped-def]
    """Give zero pages frame 0; return how many."""
    moved = 0
    for i in range(start, stop):
        _ask_ahead(s, i + _AHEAD, pages, frames)
        if verdict[i] not in (READY, ALREADY):
            continue
        p = np.int64(pages[i])
        forget(s, p)
        s.flags[p] = (s.flags[p] & ~Page.WRITABLE) | Page.MERGED_ZERO
        s.counts[Count.ZERO_PAGES] += 1
        free_if_unused(s, leave(s, p))
        moved += 1
    return moved


@compiled
def apply(s, first, stop, starts, is_zero, scope, pages, frames, verdict, cap):  # type: ignore[no-untyped-def]
    """Merge groups ``first .. stop - 1`` by their verdicts; there is room for a content of each.

    :return: pages merged, pages that need no frame any more
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
def unmerge_pages(s, pages, node, merged, source, target):  # type: ignore[no-untyped-def]
    """Give merged pages, zero ones included, frames of their own; return how many to copy.

    :param node: pool of new frames, with room for n
    :param merged: (n,) bool, written: True where a pin keeps the page merged
    """
    copies = 0
    for i in range(len(pages)):
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        merged[i] = s.protection[f] & Frame.MERGED != 0 and s.pins[f] != 0
        if merged[i] or not (s.protection[f] & Frame.MERGED or s.flags[p] & Page.MERGED_ZERO):
            continue
        forget(s, p)
        if f != 0 and own(s, p, f):
            continue
        source[copies], target[copies] = f, break_cow(s, p, f, node)
        copies += 1
    s.counts[Count.COPIES] = copies
    return copies
