"""Compiled passes of the CPU engine: read, digest, look up and compare while in cache.

Per batch: digest all pages, insert them into the table, compare the candidates with their anchors.
So a page is compared while its bytes are still in the cache, and only the anchor's bytes cross the
memory bus a second time; they are prefetched one page ahead.

All threads share one table, of open addressing with linear probing. A slot is 64 bits: row + 1 in
the low :data:`ROW_BITS`, above it a tag of the digest's high half; 0 is free. Slots are taken by
compare-and-swap and never freed, so threads with equal contents meet at one slot. The row in the
slot is the *anchor* of the content; which row that is depends on timing. The other rows are its
*followers*: a follower records its anchor, and the anchor records the lowest row of the content,
which :mod:`gpudedup.engines.representatives` gives to all of them afterwards.
"""

from __future__ import annotations

from mmap import MADV_DONTNEED, PAGESIZE
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from gpudedup.compiled.intrinsics import (
    compare_and_swap,
    differ256,
    load64,
    load_acquire,
    madvise,
    memcmp,
    multiply_high,
    prefetch,
    prefetch_l2,
)
from gpudedup.compiled.jit import compiled
from gpudedup.compiled.splitmix import GAMMA
from gpudedup.compiled.xxh3 import digest_page
from gpudedup.engines.base import PageClass
from gpudedup.engines.cpu.mapped import MADV_POPULATE_READ
from gpudedup.engines.reading import locate, read_rows
from gpudedup.engines.representatives import FOLLOWER

ROW_BITS = 40
MAX_ROWS = (1 << ROW_BITS) - 2
_ROW_MASK = np.uint64((1 << ROW_BITS) - 1)
_SHIFT = np.uint64(ROW_BITS)
_FREE = np.uint64(0)

WINDOW_BYTES = 4 << 20
"""Bytes of a file that a worker maps at a time: they count as resident memory (RSS)."""

_AHEAD = 16
"""Rows ahead whose table slot is prefetched. Prefetching a batch's slots while its pages stream
through the cache cost twice as much."""


class Place(NamedTuple):
    """Arrays of a PageSource; ``mapped``: (k,) uint64, addresses of stretches, 0 if not mapped."""

    page_size: int
    first_row: npt.NDArray[np.int64]
    fd: npt.NDArray[np.int32]
    base: npt.NDArray[np.uint64]
    mapped: npt.NDArray[np.uint64]


class Found(NamedTuple):
    """Results, written except for ALIAS rows.

    :param digests: (n, 2) uint64
    :param classes: (n,) uint8
    :param representative: (n,) int64: for a follower its anchor, for an anchor the lowest row of
        its content, for FILLED the word
    """

    digests: npt.NDArray[np.uint64]
    classes: npt.NDArray[np.uint8]
    representative: npt.NDArray[np.int64]


class _Candidates(NamedTuple):
    """Rows of a batch that met an anchor, their anchors, and the anchors' slots; (batch,) each."""

    row: npt.NDArray[np.int64]
    anchor: npt.NDArray[np.int64]
    slot: npt.NDArray[np.uint64]


@njit(nogil=True)
def _digest(row, count, data, page_size, found, digest_mask, acc, zero_row):  # type: ignore[no-untyped-def]
    """Classify and digest ``count`` rows at ``data``; take and return a digested ZERO row or -1."""
    digests, classes, representative = found
    for i in range(count):
        r = row + i
        if classes[r] == PageClass.ALIAS:
            continue
        representative[r] = r
        page = data + np.uint64(i * page_size)
        word = load64(page)
        kind = PageClass.CONTENT
        if word == load64(page + np.uint64(8)) and (
            memcmp(page, page + np.uint64(8), np.uint64(page_size - 8)) == 0
        ):
            kind = PageClass.ZERO if word == 0 else PageClass.FILLED
            if kind == PageClass.FILLED:
                representative[r] = np.int64(word)
        classes[r] = kind
        if kind == PageClass.ZERO and zero_row >= 0:
            digests[r, 0], digests[r, 1] = digests[zero_row, 0], digests[zero_row, 1]
            continue
        low, high = digest_page(page, page_size, acc)
        digests[r, 0] = low & digest_mask[0]
        digests[r, 1] = high & digest_mask[1]
        if kind == PageClass.ZERO:
            zero_row = r
    return zero_row


@njit(nogil=True)
def _home(low, table):  # type: ignore[no-untyped-def]
    """Return the slot where probing for a digest starts, from its low half."""
    return multiply_high(low * np.uint64(GAMMA), np.uint64(len(table)))


@njit(nogil=True)
def _probe(slot, row, digests, table, by_tag):  # type: ignore[no-untyped-def]
    """Walk from ``slot`` to a row with the same digest, or take the first free slot.

    :param by_tag: an equal tag suffices: bytes are compared later anyway, and reading the anchor's
        digest is one more cache miss
    :return: (anchor, slot); anchor is -1 if a slot was taken
    """
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
            if by_tag or _same_digest(anchor, row, digests):
                return anchor, slot
        slot = _next(slot, table)


@njit(nogil=True)
def _next(slot, table):  # type: ignore[no-untyped-def]
    slot += np.uint64(1)
    return slot if slot < np.uint64(len(table)) else np.uint64(0)


@njit(nogil=True)
def _same_digest(a, b, digests):  # type: ignore[no-untyped-def]
    return digests[a, 0] == digests[b, 0] and digests[a, 1] == digests[b, 1]


@njit(nogil=True)
def _follow(row, anchor, classes, representative):  # type: ignore[no-untyped-def]
    """Make ``row`` a follower of ``anchor``."""
    classes[row], representative[row] = FOLLOWER, anchor
    at = np.uint64(representative.ctypes.data) + np.uint64(8 * anchor)
    new, lowest = np.uint64(row), load_acquire(at)
    while new < lowest:
        before = compare_and_swap(at, lowest, new)
        if before == lowest:
            break
        lowest = before


@njit(nogil=True)
def _look_up(row, count, found, table, verify, candidates):  # type: ignore[no-untyped-def]
    """Insert ``count`` rows; write those that met an anchor to ``candidates``, return how many.

    Without ``verify`` they follow their anchor at once, and 0 is returned.
    """
    digests, classes, representative = found
    table_at = np.uint64(table.ctypes.data)
    met = 0
    for r in range(row - _AHEAD, row + count):
        if r + _AHEAD < row + count:
            prefetch(table_at + _home(digests[r + _AHEAD, 0], table) * np.uint64(8))
        if r < row or classes[r] != PageClass.CONTENT:
            continue
        anchor, slot = _probe(_home(digests[r, 0], table), r, digests, table, verify)
        if anchor >= 0 and verify:
            candidates.row[met], candidates.anchor[met], candidates.slot[met] = r, anchor, slot
            met += 1
        elif anchor >= 0:
            _follow(r, anchor, classes, representative)
    return met


@njit(nogil=True)
def _equal(a, b, page_size, ahead):  # type: ignore[no-untyped-def]
    """Return whether two pages are equal, and prefetch a third into L2; all are addresses."""
    for at in range(0, page_size, 256):
        for line in range(at, at + 256, 64):
            prefetch_l2(ahead + np.uint64(line))
        if differ256(a + np.uint64(at), b + np.uint64(at)):
            return False
    return True


@njit(nogil=True)
def _run(j, met, anchor, anchors, first_row, fd):  # type: ignore[no-untyped-def]
    """Return how many anchors of candidates from ``j`` on are neighbours in a file, at least 1.

    Equal pages come in runs, and one system call costs as much as the copy of several pages.
    """
    stretch = locate(anchor, first_row)
    length = 1
    while (
        fd[stretch] >= 0
        and j + length < met
        and anchors[j + length] == anchor + length
        and anchor + length < first_row[stretch + 1]
    ):
        length += 1
    return length


@njit(nogil=True)
def _compare(row, met, data, place, spare, found, table, candidates):  # type: ignore[no-untyped-def]
    """Compare candidates with their anchors, byte by byte; return the number of collisions.

    A candidate that differs from its anchor probes on, to the next anchor or to a free slot.

    :param row: row whose bytes lie at ``data``
    :param spare: address of scratch for a batch of anchors read from a file, mapped or not: anchors
        lie anywhere in it, and touching one by its mapping would add a folio to the RSS
    """
    page_size, first_row, fd, base, _ = place
    digests, classes, representative = found
    anchors = candidates.anchor
    # Typed: numba would compile a callee once for a literal and once for a variable.
    one = np.int64(1)
    collisions = 0
    held = end = np.int64(-1)
    for j in range(met):
        r, anchor, slot = candidates.row[j], anchors[j], candidates.slot[j]
        page = data + np.uint64((r - row) * page_size)
        ahead = page
        if j + 1 < met and fd[locate(anchors[j + 1], first_row)] < 0:
            ahead, _ = read_rows(anchors[j + 1], one, page_size, first_row, fd, base, spare)
        collided = False
        while anchor >= 0:
            if held <= anchor < end:
                other, readable = spare + np.uint64((anchor - held) * page_size), one
            else:
                run = _run(j, met, anchor, anchors, first_row, fd)
                other, readable = read_rows(anchor, run, page_size, first_row, fd, base, spare)
                if other == spare:
                    held, end = anchor, anchor + readable
            if not readable:
                classes[r] = PageClass.UNREADABLE
                break
            if _equal(page, other, page_size, ahead):
                _follow(r, anchor, classes, representative)
                break
            collided |= _same_digest(anchor, r, digests)
            anchor, slot = _probe(_next(slot, table), r, digests, table, True)
        else:
            collisions += collided
    return collisions


@njit(nogil=True)
def _advise(address, size, advice):  # type: ignore[no-untyped-def]
    """Call madvise on ``size`` bytes of memory; return whether it succeeded."""
    first = address & ~np.uint64(PAGESIZE - 1)
    return madvise(first, address + np.uint64(size) - first, np.int32(advice)) == 0


@njit(nogil=True)
def _open_window(row, stop, page_size, first_row, mapped):  # type: ignore[no-untyped-def]
    """Return the row where the next window ends, and the window's address; 0: not mapped.

    The window is populated first: that may fail, where touching the page would raise SIGBUS.
    """
    stretch = locate(row, first_row)
    stop = min(stop, first_row[stretch + 1])
    if not mapped[stretch]:
        return stop, mapped[stretch]
    stop = min(stop, row + max(1, WINDOW_BYTES // page_size))
    window = mapped[stretch] + np.uint64((row - first_row[stretch]) * page_size)
    if _advise(window, (stop - row) * page_size, MADV_POPULATE_READ):
        return stop, window
    return stop, np.uint64(0)


@compiled
def partition_rows(start, stop, place, buffer, found, table, digest_mask, verify):  # type: ignore[no-untyped-def]
    """Partition rows ``start .. stop - 1``; return collisions, and the lowest ZERO row or -1.

    :param place: :class:`Place`
    :param buffer: (2 * b, page_size) uint8, scratch: a batch of b pages, and of b anchors
    :param found: :class:`Found`, written
    :param table: uint64 slots, more than the rows of all parts, 0 at first
    :param digest_mask: (2,) uint64, bits of the digest to keep
    """
    page_size, first_row, fd, base, mapped = place
    _, classes, representative = found
    batch = len(buffer) // 2
    buffer_at = np.uint64(buffer.ctypes.data)
    spare = buffer_at + np.uint64(batch * page_size)
    acc = np.empty(8, np.uint64)
    candidates = _Candidates(
        np.empty(batch, np.int64), np.empty(batch, np.int64), np.empty(batch, np.uint64)
    )
    collisions, zero_row, row = 0, np.int64(-1), start
    while row < stop:
        end, window = _open_window(row, stop, page_size, first_row, mapped)
        first = row
        while row < end:
            count = min(batch, end - row)
            if window:
                data, readable = window + np.uint64((row - first) * page_size), count
            else:
                data, readable = read_rows(row, count, page_size, first_row, fd, base, buffer_at)
            zero_row = _digest(row, readable, data, page_size, found, digest_mask, acc, zero_row)
            for r in range(row + readable, row + count):
                if classes[r] != PageClass.ALIAS:
                    classes[r], representative[r] = PageClass.UNREADABLE, r
            met = _look_up(row, readable, found, table, verify, candidates)
            if verify:
                collisions += _compare(row, met, data, place, spare, found, table, candidates)
            row += count
        if window:
            _advise(window, (end - first) * page_size, MADV_DONTNEED)
    return collisions, zero_row
