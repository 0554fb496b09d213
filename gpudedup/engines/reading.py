"""Read rows of a page source into memory, in any order."""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt
from numba import njit

from gpudedup.compiled.intrinsics import errno_location, load32, memcpy, pread
from gpudedup.compiled.jit import compiled
from gpudedup.engines.base import PageSource

_INTERRUPTED = errno.EINTR


@njit(nogil=True)
def locate(row, first_row):  # type: ignore[no-untyped-def]
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
def _read(fd, to, want, at):  # type: ignore[no-untyped-def]
    """Read a file from byte ``at`` on to an address; return the bytes read, at most ``want``.

    Fewer at the end of the file, or before a part that cannot be read. A signal may interrupt the
    call on some file systems; like Python, read again then.
    """
    got = 0
    while got < want:
        more = pread(fd, to + np.uint64(got), np.uint64(want - got), np.int64(at) + got)
        if more > 0:
            got += more
        elif more == 0 or load32(errno_location()) != _INTERRUPTED:
            break
    return got


@njit(nogil=True)
def read_rows(row, count, page_size, first_row, fd, base, buffer):  # type: ignore[no-untyped-def]
    """Return the address of ``count`` rows of one stretch and how many of them are readable.

    Rows of a file are read to the address ``buffer``; rows in memory stay in place.
    """
    stretch = locate(row, first_row)
    place = base[stretch] + np.uint64((row - first_row[stretch]) * page_size)
    if fd[stretch] < 0:
        return place, count
    got = _read(fd[stretch], buffer, count * page_size, place)
    return np.uint64(buffer), got // page_size


@compiled
def _gather(rows, page_size, first_row, fd, base, out):  # type: ignore[no-untyped-def]
    """Implement :func:`gather`; neighbouring rows are copied in one piece."""
    start, at = np.uint64(out.ctypes.data), 0
    while at < len(rows):
        row = rows[at]
        stretch = locate(row, first_row)
        end = at + 1
        while end < len(rows) and rows[end] == row + (end - at) < first_row[stretch + 1]:
            end += 1
        place = base[stretch] + np.uint64((row - first_row[stretch]) * page_size)
        to, want = start + np.uint64(at * page_size), (end - at) * page_size
        if fd[stretch] < 0:
            memcpy(to, place, np.uint64(want))
        else:
            got = _read(fd[stretch], to, want, place)
            if got < want:
                return at + got // page_size
        at = end
    return at


def gather(source: PageSource, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> int:
    """Copy rows to ``out``; return the number of rows before the first unreadable one.

    :param source: in files or host memory
    :param rows: (n,) int64, repeats allowed
    :param out: (n, page_size) uint8, C-contiguous, written
    """
    read: int = _gather(rows, source.page_size, source.first_row, source.fd, source.base, out)
    return read
