"""Where the bytes of frames lie: one pool for each NUMA node, one for each device.

A pool knows addresses, not frames: :class:`Memory` turns one into the other and asks the pool that
an operation concerns. Memory is taken in chunks that never move and stay until the manager goes,
so that readers outside the lock may come too late, but never to memory that is not there.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.intrinsics import memcpy
from gpudedup.compiled.jit import compiled
from gpudedup.errors import GpudedupError
from gpudedup.mm.passes.access import addresses_of
from gpudedup.mm.state.arrays import (
    MAX_FRAMES,
    PER_CHUNK,
    PER_FRAME,
    SHARED,
    USED,
    Geometry,
    State,
    empty,
    grown,
)

CHUNK_BYTES = 64 << 20
BRING_BYTES = 8 << 20
"""Copied at a time from one pool to another."""

NOWHERE = 512
"""Address of frames that no longer exist."""

HUGE_PAGE = 2 << 20
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Python has it from 3.13 on; so Linux defines it on x86 and Arm."""

Addresses = npt.NDArray[np.uint64]
Frames = npt.NDArray[np.uint32]
Pages = npt.NDArray[np.uint8]


class OutOfMemory(GpudedupError):
    """A pool that has no room for the frames asked for; nothing was done."""


class Pool(Protocol):
    """Memory that frames lie in; all operations in bulk, addresses as uint64."""

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` more bytes, aligned to a page.

        :raises OutOfMemory: if there are none
        """

    def read(self, addresses: Addresses, out: Pages, offset: int) -> None:
        """Copy from byte ``offset`` of n pages to ``out``, (n, k) uint8, C-contiguous."""

    def write(self, addresses: Addresses, data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, C-contiguous, to byte ``offset`` of n pages, in order."""

    def copy(self, source: Addresses, target: Addresses, size: int) -> None:
        """Copy n pages of ``size`` bytes within the pool; no target is a source, too."""


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

    def read(self, addresses: Addresses, out: Pages, offset: int) -> None:
        """Copy from byte ``offset`` of n pages to ``out``, (n, k) uint8, C-contiguous."""
        _gather(addresses, out, offset)

    def write(self, addresses: Addresses, data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, C-contiguous, to byte ``offset`` of n pages, in order."""
        _scatter(addresses, data, offset)

    def copy(self, source: Addresses, target: Addresses, size: int) -> None:
        """Copy n pages of ``size`` bytes."""
        _copy(source, target, size)


class Memory:
    """The state of a manager and the bytes of its frames.

    :param nodes: host pools, numbered from 0
    :param devices: the pools that follow
    :param frames_copied: frames whose bytes were copied to another so far
    """

    def __init__(self, page_size: int, nodes: int, devices: Sequence[Pool] = ()) -> None:
        self.page_size = page_size
        self.nodes = nodes
        self._host = HostPool()
        self._devices = devices
        self._chunks = self.frames_copied = 0
        bits = max(6, (CHUNK_BYTES // page_size).bit_length() - 1)
        self._chunk_frames = 1 << bits
        self.state: State = empty(page_size, bits, nodes, len(devices))
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

    def ensure_lost(self, node: int, frames: int) -> None:
        """Make room for more frames in the pool of a device that is lost: nobody reaches them."""
        lacking = frames - int(self.state.room[node])
        if lacking > 0:
            self._add_chunks(node, -(-lacking // self._chunk_frames), NOWHERE)

    def node_of(self, frames: Frames) -> npt.NDArray[np.int64]:
        """Return the pools of frames."""
        chunks = frames >> int(self.state.geometry[Geometry.CHUNK_BITS])
        nodes: npt.NDArray[np.int64] = self.state.chunk_node[chunks].astype(np.int64)
        return nodes

    def room(self, node: int, frames: int) -> int:
        """Make room for ``frames`` more frames in a pool; return for how many of them there is."""
        try:
            self.ensure(node, frames)
        except OutOfMemory:
            with suppress(OutOfMemory):
                while self.state.room[node] < frames:
                    self._add_chunks(node, 1)
        return min(frames, int(self.state.room[node]))

    def read(self, frames: Frames, out: Pages, offset: int = 0) -> None:
        """Copy n frames, from byte ``offset`` on, to ``out``, (n, k) uint8."""
        addresses, highest = self._addresses(frames)
        if highest < self.nodes:
            self._host.read(addresses, out, offset)
            return
        for pool, rows in self._by_pool(frames):
            found = np.empty((len(rows), out.shape[1]), np.uint8)
            pool.read(addresses[rows], found, offset)
            out[rows] = found

    def write(self, frames: Frames, data: Pages, offset: int = 0) -> None:
        """Copy ``data``, (n, k) uint8, to byte ``offset`` of n frames; of equal ones the last."""
        addresses, highest = self._addresses(frames)
        if highest < self.nodes:
            self._host.write(addresses, data, offset)
            return
        for pool, rows in self._by_pool(frames):
            pool.write(addresses[rows], data[rows], offset)

    def copy(self, source: Frames, target: Frames) -> None:
        """Copy whole frames. None of the targets is a source, too: their order does not matter."""
        if not len(source):
            return
        self.frames_copied += len(source)
        (here, near), (there, far) = self._addresses(source), self._addresses(target)
        if max(near, far) < self.nodes:
            self._host.copy(here, there, self.page_size)
            return
        for pool, rows in self._by_pool(source):
            for other, among in self._by_pool(target[rows]):
                if pool is other:
                    pool.copy(here[rows[among]], there[rows[among]], self.page_size)
                else:
                    self._bring(pool, here[rows[among]], other, there[rows[among]])

    def _bring(self, pool: Pool, source: Addresses, other: Pool, target: Addresses) -> None:
        """Copy frames from one pool to another, by way of the host."""
        each = max(1, BRING_BYTES // self.page_size)
        for start in range(0, len(source), each):
            part = slice(start, start + each)
            data = np.empty((len(source[part]), self.page_size), np.uint8)
            pool.read(source[part], data, 0)
            other.write(target[part], data, 0)

    def _addresses(self, frames: Frames) -> tuple[Addresses, int]:
        """Return the addresses of frames, and the highest number of their pools."""
        addresses = np.empty(len(frames), np.uint64)
        return addresses, int(addresses_of(self.state, frames, addresses))

    def _by_pool(self, frames: Frames) -> Iterator[tuple[Pool, npt.NDArray[np.int64]]]:
        """Return pools and the places in ``frames`` of those that lie in each."""
        device = np.maximum(self.node_of(frames) - self.nodes, -1)
        for number, pool in enumerate((self._host, *self._devices), -1):
            rows = np.flatnonzero(device == number)
            if len(rows):
                yield pool, rows

    def _add_chunks(self, node: int, count: int, address: int | None = None) -> None:
        first, frames = self._chunks, self._chunk_frames
        if (first + count) * frames > MAX_FRAMES:
            raise OutOfMemory(f"more than {MAX_FRAMES} frames cannot be numbered")
        size = frames * self.page_size
        if address is None:
            pool = self._host if node < self.nodes else self._devices[node - self.nodes]
            address = pool.allocate(count * size)
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
