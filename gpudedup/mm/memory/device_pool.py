"""Frames in the memory of a device."""

from __future__ import annotations

import numpy as np

from gpudedup.arguments import last_of_equal
from gpudedup.devices.base import Device, DeviceMemory, OutOfDeviceMemory
from gpudedup.mm.memory.device_queue import DeviceQueue
from gpudedup.mm.memory.pools import Addresses, OutOfMemory, Pages

ALIGNMENT = 512
"""Alignment of frames, bytes: the low bits of an address are flags in a page-table entry."""


def aligned(device: Device, size: int) -> tuple[DeviceMemory, int]:
    """Return device memory for ``size`` bytes, and the address of the first aligned frame in it.

    :raises OutOfDeviceMemory: if the device has no room
    """
    memory = device.allocate(size + ALIGNMENT)
    return memory, memory.address + -memory.address % ALIGNMENT


class DevicePool:
    """Implement :class:`gpudedup.mm.memory.pools.Pool` in the memory of a device.

    Bytes of pages are copied from and to pageable memory: there is one copy at a time, and it is
    waited for.
    """

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
                (at,) = self._queue.send(addresses[part])
                found = self._queue.room((len(out[part]), size))
                self._queue.launch(
                    "load_pages", len(out[part]), np.uint64(0), np.uint64(0), at,
                    np.uint32(len(out[part])), np.uint32(offset), np.uint32(size), found.address,
                    np.uint64(0),
                )  # fmt: skip
                self._queue.download(out[part], found.address)
                self._queue.finish()

    def write(self, addresses: Addresses, data: Pages, offset: int) -> None:
        """Copy ``data``, (n, k) uint8, to byte ``offset`` of n pages; the last of equals wins."""
        last = last_of_equal(addresses)
        if len(last) < len(addresses):
            addresses, data = addresses[last], data[last]
        size = data.shape[1]
        for part in self._queue.pieces(len(data), size + 8):
            with self._queue.working():
                (at,) = self._queue.send(addresses[part])
                sent = self._queue.room((len(data[part]), size))
                self._queue.upload(sent.address, np.ascontiguousarray(data[part]))
                self._queue.launch(
                    "store_pages", len(data[part]), np.uint64(0), np.uint64(0), at,
                    np.uint32(len(data[part])), np.uint32(offset), np.uint32(size), sent.address,
                    np.uint64(size), np.uint64(0),
                )  # fmt: skip
                self._queue.finish()

    def copy(self, source: Addresses, target: Addresses, size: int) -> None:
        """Copy n pages of ``size`` bytes; no target is also a source."""
        for part in self._queue.pieces(len(source), 16):
            with self._queue.working():
                here, there = self._queue.send(source[part], target[part])
                self._queue.launch(
                    "copy_pages", len(source[part]), there, np.uint64(0), here, np.uint64(0),
                    np.uint32(len(source[part])), np.uint32(size),
                )  # fmt: skip
                self._queue.finish()
