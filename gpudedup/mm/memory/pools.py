"""Pools of memory for frames: one for all NUMA nodes of the host, one for each device.

A pool knows addresses, not frames: :mod:`gpudedup.mm.memory.memory` turns one into the other.
Chunks never move and are freed with the manager, so that readers outside the lock may read stale
bytes, but never freed memory.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.intrinsics import memcpy
from gpudedup.compiled.jit import compiled
from gpudedup.errors import GpudedupError

HUGE_PAGE = 2 << 20
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Linux's value on x86 and Arm; Python has the name from 3.13 on."""

Addresses = npt.NDArray[np.uint64]
Frames = npt.NDArray[np.uint32]
Pages = npt.NDArray[np.uint8]


class OutOfMemory(GpudedupError):
    """A pool has no room for the frames requested.

    :ivar done: as of :class:`gpudedup.errors.BusyError`
    """

    done: Any = None


class Pool(Protocol):
    """Memory for frames; all operations in bulk, addresses as uint64."""

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` more bytes, aligned to a page.

        :raises OutOfMemory: if there are none
        """

    def read(self, addresses: Addresses, out: Pages, offset: int) -> None:
        """Copy from byte ``offset`` of n pages to ``out``, (n, k) uint8, C-contiguous."""

    def write(self, addresses: Addresses, data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, C-contiguous, to byte ``offset`` of n pages, in order."""

    def copy(self, source: Addresses, target: Addresses, size: int) -> None:
        """Copy n pages of ``size`` bytes within the pool; no target is also a source."""


@compiled
def _gather(addresses, out, offset):  # type: ignore[no-untyped-def]
    at, size = np.uint64(out.ctypes.data), np.uint64(out.shape[1])
    for address in addresses:
        memcpy(at, address + np.uint64(offset), size)
        at += size


@compiled
def _scatter(addresses, data, offset):  # type: ignore[no-untyped-def]
    at, size = np.uint64(data.ctypes.data), np.uint64(data.shape[1])
    for address in addresses:
        memcpy(address + np.uint64(offset), at, size)
        at += size


@compiled
def _copy(source, target, size):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        memcpy(target[i], source[i], np.uint64(size))


class HostPool:
    """Implement :class:`Pool` in this process, for all nodes: memory is bound to none of them."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap] = []

    def allocate(self, size: int) -> int:
        """Implement :meth:`Pool.allocate`; the bytes take no memory until they are written."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        try:
            memory = mmap.mmap(-1, size + HUGE_PAGE, flags)
        except OSError as error:
            raise OutOfMemory(f"no memory for {size} bytes of frames: {error.strerror}") from None
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._chunks.append(memory)
        address: int = np.frombuffer(memory, np.uint8).ctypes.data
        return address + -address % HUGE_PAGE

    def read(self, addresses: Addresses, out: Pages, offset: int) -> None:
        """Copy from byte ``offset`` of n pages to ``out``, (n, k) uint8, C-contiguous."""
        _gather(addresses, out, offset)

    def write(self, addresses: Addresses, data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, C-contiguous, to byte ``offset`` of n pages, in order."""
        _scatter(addresses, data, offset)

    def copy(self, source: Addresses, target: Addresses, size: int) -> None:
        """Copy n pages of ``size`` bytes."""
        _copy(source, target, size)
