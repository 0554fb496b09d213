"""The compiled passes of the CPU engine: read, digest, look up and compare while in cache.

Work goes in batches of about 1 MiB: digest all pages, ask for their table slots, insert, then
compare the candidates with their anchors. So a page is compared while its bytes are still in the
cache, and only the anchor's bytes cross the memory bus a second time.

The table is open addressing with linear probing, shared by all threads. A slot is 64 bits:
24 bits of the digest's high half, 40 bits of row + 1; 0 is free. Slots are taken by
compare-and-swap and never given back, so two threads with equal contents meet at one slot.
The row in the slot is the content's *anchor*; which row becomes it depends on timing, and
:func:`settle` replaces it by the lowest row afterwards.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.engines.base import PageClass
from gpudedup.engines.intrinsics import (
    compare_and_swap,
    load64,
    load_acquire,
    memcmp,
    pread,
    prefetch,
)
from gpudedup.engines.xxh3 import digest_page

CONTENT, ZERO, FILLED = int(PageClass.CONTENT), int(PageClass.ZERO), int(PageClass.FILLED)
ALIAS, UNREADABLE = int(PageClass.ALIAS), int(PageClass.UNREADABLE)

ROW_BITS = 40
MAX_ROWS = (1 << ROW_BITS) - 2
_ROW_MASK = np.uint64((1 << ROW_BITS) - 1)
_SHIFT = np.uint64(ROW_BITS)
_FREE = np.uint64(0)


@njit(nogil=True)
def _locate(row, first_row):  # type: ignore[no-untyped-def]
    """Return the stretch that holds ``row``."""
    low, high = 0, len(first_row) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if first_row[middle] <= row:
            low = middle
        else:
            high = middle
    return low


@njit(nogil=True)
def _fetch(row, page_size, first_row, fd, base, buffer):  # type: ignore[no-untyped-def]
    """Return the address of a page, read into ``buffer`` if it lies in a file; 0 on error."""
    at = _locate(row, first_row)
    place = base[at] + np.uint64((row - first_row[at]) * page_size)
    if fd[at] < 0:
        return place
    if pread(fd[at], buffer, np.uint64(page_size), np.int64(place)) != page_size:
        return np.uint64(0)
    return np.uint64(buffer)


@njit(nogil=True)
def _probe(slot, row, digests, table):  # type: ignore[no-untyped-def]
    """Walk from ``slot`` to a row with the same digest, or take the first free slot.

    Return (anchor, slot); anchor is -1 if a slot was taken.
    """
    last = np.uint64(len(table) - 1)
    tag = digests[row, 1] >> _SHIFT
    entry = (tag << _SHIFT) | np.uint64(row + 1)
    start = np.uint64(table.ctypes.data)
    while True:
        at = start + slot * np.uint64(8)
        seen = load_acquire(at)
        if seen == _FREE:
            seen = compare_and_swap(at, _FREE, entry)
            if seen == _FREE:
                return -1, slot
        if seen >> _SHIFT == tag:
            anchor = np.int64(seen & _ROW_MASK) - 1
            if digests[anchor, 0] == digests[row, 0] and digests[anchor, 1] == digests[row, 1]:
                return anchor, slot
        slot = (slot + np.uint64(1)) & last


@njit(nogil=True, cache=True)
def partition_rows(  # type: ignore[no-untyped-def]
    start, stop, page_size, first_row, fd, base, buffer, digests, classes, representative, table,
    digest_mask, verify,
):  # fmt: skip
    """Classify rows ``start .. stop - 1``; return how many anchors collide with another.

    :param buffer: (b + 1, page_size) uint8, scratch: a batch of b pages and one anchor
    :param digests: (n, 2) uint64, written
    :param classes: (n,) uint8, written except where it is ALIAS
    :param representative: (n,) int64, written except for ALIAS: the anchor; for FILLED the word
    :param table: power-of-two number of uint64 slots, more than the rows, 0 at first
    :param digest_mask: (2,) uint64, bits of the digest to keep
    """
    last = np.uint64(len(table) - 1)
    slots_at = np.uint64(table.ctypes.data)
    batch = len(buffer) - 1
    buffer_at = np.uint64(buffer.ctypes.data)
    anchor_at = buffer_at + np.uint64(batch * page_size)
    acc = np.empty(8, np.uint64)
    candidate = np.empty(batch, np.int64)
    anchors = np.empty(batch, np.int64)
    slots = np.empty(batch, np.uint64)
    collisions = 0
    row = start
    while row < stop:
        stretch = _locate(row, first_row)
        count = min(batch, stop - row, first_row[stretch + 1] - row)
        data = base[stretch] + np.uint64((row - first_row[stretch]) * page_size)
        readable = count
        if fd[stretch] >= 0:
            offset, want, got = np.int64(data), count * page_size, 0
            while got < want:
                more = pread(
                    fd[stretch], buffer_at + np.uint64(got), np.uint64(want - got), offset + got
                )
                if more <= 0:
                    break
                got += more
            readable, data = got // page_size, buffer_at

        for i in range(count):
            r = row + i
            if classes[r] == ALIAS:
                continue
            representative[r] = r
            if i >= readable:
                classes[r] = UNREADABLE
                continue
            page = data + np.uint64(i * page_size)
            word = load64(page)
            kind = CONTENT
            if word == load64(page + np.uint64(8)) and (
                memcmp(page, page + np.uint64(8), np.uint64(page_size - 8)) == 0
            ):
                kind = ZERO if word == 0 else FILLED
                if kind == FILLED:
                    representative[r] = np.int64(word)
            classes[r] = kind
            low, high = digest_page(page, page_size, acc)
            digests[r, 0] = low & digest_mask[0]
            digests[r, 1] = high & digest_mask[1]
            if kind == CONTENT:
                prefetch(slots_at + (digests[r, 0] & last) * np.uint64(8))

        found = 0
        for i in range(readable):
            r = row + i
            if classes[r] != CONTENT:
                continue
            anchor, slot = _probe(digests[r, 0] & last, r, digests, table)
            if anchor < 0:
                continue
            representative[r] = anchor
            candidate[found], anchors[found], slots[found] = i, anchor, slot
            found += 1

        if verify:
            for j in range(found):
                r = row + candidate[j]
                page = data + np.uint64(candidate[j] * page_size)
                anchor, slot = anchors[j], slots[j]
                while True:
                    other = _fetch(anchor, page_size, first_row, fd, base, anchor_at)
                    if other == 0:
                        classes[r], representative[r] = UNREADABLE, r
                        break
                    if memcmp(page, other, np.uint64(page_size)) == 0:
                        representative[r] = anchor
                        break
                    anchor, slot = _probe((slot + np.uint64(1)) & last, r, digests, table)
                    if anchor < 0:
                        representative[r] = r
                        collisions += 1
                        break
        row += count
    return collisions


@njit(nogil=True, cache=True)
def settle(classes, representative):  # type: ignore[no-untyped-def]
    """Replace every anchor by the lowest row of its content, in place.

    ZERO rows get the lowest ZERO row, ALIAS rows the representative of their frame's first row.
    FILLED rows must hold their final representative already.
    """
    for row in range(len(representative)):
        anchor = representative[row]
        if classes[row] == CONTENT and anchor > row and representative[anchor] == anchor:
            representative[anchor] = row
    zero = -1
    for row in range(len(representative)):
        kind = classes[row]
        if kind == ZERO:
            if zero < 0:
                zero = row
            representative[row] = zero
        elif kind in (CONTENT, ALIAS):
            representative[row] = representative[representative[row]]
