"""Stage pages in the buffers that devices read, and deliver the results to their rows.

A device numbers its pages in the order of their rows; ``rows`` maps a number back to the row.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.intrinsics import load64, memcmp, memcpy
from gpudedup.compiled.jit import compiled
from gpudedup.engines.base import PageClass
from gpudedup.engines.reading import locate, read_rows
from gpudedup.engines.representatives import FOLLOWER

LEFT = FOLLOWER + 1
"""CONTENT with its anchor's digest that the device did not find equal: the host compares it."""

_READ_BYTES = 1 << 20
"""Bytes per system call at most, but at least a page."""


@njit(nogil=True)
def _is_zero(page, page_size):  # type: ignore[no-untyped-def]
    return load64(page) == 0 and (memcmp(page, page + np.uint64(8), np.uint64(page_size - 8)) == 0)


@njit(nogil=True)
def _run(row, stop, page_size, first_row, classes):  # type: ignore[no-untyped-def]
    """Return how many neighbouring rows from ``row`` on are to be read together."""
    stop = min(stop, first_row[locate(row, first_row) + 1], row + max(1, _READ_BYTES // page_size))
    end = row + 1
    while end < stop and classes[end] != PageClass.ALIAS:
        end += 1
    return end - row


@compiled
def stage_rows(  # type: ignore[no-untyped-def]
    start, stop, page_size, first_row, fd, base, classes, representative, drop_zeros, out, rows
):  # fmt: skip
    """Copy the pages of rows ``start .. stop - 1`` to ``out``, one after another.

    Return how many: ALIAS rows, unreadable rows and, with ``drop_zeros``, zero pages are left out;
    class and representative of the latter two are written.

    :param out: (stop - start, page_size) uint8, written
    :param rows: (stop - start,) int64, written: row of each page
    """
    size = np.uint64(page_size)
    free = np.uint64(out.ctypes.data)
    staged, row = 0, start
    while row < stop:
        if classes[row] == PageClass.ALIAS:
            row += 1
            continue
        count = _run(row, stop, page_size, first_row, classes)
        page, readable = read_rows(row, count, page_size, first_row, fd, base, free)
        for r in range(row, row + readable):
            if drop_zeros and _is_zero(page, page_size):
                classes[r], representative[r] = PageClass.ZERO, r
            else:
                if page != free:
                    memcpy(free, page, size)
                free += size
                rows[staged] = r
                staged += 1
            page += size
        for r in range(row + readable, row + count):
            classes[r], representative[r] = PageClass.UNREADABLE, r
        row += count
    return staged


@compiled
def deliver(  # type: ignore[no-untyped-def]
    first, rows, found_digests, found_classes, heads, digests, classes, representative
):  # fmt: skip
    """Write a device's results of a chunk to the rows of its pages.

    :param first: number of the chunk's first page
    :param rows: (first + c or more,) int64, row of each page number
    :param found_digests: (c, 2) uint64
    :param found_classes: (c,) uint8
    :param heads: (c,) uint64, number of the page that represents it
    :param digests: (n, 2) uint64, written; so are ``classes`` and ``representative``, (n,)
    """
    for i in range(len(found_classes)):
        row = rows[first + i]
        digests[row, 0], digests[row, 1] = found_digests[i, 0], found_digests[i, 1]
        classes[row] = found_classes[i]
        representative[row] = rows[np.int64(heads[i])]
