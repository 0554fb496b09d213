"""The host as a device, for the memory manager where there is no GPU.

The calling thread does all work at once: streams are always empty, events always reached. It runs
the kernels of ``copy.cu`` and ``page_table.cu``, with equal arguments and results, row by row.
"""

from __future__ import annotations

import bisect
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from gpudedup.compiled.intrinsics import fetch_and_add, load32, load64, memcpy, store8, store64
from gpudedup.compiled.jit import compiled
from gpudedup.compiled.memory import zeros
from gpudedup.devices.base import Bytes, DeviceMemory, OutOfDeviceMemory, Stream
from gpudedup.errors import DeviceError
from gpudedup.kernels import ATOMIC, BRANCH_LEAVES, FLAGS, KERNELS, LEAF_PAGES, PRESENT, WRITE

_ADDRESS = ~np.uint64(FLAGS)
_LEAF_PAGES, _BRANCH_LEAVES = np.uint64(LEAF_PAGES), np.uint64(BRANCH_LEAVES)
_HALF, _WORD = np.uint64(4), np.uint64(8)
_LOAD = np.uint64(PRESENT)
_STORE, _ADD = np.uint64(PRESENT | WRITE), np.uint64(PRESENT | ATOMIC)


@njit(nogil=True)
def _word(at, i):  # type: ignore[no-untyped-def]
    return load64(at + _WORD * i)


@njit(nogil=True)
def _translate(directory, branches, page, needed):  # type: ignore[no-untyped-def]
    """Return the address of a page's frame; 0: its entry lacks one of the bits ``needed``."""
    if not directory:
        return page
    place = page // _LEAF_PAGES
    if place // _BRANCH_LEAVES >= branches:
        return np.uint64(0)
    branch = _word(directory, place // _BRANCH_LEAVES)
    if not branch:
        return np.uint64(0)
    leaf = _word(branch, place % _BRANCH_LEAVES)
    if not leaf:
        return np.uint64(0)
    entry = _word(leaf, page % _LEAF_PAGES)
    return entry & _ADDRESS if (entry & needed) == needed else np.uint64(0)


@njit(nogil=True)
def _note(missed, i, page):  # type: ignore[no-untyped-def]
    if missed:
        store8(missed + i, np.uint8(not page))


@compiled
def _copy_pages(to, to_base, source, source_base, count, page_size):  # type: ignore[no-untyped-def]
    size = np.uint64(page_size)
    for i in range(np.uint64(count)):
        target_at = _word(to, i) if to else to_base + size * i
        source_at = _word(source, i) if source else source_base + size * i
        if target_at and source_at:
            memcpy(target_at, source_at, size)


@compiled
def _set_words(at, value, count):  # type: ignore[no-untyped-def]
    for i in range(np.uint64(count)):
        store64(_word(at, i), _word(value, i))


@compiled
def _load_pages(directory, branches, index, count, offset, size, out, missed):  # type: ignore[no-untyped-def]
    for i in range(np.uint64(count)):
        page = _translate(directory, branches, _word(index, i), _LOAD)
        _note(missed, i, page)
        if page:
            memcpy(out + size * i, page + offset, np.uint64(size))


@compiled
def _store_pages(directory, branches, index, count, offset, size, data, stride, missed):  # type: ignore[no-untyped-def]
    for i in range(np.uint64(count)):
        page = _translate(directory, branches, _word(index, i), _STORE)
        _note(missed, i, page)
        if page:
            memcpy(page + offset, data + stride * i, np.uint64(size))


@compiled
def _add_words(directory, branches, index, word, value, before, missed, count):  # type: ignore[no-untyped-def]
    for i in range(np.uint64(count)):
        page = _translate(directory, branches, _word(index, i), _ADD)
        _note(missed, i, page)
        if page:
            held = fetch_and_add(page + _WORD * load32(word + _HALF * i), _word(value, i))
            store64(before + _WORD * i, held)


HOST_KERNELS = {
    "copy_pages": _copy_pages,
    "set_words": _set_words,
    "load_pages": _load_pages,
    "store_pages": _store_pages,
    "add_words": _add_words,
}
"""Function of each kernel that :meth:`HostDevice.launch` runs."""


class _Memory:
    """Implements :class:`gpudedup.devices.base.DeviceMemory`."""

    def __init__(self, memory: Bytes) -> None:
        self._memory = memory
        self.address: int = memory.ctypes.data
        self.size = memory.nbytes


class HostDevice:
    """Implements :class:`gpudedup.devices.base.Device` on this process's own memory.

    :param number: number in the device's name
    :param memory: bytes that may be allocated; None: no limit
    """

    multiprocessors = 1

    def __init__(self, number: int = 0, memory: int | None = None) -> None:
        self.name = f"cpu ({number})"
        self._limit = memory
        self._lock = threading.Lock()
        self._used = 0
        self._sizes: dict[int, int] = {}
        self._starts: list[int] = []
        self._let_go: list[int] = []
        """Addresses of freed memory; the garbage collector appends them, in any thread."""

    def free_memory(self) -> int:
        """Return the bytes that could be allocated now."""
        if self._limit is None:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with self._lock:
            return self._free(self._limit)

    def allocate(self, size: int) -> DeviceMemory:
        """Allocate ``size`` bytes of zeros, page-aligned."""
        with self._lock:
            if self._limit is not None and size > (free := self._free(self._limit)):
                raise OutOfDeviceMemory(f"{self.name}: {size} bytes asked for, {free} free")
            try:
                memory = _Memory(zeros((size,), np.uint8))
            except OSError as error:
                raise OutOfDeviceMemory(
                    f"{self.name}: {size} bytes asked for: {error.strerror}"
                ) from None
            self._sweep()
            self._used += size
            self._sizes[memory.address] = size
            bisect.insort(self._starts, memory.address)
        weakref.finalize(memory, self._let_go.append, memory.address).atexit = False
        return memory

    def pinned(self, size: int) -> Bytes:
        """Allocate (size,) uint8 of host memory; not pinned."""
        return zeros((size,), np.uint8)

    def stream(self) -> Stream:
        """Return None, the only stream."""
        return None

    def upload(self, address: int, source: Bytes, stream: Stream) -> None:
        """Copy bytes to the device."""
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def download(self, target: npt.NDArray[Any], address: int, stream: Stream) -> None:
        """Fill ``target`` from ``address``."""
        ctypes.memmove(target.ctypes.data, address, target.nbytes)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy bytes within the device."""
        ctypes.memmove(target, source, size)

    def fill(self, address: int, byte: int, size: int, stream: Stream) -> None:
        """Set bytes on the device."""
        ctypes.memset(address, byte, size)

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: tuple[np.generic, ...],
        stream: Stream,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> None:
        """Run a kernel of :data:`HOST_KERNELS`.

        :raises DeviceError: if the kernel does not run on the host
        :raises TypeError: if the arguments are not typed as its parameters
        """
        if kernel not in HOST_KERNELS:
            raise DeviceError(f"{self.name}: kernel {kernel} does not run on the host")
        wanted, given = KERNELS[kernel].dtypes, tuple(argument.dtype for argument in arguments)
        if given != wanted:
            texts = [", ".join(map(str, dtypes)) for dtypes in (wanted, given)]
            raise TypeError(f"{kernel} takes ({texts[0]}), not ({texts[1]})")
        HOST_KERNELS[kernel](*arguments)

    def resident_blocks(
        self,
        kernel: str,
        *,
        page_size: int = 0,
        layout: str = "",
        switches: Mapping[str, int] | None = None,
    ) -> int:
        """Return 1: grids change nothing."""
        return 1

    def record(self, stream: Stream) -> float:
        """Return the current time in seconds."""
        return time.perf_counter()

    def wait(self, stream: Stream, event: float) -> None:
        """Do nothing: ``event`` is reached."""

    def finish(self, event: float) -> None:
        """Do nothing: ``event`` is reached."""

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds between two events."""
        return end - start

    def synchronize(self) -> None:
        """Do nothing: all work is done."""

    def trim(self) -> None:
        """Do nothing: freed memory is the system's."""

    def holds(self, address: int) -> bool:
        """Return whether ``address`` lies in an allocation."""
        with self._lock:
            self._sweep()
            at = bisect.bisect_right(self._starts, address) - 1
            return at >= 0 and address < self._starts[at] + self._sizes[self._starts[at]]

    def _free(self, limit: int) -> int:
        self._sweep()
        return limit - self._used

    def _sweep(self) -> None:
        """Remove freed allocations from the books."""
        while self._let_go:
            address = self._let_go.pop()
            self._used -= self._sizes.pop(address)
            del self._starts[bisect.bisect_left(self._starts, address)]
