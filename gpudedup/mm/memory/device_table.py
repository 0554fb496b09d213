"""A device's copy of the page tables, in its own memory, and the notifier that keeps it coherent.

Each mapping that the device has touched has a directory of leaves of LEAF_PAGES entries, as
``kernels/page_table.cu`` reads them. Faults fill entries and invalidations zero them, both under
the queue's lock, and each invalidation raises the mapping's sequence number. A fault makes its
entries without that lock, and retries if the number has changed since (as with the kernel's
interval notifiers).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import Index, distinct
from gpudedup.devices.base import DeviceMemory
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.device_pool import DeviceQueue, aligned
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES

ENTRY_BYTES = 8
LEAF_BYTES = LEAF_PAGES * ENTRY_BYTES
SLAB_LEAVES = 256
"""Leaves allocated at once."""

Entries = npt.NDArray[np.uint64]


@dataclass(slots=True)
class _Directory:
    """The copy of one mapping's page table.

    :param mapping: the mapping, since its number may be given to another
    :param leaves: (k,) uint64, device addresses of leaves; 0: none
    :param memory: copy of ``leaves`` on the device
    :param sequence: invalidations so far
    """

    mapping: Mapping
    leaves: Entries = field(default_factory=lambda: np.zeros(0, np.uint64))
    memory: DeviceMemory | None = None
    sequence: int = 0


class DeviceTable:
    """The page tables of one device, under its queue's lock."""

    def __init__(self, queue: DeviceQueue, page_size: int) -> None:
        self._queue = queue
        self._directories: dict[int, _Directory] = {}
        self._slabs: list[DeviceMemory] = []
        self._free: list[int] = []
        self._zeros, self.zero_page = aligned(queue.device, page_size)
        with queue.lock:
            queue.fill(self.zero_page, page_size)
            queue.finish()

    def sequence(self, mapping: Mapping) -> int:
        """Return how often entries of a mapping were invalidated."""
        with self._queue.lock:
            known = self._known(mapping)
            if known is None:
                known = self._directories[mapping.number] = _Directory(mapping)
            return known.sequence

    def _known(self, mapping: Mapping) -> _Directory | None:
        known = self._directories.get(mapping.number)
        return known if known is not None and known.mapping is mapping else None

    def directory(self, mapping: Mapping) -> tuple[np.uint64, np.uint64]:
        """Return address and length of a mapping's directory, as kernels take them."""
        known = self._known(mapping)
        if known is None or known.memory is None:
            # Not null: kernels would take indices for addresses.
            return np.uint64(self.zero_page), np.uint64(0)
        return np.uint64(known.memory.address), np.uint64(len(known.leaves))

    def enter(self, mapping: Mapping, index: Index, entries: Entries, sequence: int) -> bool:
        """Set entries, unless the sequence number has changed; return whether they were set.

        :param index: (n,) int64, distinct
        :param entries: (n,) uint64
        :raises OutOfDeviceMemory: if there is no room for more leaves
        """
        with self._queue.working():
            known = self._known(mapping)
            if known is None or known.sequence != sequence:
                return False
            if len(index):
                self._make_leaves(known, distinct(index >> LEAF_BITS))
                self._set(_places(known, index), entries)
            return True

    def invalidate(self, mapping: int, index: Index) -> None:
        """Zero entries of the mapping with this number; no access uses them afterwards.

        :param index: (n,) int64, distinct; pages without an entry are skipped
        """
        with self._queue.working():
            known = self._directories.get(mapping)
            if known is None:
                return
            known.sequence += 1
            place = index >> LEAF_BITS
            inside = place < len(known.leaves)
            index = index[inside]
            index = index[known.leaves[place[inside]] != 0]
            if len(index):
                self._set(_places(known, index), np.zeros(len(index), np.uint64))

    def forget(self, mapping: Mapping) -> None:
        """Free the leaves of a mapping, all of whose entries have been invalidated."""
        with self._queue.lock:
            known = self._directories.pop(mapping.number, None)
            if known is not None:
                self._free += known.leaves[known.leaves != 0].tolist()

    def present(self, mapping: Mapping) -> tuple[Index, Entries]:
        """Return the indices and entries of a mapping, read back from the device, for checks."""
        with self._queue.working():
            known = self._known(mapping)
            if known is None or known.memory is None:
                return np.empty(0, np.int64), np.empty(0, np.uint64)
            leaves = np.empty_like(known.leaves)
            self._queue.download(leaves, np.uint64(known.memory.address))
            self._queue.finish()
            places = np.flatnonzero(leaves)
            entries = np.empty((len(places), LEAF_PAGES), np.uint64)
            for row, address in zip(entries, leaves[places], strict=True):
                self._queue.download(row, address)
            self._queue.finish()
            index = places[:, None] * LEAF_PAGES + np.arange(LEAF_PAGES)
            return index[entries != 0], entries[entries != 0]

    @property
    def leaves_used(self) -> int:
        """Return how many leaves belong to mappings."""
        return len(self._slabs) * SLAB_LEAVES - len(self._free)

    def _make_leaves(self, known: _Directory, places: Index) -> None:
        if int(places[-1]) >= len(known.leaves):
            longer = np.zeros(max(int(places[-1]) + 1, len(known.leaves) * 3 // 2), np.uint64)
            longer[: len(known.leaves)] = known.leaves
            memory = self._queue.device.allocate(longer.nbytes)
            self._queue.upload(memory.address, longer)
            self._queue.finish()
            known.leaves, known.memory = longer, memory
        places = places[known.leaves[places] == 0]
        if not len(places):
            return
        while len(self._free) < len(places):
            slab = self._queue.device.allocate(SLAB_LEAVES * LEAF_BYTES)
            self._queue.fill(slab.address, SLAB_LEAVES * LEAF_BYTES)
            self._slabs.append(slab)
            self._free += range(slab.address, slab.address + SLAB_LEAVES * LEAF_BYTES, LEAF_BYTES)
        taken = np.array([self._free.pop() for _ in places], np.uint64)
        assert known.memory is not None
        self._set(np.uint64(known.memory.address) + places.astype(np.uint64) * np.uint64(8), taken)
        known.leaves[places] = taken

    def _set(self, at: Entries, values: Entries) -> None:
        for part in self._queue.pieces(len(at), 16):
            self._queue.launch(
                "set_words", len(at[part]), self._queue.send(at[part]),
                self._queue.send(values[part]), np.uint32(len(at[part])),
            )  # fmt: skip
            self._queue.finish()


def _places(known: _Directory, index: Index) -> Entries:
    """Return the addresses of entries whose leaves exist."""
    inside = (index & (LEAF_PAGES - 1)).astype(np.uint64) * np.uint64(ENTRY_BYTES)
    places: Entries = known.leaves[index >> LEAF_BITS] + inside
    return places
