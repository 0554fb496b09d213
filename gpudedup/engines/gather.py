"""Rows from wherever they lie, in any order, into memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.intrinsics import memcpy, pread
from gpudedup.compiled.jit import compiled
from gpudedup.engines.base import PageStore
from gpudedup.engines.partition import locate


@compiled
def _gather(rows, page_size, first_row, fd, base, out):  # type: ignore[no-untyped-def]
    """Copy rows to ``out``, in one piece what lies in one; return how many before one failed.

    :param rows: (n,) int64
    :param out: (n, page_size) uint8, written
    """
    start, at = np.uint64(out.ctypes.data), 0
    while at < len(rows):
        row = rows[at]
        stretch = locate(row, first_row)
        end = at + 1
        while end < len(rows) and rows[end] == row + (end - at) < first_row[stretch + 1]:
            end += 1
        place = base[stretch] + np.uint64((row - first_row[stretch]) * page_size)
        to, want, got = start + np.uint64(at * page_size), (end - at) * page_size, 0
        if fd[stretch] < 0:
            memcpy(to, place, np.uint64(want))
            got = want
        while got < want:
            more = pread(
                fd[stretch], to + np.uint64(got), np.uint64(want - got), np.int64(place) + got
            )
            if more <= 0:
                return at + got // page_size
            got += more
        at = end
    return at


def gather(store: PageStore, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> int:
    """Copy rows, which may be repeated; return how many before one that cannot be read.

    :param store: not in a device's memory
    :param rows: (n,) int64
    :param out: (n, page_size) uint8, C-contiguous, written
    """
    read: int = _gather(rows, store.page_size, store.first_row, store.fd, store.base, out)
    return read
