"""What a manager keeps on a device: a pool of frames, and a copy of the page tables."""

from __future__ import annotations

from contextlib import suppress

from gpudedup.arguments import Index
from gpudedup.devices.base import Device
from gpudedup.errors import DeviceError
from gpudedup.mm.memory.device_pool import DevicePool, DeviceQueue
from gpudedup.mm.memory.device_table import DeviceTable

ROW_BYTES = 32
"""Scratch bytes per row of an access besides its data: index, word, value, missed."""


class Mirror:
    """What a manager keeps on one device: a pool, and page tables that mirror the manager's.

    :param number: number of the device, from 0
    :param node: number of its pool, after those of the nodes
    :param page_size: bytes
    :param faults, remote, retries, invalidations: see :class:`gpudedup.mm.counters.Counters`
    """

    def __init__(self, device: Device, number: int, node: int, page_size: int) -> None:
        self.number, self.node = number, node
        self.queue = DeviceQueue(device, 2 * page_size + ROW_BYTES)
        self.pool = DevicePool(self.queue)
        self.table = DeviceTable(self.queue, page_size)
        self.faults = self.remote = self.retries = self.invalidations = 0

    @property
    def name(self) -> str:
        """Return model and number, e.g. ``NVIDIA H200 (0)``; ``cpu (0)`` stands for a device."""
        return self.queue.device.name

    @property
    def lost(self) -> bool:
        """Return whether the device failed: pages whose only frame it has are lost."""
        return self.queue.lost is not None

    @property
    def free(self) -> int:
        """Return the bytes that the device has free."""
        return self.queue.device.free_memory()

    def invalidate(self, mapping: int, index: Index) -> None:
        """Zero entries of the mapping with this number; no access uses them afterwards."""
        self.invalidations += len(index)
        # A device that failed reaches no page.
        with suppress(DeviceError):
            self.table.invalidate(mapping, index)
