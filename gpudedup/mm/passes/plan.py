"""The compiled passes before and after those of a merge: survey, plan, mark unique pages."""

from __future__ import annotations

import numpy as np

from gpudedup.compiled.jit import compiled
from gpudedup.mm.state.arrays import Count, Frame, Geometry, Page
from gpudedup.mm.state.steps import address_of, forget, mapping_of, node_of


@compiled
def survey(  # type: ignore[no-untyped-def]
    s, start, stop, eligible, rows, pages, row_of, generation, left_out
):  # fmt: skip
    """List those of frames ``start .. stop - 1`` that may be merged, and their eligible pages.

    :param eligible: (mappings,) bool
    :param rows: uint32, written: frames
    :param pages, row_of, generation: uint32, written: number of each page, its frame's position in
        ``rows``, its generation
    :param left_out: (2,) int64: pages whose frames are pinned, or lie on a device, are added
    :return: frames, pages
    """
    n, m = 0, 0
    for f in range(start, stop):
        protection = s.protection[f]
        if protection & Frame.USED == 0 or protection & (
            Frame.REPLICA | Frame.EXCLUSIVE | Frame.CACHED
        ):
            continue
        first = m
        p = np.int64(s.first[f])
        for _ in range(s.aliases[f]):
            if eligible[mapping_of(s, p)] and s.flags[p] & Page.HIDDEN == 0:
                pages[m], row_of[m], generation[m] = p, n, s.generation[p]
                m += 1
            p = np.int64(s.next[p])
        if m > first:
            far = node_of(s, f) >= s.geometry[Geometry.NODES]
            if far or s.pins[f] != 0:
                left_out[1 if far else 0] += m - first
                m = first
            else:
                rows[n] = f
                n += 1
    return n, m


@compiled
def aliases_between(s, start, stop):  # type: ignore[no-untyped-def]
    """Return how many aliases frames ``start .. stop - 1`` have."""
    total = np.int64(0)
    for f in range(start, stop):
        if s.protection[f] & (Frame.USED | Frame.REPLICA) == Frame.USED:
            total += np.int64(s.aliases[f])
    return total


@compiled
def stretches(s, rows, first_row, base):  # type: ignore[no-untyped-def]
    """Write the stretches of frames that are contiguous in memory; return how many.

    :param first_row: (len(rows) + 1,) int64, written
    :param base: (len(rows),) uint64, written
    """
    n, expected = 0, np.uint64(0)
    for i in range(len(rows)):
        address = address_of(s, rows[i])
        if i == 0 or address != expected:
            first_row[n], base[n] = i, address
            n += 1
        expected = address + np.uint64(s.geometry[Geometry.PAGE_SIZE])
    first_row[n] = len(rows)
    return n


@compiled
def keys(s, pages, rows, row_of, by_domain, by_node, key):  # type: ignore[no-untyped-def]
    """Write each page's key, which must be equal to merge: domain, node of the frame, or both."""
    nodes = s.geometry[Geometry.NODES]
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
    """Sort pages by content, stably (a counting sort).

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

    :param out: (n,) int64, written: ``order`` without the pages left out
    :param starts: (n + 1,) int64, written: where groups begin in ``out``, and the end
    :param is_zero: (n,) bool, written: pages of the group need no frame
    :param scope: (n,) uint32, written: 1 + domain, or 0
    :param per_domain: keys per domain; 0: keys are not by domain
    :return: groups, pages
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


@compiled
def dirty_beside(s, pages, found):  # type: ignore[no-untyped-def]
    """Write the dirty aliases of the frames of pages, as many as fit; return how many there are.

    :param pages: (n,) uint32, those of one frame next to one another
    """
    n, last = 0, np.int64(0)
    for p in pages:
        f = np.int64(s.frame[p])
        if f == last:
            continue
        last = f
        q = np.int64(p)
        for _ in range(s.aliases[f]):
            if s.flags[q] & Page.DIRTY:
                if n < len(found):
                    found[n] = q
                n += 1
            q = np.int64(s.next[q])
    return n


@compiled
def mark_unshared(s, pages, generation, frames, eligible):  # type: ignore[no-untyped-def]
    """Mark unmerged pages UNSHARED, one for each frame; return how many pages are volatile.

    Volatile pages were written since the survey, or share by fork a frame left unmerged.
    """
    volatile = 0
    for i in range(len(pages)):
        p = np.int64(pages[i])
        f = np.int64(s.frame[p])
        if not eligible[mapping_of(s, p)]:
            # Its mapping was dropped; the page may be another's by now.
            continue
        if s.generation[p] != generation[i]:
            volatile += f != 0
            continue
        if f == 0 or s.protection[f] & Frame.MERGED:
            continue
        head = np.int64(s.first[f])
        first_here = i == 0 or frames[i] != frames[i - 1]
        if p == head or (first_here and not eligible[mapping_of(s, head)]):
            if s.flags[p] & Page.UNSHARED == 0:
                s.flags[p] |= Page.UNSHARED
                s.counts[Count.UNSHARED_PAGES] += 1
        else:
            volatile += 1
            forget(s, p)
    return volatile
