"""Pages of a process, their physical frames, and the kernel's flags and nodes of these frames.

Bits and units are those of Linux's Documentation/admin-guide/mm/pagemap.rst. Page numbers are
addresses divided by the page size; frame numbers (PFN) are visible only with CAP_SYS_ADMIN.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpudedup.errors import ImageError
from gpudedup.images.files import read_all
from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE
from gpudedup.schema import PageFlag

U64 = npt.NDArray[np.uint64]

SYSTEM = Path("/sys/devices/system")
_FLAGS = "/proc/kpageflags"

_PFN = np.uint64((1 << 55) - 1)
_GUARD = np.uint64(1 << 58)
_SWAP = np.uint64(1 << 62)
_PRESENT = np.uint64(1 << 63)

_PAGEMAP_FLAGS = {
    55: PageFlag.SOFT_DIRTY,
    56: PageFlag.MMAP_EXCLUSIVE,
    61: PageFlag.FILE,
    62: PageFlag.SWAP,
}
_KPAGEFLAGS = {
    4: PageFlag.DIRTY,
    8: PageFlag.WRITEBACK,
    17: PageFlag.HUGE,
    21: PageFlag.KSM,
    22: PageFlag.THP,
    24: PageFlag.ZERO_PAGE,
}

_PAGEMAP_SCAN = 0xC0606610
"""``_IOWR('f', 16, struct pm_scan_arg)``, since Linux 6.7."""
_PAGE_IS_PRESENT_OR_SWAPPED = 8 | 16


class Pagemap:
    """``/proc/PID/pagemap``, opened: it stays with this memory even if the pid is reused."""

    def __init__(self, pid: int, page_size: int) -> None:
        self.page_size = page_size
        self._path = f"/proc/{pid}/pagemap"
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._scans = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def alive(self) -> bool:
        """Return True while the memory exists: the process has neither ended nor called exec.

        :raises ImageError: if the kernel does not say
        """
        return bool(len(_words(self._fd, self._path, 0, 1)))

    def entries(self, first: int, count: int) -> U64:
        """Return the entries of pages ``first .. first + count - 1``, 0 where there is none.

        :raises ImageError: if they cannot be read
        """
        found = np.zeros(count, np.uint64)
        there = _words(self._fd, self._path, first, count)
        found[: len(there)] = there
        return found

    def next_populated(self, first: int, stop: int) -> int:
        """Return a page up to which, from ``first`` on, none is populated; at most ``stop``.

        Processes reserve address space by the TiB, and reading an entry for each page takes seconds
        per TiB. Without PAGEMAP_SCAN (before Linux 6.7) return ``first``.
        """
        if not self._scans:
            return first
        region = np.zeros(3, np.uint64)
        argument = np.array(
            [96, 0, first * self.page_size, stop * self.page_size, 0, region.ctypes.data, 1,
             1, 0, 0, _PAGE_IS_PRESENT_OR_SWAPPED, _PAGE_IS_PRESENT_OR_SWAPPED], np.uint64,
        )  # fmt: skip
        try:
            regions = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument.data.cast("B"))
        except OSError:
            self._scans = False
            return first
        return int(region[0]) // self.page_size if regions else stop


def _words(fd: int, path: str, first: int, count: int) -> U64:
    """Return 64-bit words of a file from word ``first`` on, ``count`` or up to its end."""
    try:
        data = read_all(fd, count * 8, first * 8)
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from None
    return np.frombuffer(data, np.uint64, len(data) // 8)


def populated(entries: U64) -> npt.NDArray[np.int64]:
    """Return the indices of pages in memory or in swap, but not guard pages, which look swapped."""
    there = (entries & (_PRESENT | _SWAP) != 0) & (entries & _GUARD == 0)
    return np.flatnonzero(there)


def frames(before: U64, after: U64) -> U64:
    """Return the frames that pages were read from, :data:`UNKNOWN_FRAME` where not certain.

    If it changed, the bytes may be of either or a third. A page in swap got its frame by the read.

    :param before: entries read before the content
    :param after: entries read after the content
    """
    frame = after & _PFN
    same = (before & _SWAP != 0) | (before & _PFN == frame)
    return np.where((after & _PRESENT != 0) & same & (frame != 0), frame, UNKNOWN_FRAME)


def hides_frames(entries: U64) -> bool:
    """Return True if the kernel hides frame numbers from this process."""
    present = entries[entries & _PRESENT != 0]
    return bool(len(present)) and not np.any(present & _PFN)


def pagemap_flags(entries: U64) -> npt.NDArray[np.uint32]:
    """Return the :class:`PageFlag` bits of ``entries``."""
    return _translate(entries, _PAGEMAP_FLAGS)


class FrameInfo:
    """Flags and NUMA nodes of physical frames, from the kernel."""

    def __init__(self, page_size: int) -> None:
        self._nodes, self._block_frames = memory_blocks(page_size)
        try:
            self._fd = os.open(_FLAGS, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)

    def flags(self, frame: U64) -> npt.NDArray[np.uint32]:
        """Return the :class:`PageFlag` bits of each frame; 0 where unknown.

        :raises ImageError: if they cannot be read
        """
        known, inverse = np.unique(frame, return_inverse=True)
        words = np.zeros(len(known), np.uint64)
        count = int(np.searchsorted(known, UNKNOWN_FRAME))
        if self._fd >= 0:
            for first, stop in runs(known[:count]):
                there = _words(self._fd, _FLAGS, int(known[first]), stop - first)
                words[first : first + len(there)] = there
        return _translate(words, _KPAGEFLAGS)[inverse]

    def nodes(self, frame: U64) -> npt.NDArray[np.int16]:
        """Return the NUMA node of each frame, :data:`UNKNOWN_NODE` where unknown."""
        block = np.minimum(frame // np.uint64(self._block_frames), np.uint64(len(self._nodes) - 1))
        node = self._nodes[block.astype(np.int64)]
        return np.where(frame == UNKNOWN_FRAME, UNKNOWN_NODE, node)


def runs(numbers: npt.NDArray[np.integer]) -> list[tuple[int, int]]:
    """Return the stretches ``first .. stop - 1`` of consecutive ``numbers``, as indices."""
    cuts = (np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(numbers)], strict=True)) if len(numbers) else []


def memory_blocks(page_size: int, system: Path = SYSTEM) -> tuple[npt.NDArray[np.int16], int]:
    """Return the node of each block of physical memory, and the number of frames in a block.

    The last entry is for blocks beyond: 0 without listed blocks on at most one node, else unknown.
    """
    nodes = [(int(p.name[4:]), p) for p in (system / "node").glob("node[0-9]*")]
    found = [(int(block.name[6:]), node) for node, p in nodes for block in p.glob("memory[0-9]*")]
    if not found:
        return np.array([0 if len(nodes) <= 1 else UNKNOWN_NODE], np.int16), 1
    table = np.full(max(block for block, _ in found) + 2, UNKNOWN_NODE, np.int16)
    blocks = Counter(block for block, _ in found)
    for block, node in found:
        if blocks[block] == 1:  # a block of several nodes gives no node for its frames
            table[block] = node
    size = (system / "memory/block_size_bytes").read_text()
    return table, int(size, 16) // page_size


def _translate(words: U64, bits: dict[int, PageFlag]) -> npt.NDArray[np.uint32]:
    out = np.zeros(len(words), np.uint32)
    for bit, flag in bits.items():
        out |= (words >> np.uint64(bit) & np.uint64(1)).astype(np.uint32) * np.uint32(flag)
    return out
