"""Where the bytes of frames lie: one pool for each NUMA node, one for each device.

A pool knows addresses, not frames: :class:`Memory` turns one into the other and asks the pool that
an operation concerns. Memory is taken in chunks that never move and stay until the manager goes,
so that readers outside the lock may come too late, but never to memory that is not there.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numba import types

from gpudedup.engines.jit import compiled
from gpudedup.errors import GpudedupError
from gpudedup.mm.passes import addresses_of
from gpudedup.mm.state import MAX_FRAMES, PER_CHUNK, PER_FRAME, SHARED, USED, State, empty, grown

CHUNK_BYTES = 64 << 20
HUGE_PAGE = 2 << 20
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Python has it from 3.13 on; so Linux defines it on x86 and Arm."""

Addresses = npt.NDArray[np.uint64]
Frames = npt.NDArray[np.uint32]
Pages = npt.NDArray[np.uint8]

_memcpy: Any = types.ExternalFunction(
    "memcpy", types.uint64(types.uint64, types.uint64, types.uint64)
)
"""libc's memcpy(to, from, bytes); addresses as uint64."""


class OutOfMemory(GpudedupError):
    """A pool that has no room for the frames asked for; nothing was done."""


class Pool(Protocol):
    """Memory that frames lie in; all operations in bulk, addresses as uint64."""

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` more bytes, aligned to a page.

        :raises OutOfMemory: if there are none
        """

    def free(self) -> None:
        """Let all memory go."""

    def read(self, addresses: Addresses, out: Pages, offset: int) -> None:
        """Copy from byte ``offset`` of n pages to ``out``, (n, k) uint8, C-contiguous."""

    def write(self, addresses: Addresses, data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, C-contiguous, to byte ``offset`` of n pages, in order."""

    def copy(self, source: Addresses, target: Addresses, size: int) -> None:
        """Copy n pages of ``size`` bytes within the pool, in order."""


@compiled
def _gather(addresses, out, offset):  # type: ignore[no-untyped-def]
    at, size = np.uint64(out.ctypes.data), np.uint64(out.shape[1])
    for address in addresses:
        _memcpy(at, address + np.uint64(offset), size)
        at += size


@compiled
def _scatter(addresses, data, offset):  # type: ignore[no-untyped-def]
    at, size = np.uint64(data.ctypes.data), np.uint64(data.shape[1])
    for address in addresses:
        _memcpy(address + np.uint64(offset), at, size)
        at += size


@compiled
def _copy(source, target, size):  # type: ignore[no-untyped-def]
    for i in range(len(source)):
        _memcpy(target[i], source[i], np.uint64(size))


class HostPool:
    """Implements :class:`Pool` in this process; one for all nodes would do as well."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap] = []

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` more bytes, which take no memory until they are written.

        :raises OutOfMemory: if there are none
        """
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

    def free(self) -> None:
        """Let all memory go."""
        self._chunks.clear()

    def read(self, addresses: Addresses, out: Pages, offset: int) -> None:
        """Copy from byte ``offset`` of n pages to ``out``, (n, k) uint8, C-contiguous."""
        _gather(addresses, out, offset)

    def write(self, addresses: Addresses, data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, C-contiguous, to byte ``offset`` of n pages, in order."""
        _scatter(addresses, data, offset)

    def copy(self, source: Addresses, target: Addresses, size: int) -> None:
        """Copy n pages of ``size`` bytes, in order."""
        _copy(source, target, size)


class Memory:
    """The state of a manager and the bytes of its frames.

    :param nodes: host pools, numbered from 0
    """

    def __init__(self, page_size: int, nodes: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.page_size = page_size
        self.nodes = nodes
        self._host = HostPool()
        self._chunks = 0
        bits = max(6, (chunk_bytes // page_size).bit_length() - 1)
        self._chunk_frames = 1 << bits
        self.state: State = empty(page_size, bits, nodes)
        self._add_chunks(0, 1)
        # Frame 0: zeros that are nobody's, as the memory is when it comes.
        self.state.chunk_fresh[0] = 1
        self.state.room[0] -= 1
        self.state.protection[0] = USED | SHARED

    @property
    def frames_numbered(self) -> int:
        """Return the number after that of the last frame in any chunk."""
        return self._chunks * self._chunk_frames

    def ensure(self, node: int, frames: int) -> None:
        """Make room for ``frames`` more frames in a pool.

        :raises OutOfMemory: if they do not fit
        """
        lacking = frames - int(self.state.room[node])
        if lacking > 0:
            self._add_chunks(node, -(-lacking // self._chunk_frames))

    def read(self, frames: Frames, out: Pages, offset: int = 0) -> None:
        """Copy n frames, from byte ``offset`` on, to ``out``, (n, k) uint8."""
        self._host.read(self._addresses(frames), out, offset)

    def write(self, frames: Frames, data: Pages, offset: int = 0) -> None:
        """Copy ``data``, (n, k) uint8, to byte ``offset`` of n frames, in order."""
        self._host.write(self._addresses(frames), data, offset)

    def copy(self, source: Frames, target: Frames) -> None:
        """Copy whole frames, in order."""
        if len(source):
            self._host.copy(self._addresses(source), self._addresses(target), self.page_size)

    def _addresses(self, frames: Frames) -> Addresses:
        addresses = np.empty(len(frames), np.uint64)
        addresses_of(self.state, frames, addresses)
        return addresses

    def _add_chunks(self, node: int, count: int) -> None:
        first, frames = self._chunks, self._chunk_frames
        if (first + count) * frames > MAX_FRAMES:
            raise OutOfMemory(f"more than {MAX_FRAMES} frames cannot be numbered")
        size = frames * self.page_size
        address = self._host.allocate(count * size)
        self._chunks += count
        state = grown(self.state, PER_FRAME, self._chunks * frames, frames)
        self.state = state = grown(state, PER_CHUNK, self._chunks)
        new = slice(first, first + count)
        state.base[new] = address + size * np.arange(count, dtype=np.uint64)
        state.chunk_node[new] = node
        state.chunk_link[new] = np.arange(first + 1, first + count + 1)
        state.chunk_link[first + count - 1] = state.fresh[node]
        state.fresh[node] = first
        state.room[node] += count * frames

    def _take_zero_frame(self) -> None:
        self.state.chunk_fresh[0] = 1
        self.state.room[0] -= 1
        self.state.protection[0] = USED | SHARED
