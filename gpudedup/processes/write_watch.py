"""Watch which pages a process writes, by soft-dirty bits or write protection.

``soft-dirty``: the kernel marks pages that are written; ``/proc/PID/clear_refs`` unmarks all.
Writes between scan and unmarking are lost. Needs CONFIG_MEM_SOFT_DIRTY.

``write-protect``: pages are write-protected, and the kernel lifts the protection on the first write
without a handler (UFFD_FEATURE_WP_ASYNC). One call, PAGEMAP_SCAN, returns the written pages and
protects them again, so that no write is lost. Since Linux 6.7. The process itself must open the
userfaultfd (:mod:`gpudedup.processes.userfaultfd`).

Both report private memory only: in shared pages, writes of other processes look the same.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError, UnsupportedHereError, UsageError
from gpudedup.processes.pagemap import Pagemap, runs
from gpudedup.processes.procfs import Vma
from gpudedup.processes.userfaultfd import borrowed_userfaultfd

METHODS = ("auto", "soft-dirty", "write-protect")

Ranges = npt.NDArray[np.int64]
"""(n, 2) int64: first page and number of pages, ascending."""

_SOFT_DIRTY = np.uint64(1 << 55)
_FILE_OR_SHARED = np.uint64(1 << 61)
_PRESENT_OR_SWAPPED = np.uint64(3 << 62)
_WINDOW = 1 << 16
"""Entries of ``pagemap`` read at a time."""

_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_UFFD_API, _WP_ASYNC, _MODE_WP = 0xAA, 1 << 15, 2

_USERFAULTFD_FLAGS = frozenset({"um", "uw", "ui"})
"""VmFlags of a mapping that a userfaultfd watches: for missing pages, writes, minor faults."""

_PAGEMAP_SCAN = 0xC0606610
_PM_SCAN_WP_MATCHING = 1
_IS_WPALLOWED, _IS_WRITTEN, _IS_FILE, _IS_PFNZERO = 1, 2, 4, 32
_REGIONS = 4096
"""Ranges that one scan returns at most."""


class Watch(Protocol):
    """A watch on the writes of one process."""

    how: str

    def can_watch(self, vma: Vma) -> bool:
        """Return False for a mapping that somebody else watches already."""

    def begin(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Watch pages ``first .. stop - 1`` of each range; earlier writes do not count.

        :return: number of pages that are watched from now on
        """

    def written(self) -> Ranges:
        """Return the pages that were written since the last call.

        :raises ProcessLookupError: if the process has ended
        :raises ImageError: if the kernel does not say
        """

    def close(self) -> None:
        """Stop watching."""


def watch(pid: int, how: str = "auto") -> Watch:
    """Return a watch on another process.

    :param how: one of :data:`METHODS`; ``auto``: write protection, else soft-dirty bits
    :raises UnsupportedHereError: if the method does not work here
    :raises ImageError: if the process is gone or may not be watched
    :raises UsageError: if the method is unknown, or ``pid`` is this process
    """
    if how not in METHODS:
        raise UsageError(f"method {how!r}: not one of {', '.join(METHODS)}")
    if pid == os.getpid():
        raise UsageError(f"pid {pid}: a process cannot watch itself")
    reasons = []
    if how != "soft-dirty":
        try:
            return WriteProtect(pid)
        except UnsupportedHereError as error:
            reasons.append(f"write-protect: {error}")
    if how != "write-protect":
        try:
            return SoftDirty(pid)
        except UnsupportedHereError as error:
            reasons.append(f"soft-dirty: {error}")
    raise UnsupportedHereError(f"pid {pid}: its writes cannot be watched: {'; '.join(reasons)}")


class SoftDirty:
    """Implement :class:`Watch` by soft-dirty bits.

    :raises UnsupportedHereError: if this kernel has no such bits
    :raises ImageError: if the process is gone, or its bits may not be cleared
    """

    how = "soft-dirty"

    def __init__(self, pid: int) -> None:
        if not keeps_soft_dirty():
            raise UnsupportedHereError("this kernel does not keep these bits")
        self._ranges: Sequence[tuple[int, int]] = ()
        try:
            self._pagemap = Pagemap(pid, mmap.PAGESIZE)
            self._clear = os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(f"pid {pid}", f"{error.filename}: {error.strerror}") from None
        try:
            # Whoever else clears the bits takes our writes: one recorder at a time.
            fcntl.flock(self._clear, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise UnsupportedHereError("another recorder clears the bits of this process") from None

    def can_watch(self, vma: Vma) -> bool:
        """Return True: what clears these bits is known when the watch is made."""
        return True

    def begin(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Watch pages; clear the bits of all pages of the process."""
        self._ranges = ranges
        os.write(self._clear, b"4")
        return sum(stop - first for first, stop in ranges)

    def written(self) -> Ranges:
        """Return the pages that were written."""
        if not self._pagemap.alive():
            raise ProcessLookupError
        found = [np.zeros((0, 2), np.int64)]
        for first, stop in self._ranges:
            at = first
            while (at := self._pagemap.next_populated(at, stop)) < stop:
                entries = self._pagemap.entries(at, min(stop - at, _WINDOW))
                found.append(soft_dirty(entries) + np.array([at, 0]))
                at += len(entries)
        os.write(self._clear, b"4")
        return np.concatenate(found)

    def close(self) -> None:
        """Close the files."""
        try:
            self._pagemap.close()
        finally:
            os.close(self._clear)


def soft_dirty(entries: npt.NDArray[np.uint64]) -> Ranges:
    """Return the ranges of ``entries``, numbered from 0, of private pages that were written."""
    dirty = (entries & _SOFT_DIRTY != 0) & (entries & _PRESENT_OR_SWAPPED != 0)
    stretches = runs(places := np.flatnonzero(dirty & (entries & _FILE_OR_SHARED == 0)))
    return np.array([(places[first], stop - first) for first, stop in stretches], np.int64).reshape(
        -1, 2
    )


def keeps_soft_dirty() -> bool:
    """Return True if this kernel has soft-dirty bits, by a test on a page of this process.

    Clears all bits of this process: a watch on it misses writes from before.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    at = ctypes.addressof(ctypes.c_char.from_buffer(page)) // mmap.PAGESIZE
    pagemap = Pagemap(os.getpid(), mmap.PAGESIZE)
    seen = []
    try:
        for _ in range(2):
            page[0] = 1
            seen.append(bool(pagemap.entries(at, 1)[0] & _SOFT_DIRTY))
            Path("/proc/self/clear_refs").write_text("4")
            seen.append(bool(pagemap.entries(at, 1)[0] & _SOFT_DIRTY))
    except (OSError, ImageError):
        return False
    finally:
        pagemap.close()
    return seen == [True, False, True, False]


class WriteProtect:
    """Implement :class:`Watch` by asynchronous write protection.

    :raises UnsupportedHereError: if it does not work on this kernel, or for this process
    :raises ImageError: if the process is gone, or may not be traced
    """

    how = "write-protect"

    def __init__(self, pid: int) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._name = f"pid {pid}"
        self._uffd = borrowed_userfaultfd(pid)
        try:
            asked = bytearray(struct.pack("=QQQ", _UFFD_API, _WP_ASYNC, 0))
            fcntl.ioctl(self._uffd, _UFFDIO_API, asked)
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            os.close(self._uffd)
            if error.filename:
                raise ImageError(f"pid {pid}", f"{error.filename}: {error.strerror}") from None
            raise UnsupportedHereError("needs Linux 6.7 or later") from None
        self._regions = np.zeros((_REGIONS, 3), np.uint64)

    def can_watch(self, vma: Vma) -> bool:
        """Return False for a mapping that a userfaultfd has already: it can have but one."""
        return _USERFAULTFD_FLAGS.isdisjoint(vma.flags.split())

    def begin(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Watch pages; leave out ranges that the kernel refuses to register."""
        size = mmap.PAGESIZE
        for first, stop in ranges:
            asked = struct.pack("=QQQQ", first * size, (stop - first) * size, _MODE_WP, 0)
            try:
                fcntl.ioctl(self._uffd, _UFFDIO_REGISTER, bytearray(asked))
            except OSError:
                continue
            self._ranges.append((first, stop))
        self.written()
        return sum(stop - first for first, stop in self._ranges)

    def written(self) -> Ranges:
        """Return the pages that were written."""
        try:
            there = os.pread(self._pagemap, 8, 0)
        except OSError as error:
            raise ImageError(self._name, f"pagemap: {error.strerror}") from None
        if not there:
            raise ProcessLookupError
        found = [np.zeros((0, 2), np.int64)]
        size = mmap.PAGESIZE
        for first, stop in self._ranges:
            at, end = first * size, stop * size
            while at < end:
                # A private page that was only read is a page of its file, or the page of zeros.
                asked = np.array(
                    [96, _PM_SCAN_WP_MATCHING, at, end, 0, self._regions.ctypes.data, _REGIONS, 0,
                     _IS_FILE | _IS_PFNZERO, _IS_WPALLOWED | _IS_WRITTEN | _IS_FILE | _IS_PFNZERO,
                     0, _IS_WRITTEN], np.uint64,
                )  # fmt: skip
                try:
                    count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, asked.data.cast("B"))
                except ProcessLookupError:
                    raise
                except OSError as error:
                    reason = f"the pages it wrote cannot be listed: {error.strerror}"
                    raise ImageError(self._name, reason) from None
                pages = self._regions[:count, :2].astype(np.int64) // size
                found.append(np.stack([pages[:, 0], pages[:, 1] - pages[:, 0]], axis=1))
                at = int(asked[4])
        return np.concatenate(found)

    def close(self) -> None:
        """Close the files: the kernel lifts all protection."""
        try:
            os.close(self._pagemap)
        finally:
            os.close(self._uffd)
