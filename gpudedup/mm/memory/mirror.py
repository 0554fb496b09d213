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
    """What a manager keeps on one device: a pool, and the page tables that mirror its own.

    :param number: from 0
    :param node: number of its pool: those of the nodes come first
    :param page_size: bytes
    :param faults: rows of accesses that found no entry
    :param remote: rows that the host did in the device's place
    :param retries: faults whose entries were invalidated before they were entered
    :param invalidations: entries taken from it by what others did
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
        """Return whether it failed: then pages that were only there are gone."""
        return self.queue.lost is not None

    def invalidate(self, mapping: int, index: Index) -> None:
        """Zero entries of a mapping, by its number; no access uses them afterwards."""
        self.invalidations += len(index)
        # A device that failed reaches no page.
        with suppress(DeviceError):
            self.table.invalidate(mapping, index)
