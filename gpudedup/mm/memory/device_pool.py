"""Frames in the memory of a device, and the queue of all work on the device.

All work of a manager on a device goes through one stream, in order. So an access in flight when a
page-table entry is invalidated ends before the invalidation does, and nothing else has to wait.

Arrays of kernels lie in scratch memory, allocated before any frame: frames cannot use it up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import last_of_equal
from gpudedup.devices.base import Device, DeviceMemory, OutOfDeviceMemory
from gpudedup.errors import DeviceError
from gpudedup.kernels import blocks
from gpudedup.mm.memory.pools import Addresses, OutOfMemory, Pages

ALIGNMENT = 512
"""Alignment of frames, bytes: the low bits of an address are flags in a page-table entry."""

SCRATCH_BYTES = 16 << 20
"""Device memory for the arrays of one operation; an eighth of the free memory if that is less."""

SCRATCH_ALIGNMENT = 256
MAX_SCRATCH_ARRAYS = 8
"""Arrays one operation may hold in scratch memory."""


class DeviceQueue:
    """A queue of work on one device, done in order.

    The lock is held from the first piece of an operation to :meth:`finish`. A thread that holds it
    never waits for the manager's lock.

    :param least: least bytes of scratch memory: one row of any operation must fit
    :param lost: the error that ended all work on the device; None: it works
    :raises OutOfDeviceMemory: if the device has no room for the scratch memory
    """

    def __init__(self, device: Device, least: int) -> None:
        self.device = device
        self.lock = RLock()
        self.lost: DeviceError | None = None
        self._stream = device.stream()
        size = max(min(SCRATCH_BYTES, device.free_memory() // 8), least)
        self._scratch = device.allocate(size + MAX_SCRATCH_ARRAYS * SCRATCH_ALIGNMENT)
        self._size, self._used = size, 0
        self._held: list[object] = []

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the lock for an operation; a device that fails is lost from then on.

        :raises DeviceError: if the device was lost already, or fails
        """
        with self.lock:
            if self.lost is not None:
                raise DeviceError(*self.lost.args)
            try:
                yield
            except OutOfDeviceMemory:
                self.reset()
                raise
            except DeviceError as error:
                self.lost = error
                raise
            except BaseException:
                self.reset()
                raise

    def send(self, array: npt.NDArray[Any]) -> np.uint64:
        """Queue a copy to scratch memory; return its address there, valid until :meth:`finish`."""
        if not array.nbytes:
            return np.uint64(0)
        array = np.ascontiguousarray(array)
        memory = self.room(array.nbytes)
        self.upload(int(memory), array)
        return memory

    def room(self, size: int) -> np.uint64:
        """Return the address of bytes of scratch memory, undefined, valid until :meth:`finish`."""
        start = self._used
        self._used += size + -size % SCRATCH_ALIGNMENT
        assert self._used <= self._scratch.size, "more than a piece"
        return np.uint64(self._scratch.address + start)

    def pieces(self, rows: int, size: int) -> list[slice]:
        """Split rows into pieces, each of which fits in scratch memory.

        :param size: scratch bytes per row, in up to MAX_SCRATCH_ARRAYS arrays
        """
        each = max(1, self._size // size)
        return [slice(start, start + each) for start in range(0, rows, each)]

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Queue a copy of a C-contiguous array to the device."""
        if array.nbytes:
            self._held.append(array)
            self.device.upload(address, array.reshape(-1).view(np.uint8), self._stream)

    def download(self, array: npt.NDArray[Any], address: np.uint64) -> None:
        """Queue a copy to a C-contiguous array, which is filled when :meth:`finish` returns."""
        if array.nbytes:
            self._held.append(array)
            self.device.download(array, int(address), self._stream)

    def fill(self, address: int, size: int) -> None:
        """Queue setting bytes to zero."""
        self.device.fill(address, 0, size, self._stream)

    def launch(self, kernel: str, rows: int, *arguments: np.generic) -> None:
        """Queue a kernel over a number of rows, at least 1."""
        resident = self.device.resident_blocks(kernel)
        grid = blocks(kernel, rows, self.device.multiprocessors, resident=resident)
        self.device.launch(kernel, grid, arguments, self._stream)

    def finish(self) -> None:
        """Wait until all queued work is done; free the scratch memory."""
        try:
            self.device.finish(self.device.record(self._stream))
        finally:
            self._held.clear()
            self._used = 0

    def reset(self) -> None:
        """After an error, wait for queued work, if that can still end; free the scratch memory."""
        with suppress(DeviceError):
            self.finish()


def aligned(device: Device, size: int) -> tuple[DeviceMemory, int]:
    """Return device memory for ``size`` bytes, and the address of the first aligned frame in it.

    :raises OutOfDeviceMemory: if the device has no room
    """
    memory = device.allocate(size + ALIGNMENT)
    return memory, memory.address + -memory.address % ALIGNMENT


class DevicePool:
    """Implement :class:`gpudedup.mm.memory.pools.Pool` in the memory of a device."""

    def __init__(self, queue: DeviceQueue) -> None:
        self._queue = queue
        self._chunks: list[DeviceMemory] = []

    def allocate(self, size: int) -> int:
        """Implement :meth:`gpudedup.mm.memory.pools.Pool.allocate`."""
        try:
            memory, address = aligned(self._queue.device, size)
        except OutOfDeviceMemory as error:
            raise OutOfMemory(str(error)) from None
        self._chunks.append(memory)
        return address

    def read(self, addresses: Addresses, out: Pages, offset: int) -> None:
        """Copy from byte ``offset`` of n pages to ``out``, (n, k) uint8, C-contiguous."""
        size = out.shape[1]
        for part in self._queue.pieces(len(out), size + 8):
            with self._queue.working():
                found = self._queue.room(out[part].nbytes)
                self._queue.launch(
                    "load_pages", len(out[part]), np.uint64(0), np.uint64(0),
                    self._queue.send(addresses[part]), np.uint32(len(out[part])),
                    np.uint32(offset), np.uint32(size), found, np.uint64(0),
                )  # fmt: skip
                self._queue.download(out[part], found)
                self._queue.finish()

    def write(self, addresses: Addresses, data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, to byte ``offset`` of n pages; the last of equals wins."""
        last = last_of_equal(addresses)
        if len(last) < len(addresses):
            addresses, data = addresses[last], data[last]
        size = data.shape[1]
        for part in self._queue.pieces(len(data), size + 8):
            with self._queue.working():
                self._queue.launch(
                    "store_pages", len(data[part]), np.uint64(0), np.uint64(0),
                    self._queue.send(addresses[part]), np.uint32(len(data[part])),
                    np.uint32(offset), np.uint32(size), self._queue.send(data[part]),
                    np.uint64(size), np.uint64(0),
                )  # fmt: skip
                self._queue.finish()

    def copy(self, source: Addresses, target: Addresses, size: int) -> None:
        """Copy n pages of ``size`` bytes; no target is also a source."""
        for part in self._queue.pieces(len(source), 16):
            with self._queue.working():
                self._queue.launch(
                    "copy_pages", len(source[part]), self._queue.send(target[part]), np.uint64(0),
                    self._queue.send(source[part]), np.uint64(0), np.uint32(len(source[part])),
                    np.uint32(size),
                )  # fmt: skip
                self._queue.finish()
