"""A device's copy of the page tables, in its own memory, and the notifier that keeps it coherent.

Each mapping that the device has touched has a directory of branches of BRANCH_LEAVES leaves of
LEAF_PAGES entries, as ``kernels/page_table.cu`` reads them. Faults fill entries and invalidations
zero them, both under the queue's lock, and each invalidation raises the mapping's sequence number.
A fault makes its entries without that lock, and retries if the number has changed since (as with
the kernel's interval notifiers).

The host's copies of directories and branches may be ahead of the device's, never behind: nodes are
noted here before their links are queued, and an exception may come between. So a fault sets all
links on the way to its entries, also those that are set already.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import Index, distinct
from gpudedup.devices.base import DeviceMemory, OutOfDeviceMemory
from gpudedup.kernels import BRANCH_LEAVES
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.device_pool import aligned
from gpudedup.mm.memory.device_queue import DeviceQueue
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES

ENTRY_BYTES = 8
WORD_BYTES = 16
"""Scratch bytes per word that is set: its address, its value."""

BRANCH_BITS = BRANCH_LEAVES.bit_length() - 1
SLAB_BYTES = 64 << 10
"""Device memory allocated at once, for leaves or for branches."""

Entries = npt.NDArray[np.uint64]


class _Nodes:
    """Leaves, or branches: arrays of ``words`` u64 in device memory."""

    def __init__(self, queue: DeviceQueue, words: int) -> None:
        self._queue = queue
        self._bytes = words * ENTRY_BYTES
        self._slabs: list[DeviceMemory] = []
        self._free: list[int] = []

    def take(self, count: int) -> Entries:
        """Return addresses of nodes, which are 0 or what they were freed with.

        :raises OutOfDeviceMemory: if there is no room, with none taken
        """
        while len(self._free) < count:
            slab = self._queue.device.allocate(SLAB_BYTES)
            self._queue.fill(slab.address, SLAB_BYTES)
            self._slabs.append(slab)
            self._free += range(slab.address, slab.address + SLAB_BYTES, self._bytes)
        return np.array([self._free.pop() for _ in range(count)], np.uint64)

    def free(self, nodes: Entries) -> None:
        """Free nodes, under the queue's lock."""
        self._free += nodes.tolist()

    @property
    def used(self) -> int:
        """Return how many are taken."""
        return len(self._slabs) * (SLAB_BYTES // self._bytes) - len(self._free)


@dataclass(slots=True)
class _Directory:
    """The copy of one mapping's page table.

    :param mapping: the mapping, since its number may be given to another
    :param branches: (k,) uint64, device addresses of branches; 0: none
    :param rows: (k,) int64, the row of ``leaves`` of each branch; 0: none
    :param leaves: (m, BRANCH_LEAVES) uint64, device addresses of leaves; 0: none; all of row 0
    :param memory: copy of ``branches`` on the device
    :param sequence: invalidations so far
    """

    mapping: Mapping
    branches: Entries = field(default_factory=lambda: np.zeros(0, np.uint64))
    rows: Index = field(default_factory=lambda: np.zeros(0, np.int64))
    leaves: Entries = field(default_factory=lambda: np.zeros((1, BRANCH_LEAVES), np.uint64))
    memory: DeviceMemory | None = None
    sequence: int = 0

    def leaves_at(self, places: Index) -> Entries:
        """Return the addresses of leaves, (n,) uint64, of places within the branches."""
        rows = self.rows[places >> BRANCH_BITS]
        leaves: Entries = self.leaves[rows, places & (BRANCH_LEAVES - 1)]
        return leaves

    def path(self, branches: Index, leaves: Index) -> tuple[list[Entries], list[Entries]]:
        """Return the addresses of links, and the links, to some branches and to their leaves.

        :param branches: places of branches that exist
        :param leaves: places of leaves that exist, in these branches
        """
        assert self.memory is not None
        above, inside = self.branches[leaves >> BRANCH_BITS], leaves & (BRANCH_LEAVES - 1)
        at = [_words(np.uint64(self.memory.address), branches), _words(above, inside)]
        return at, [self.branches[branches], self.leaves_at(leaves)]


@dataclass(frozen=True, slots=True)
class Made:
    """Entries that a fault made, to be set unless entries of their mapping are invalidated first.

    :param index: (n,) int64, distinct
    :param entries: (n,) uint64
    :param sequence: number of the mapping's invalidations when they were made
    """

    mapping: Mapping
    index: Index
    entries: Entries
    sequence: int


class DeviceTable:
    """The page tables of one device, under its queue's lock."""

    def __init__(self, queue: DeviceQueue, page_size: int) -> None:
        self._queue = queue
        self._directories: dict[int, _Directory] = {}
        self._leaves = _Nodes(queue, LEAF_PAGES)
        self._branches = _Nodes(queue, BRANCH_LEAVES)
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
        return np.uint64(known.memory.address), np.uint64(len(known.branches))

    def enter(self, made: Made) -> bool:
        """Queue setting entries, unless the sequence number has changed; return whether it did not.

        The caller holds the queue for work (:meth:`DeviceQueue.working`) and waits.

        :raises OutOfDeviceMemory: if there is no room for more leaves
        """
        known = self._known(made.mapping)
        if known is None or known.sequence != made.sequence:
            return False
        if len(made.index):
            leaves = distinct(made.index >> LEAF_BITS)
            branches = distinct(leaves >> BRANCH_BITS)
            self._make_branches(known, branches)
            self._make_leaves(known, leaves)
            at, links = known.path(branches, leaves)
            self._set(
                np.concatenate([*at, _places(known, made.index)]),
                np.concatenate([*links, made.entries]),
            )
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
            inside = place >> BRANCH_BITS < len(known.branches)
            index = index[inside]
            index = index[known.leaves_at(place[inside]) != 0]
            if len(index):
                self._clear(_places(known, index))

    def forget(self, mapping: Mapping) -> None:
        """Free the leaves of a mapping, all of whose entries have been invalidated."""
        with self._queue.lock:
            known = self._directories.pop(mapping.number, None)
            if known is not None:
                self._leaves.free(known.leaves[known.leaves != 0])
                self._branches.free(known.branches[known.branches != 0])

    def present(self, mapping: Mapping) -> tuple[Index, Entries]:
        """Return the indices and entries of a mapping, read back from the device, for checks."""
        with self._queue.working():
            known = self._known(mapping)
            if known is None or known.memory is None:
                return np.empty(0, np.int64), np.empty(0, np.uint64)
            level = np.array([known.memory.address], np.uint64)
            index = np.zeros(1, np.int64)
            for words in (len(known.branches), BRANCH_LEAVES, LEAF_PAGES):
                index, level = self._below(index, level, words)
            return index, level

    def _below(self, index: Index, nodes: Entries, words: int) -> tuple[Index, Entries]:
        """Return the words of nodes that are not 0, and the index of each, read from the device."""
        held = np.empty((len(nodes), words), np.uint64)
        for row, address in zip(held, nodes, strict=True):
            self._queue.download(row, address)
        self._queue.finish()
        below = index[:, None] * words + np.arange(words)
        return below[held != 0], held[held != 0]

    @property
    def leaves_used(self) -> int:
        """Return how many leaves belong to mappings."""
        return self._leaves.used

    def _make_branches(self, known: _Directory, places: Index) -> None:
        """Give a directory the branches at some places, distinct and in order."""
        if int(places[-1]) >= len(known.branches):
            longer = _longer(known.branches, int(places[-1]) + 1)
            memory = self._queue.device.allocate(longer.nbytes)
            self._queue.upload(memory.address, longer.copy())
            known.rows = _longer(known.rows, len(longer))
            known.branches, known.memory = longer, memory
        places = places[known.branches[places] == 0]
        if len(places):
            first = int(known.rows.max()) + 1
            if first + len(places) > len(known.leaves):
                known.leaves = _longer(known.leaves, first + len(places))
            taken = self._branches.take(len(places))
            for address in taken.tolist():
                # It may be another mapping's that is gone.
                self._queue.fill(address, BRANCH_LEAVES * ENTRY_BYTES)
            known.rows[places] = first + np.arange(len(places))
            known.branches[places] = taken

    def _make_leaves(self, known: _Directory, places: Index) -> None:
        """Give a directory the leaves at some places, distinct, whose branches exist."""
        places = places[known.leaves_at(places) == 0]
        if len(places):
            branch, inside = places >> BRANCH_BITS, places & (BRANCH_LEAVES - 1)
            taken = self._leaves.take(len(places))
            known.leaves[known.rows[branch], inside] = taken

    def _clear(self, at: Entries) -> None:
        """Zero words; where a launch lacks memory, one by one."""
        try:
            self._set(at, np.zeros(len(at), np.uint64))
            self._queue.finish()
        except OutOfDeviceMemory:
            self._queue.reset()
            for address in at.tolist():
                self._queue.fill(address, ENTRY_BYTES)
            self._queue.finish()

    def _set(self, at: Entries, values: Entries) -> None:
        """Queue setting words, all different."""
        for part in self._queue.pieces(len(at), WORD_BYTES):
            rows = len(at[part])
            self._queue.make_room(rows * WORD_BYTES)
            where, what = self._queue.send(at[part], values[part])
            self._queue.launch("set_words", rows, where, what, np.uint32(rows))


def _places(known: _Directory, index: Index) -> Entries:
    """Return the addresses of entries whose leaves exist."""
    return _words(known.leaves_at(index >> LEAF_BITS), index & (LEAF_PAGES - 1))


def _longer(rows: npt.NDArray[Any], least: int) -> npt.NDArray[Any]:
    """Return an array of at least ``least`` rows, half as many more at least, the new ones 0."""
    longer = np.zeros((max(least, len(rows) * 3 // 2), *rows.shape[1:]), rows.dtype)
    longer[: len(rows)] = rows
    return longer


def _words(nodes: Entries | np.uint64, inside: Index) -> Entries:
    """Return the addresses of words of nodes."""
    words: Entries = nodes + inside.astype(np.uint64) * np.uint64(ENTRY_BYTES)
    return words
