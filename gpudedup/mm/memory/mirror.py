"""What a manager keeps on a device: a pool of frames, and a copy of the page tables."""

from __future__ import annotations

from gpudedup.arguments import Index
from gpudedup.devices.base import Device, OutOfDeviceMemory
from gpudedup.errors import DeviceError
from gpudedup.kernels import KERNELS
from gpudedup.mm.memory.device_pool import DevicePool
from gpudedup.mm.memory.device_queue import DeviceQueue
from gpudedup.mm.memory.device_table import WORD_BYTES, DeviceTable

KERNELS_USED = ("copy_pages", "set_words", "load_pages", "store_pages", "add_words")
"""Kernels that a manager launches."""

ACCESS_BYTES = 32
"""Scratch bytes per row of an access besides its data: index, word, value, before, missed."""

ROW_BYTES = ACCESS_BYTES + WORD_BYTES
"""Scratch bytes per row of an access besides its data, with the entry that a fault sets."""


class Mirror:
    """What a manager keeps on one device: a pool, and page tables that mirror the manager's.

    :param number: number of the device, from 0
    :param node: number of its pool, after those of the nodes
    :param page_size: bytes
    :param faults, around, remote, retries, invalidations: counters of
        :class:`gpudedup.mm.counters.Counters`
    """

    def __init__(self, device: Device, number: int, node: int, page_size: int) -> None:
        self.number, self.node = number, node
        self.queue = DeviceQueue(device, 2 * page_size + ROW_BYTES)
        # A kernel is compiled and loaded at its first launch, for which there is memory now.
        with self.queue.working():
            for kernel in KERNELS_USED:
                self.queue.launch(kernel, 1, *KERNELS[kernel].nothing())
            self.queue.finish()
        self.pool = DevicePool(self.queue)
        self.table = DeviceTable(self.queue, page_size)
        self.faults = self.around = self.remote = self.retries = self.invalidations = 0

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
        try:
            self.table.invalidate(mapping, index)
        except OutOfDeviceMemory as error:
            # It works, but must not go on: it reaches pages that it may not reach any more.
            self.queue.lost = error
        except DeviceError:
            # A device that failed reaches no page.
            pass
