"""Accesses of a device to pages: loads, stores and atomics, through its own page table.

An access is a kernel that walks the device's copy of the page table. Rows without an entry that
allows the access are missed, and the host serves a *fault*: it brings the page to the device's
pool, by the paths of its own loads and stores. Then its entries and the missed rows are queued
together, in this order, and waited for once. Pages around one that faulted are entered with it if
they need nothing but an entry (Linux's fault-around). The host does the rows of pages that are
pinned, or find no room, in the device's place (*remote*).

Only faults hold the manager's lock. Accesses that find their entries run beside the host, until an
invalidation waits for them.

A device that fails is *lost*: its accesses raise DeviceError. So do loads of pages whose only frame
it has; they can be punched, truncated or dropped. All other pages stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import (
    Index,
    as_data,
    as_index,
    as_words,
    check_part,
    distinct,
    last_of_equal,
)
from gpudedup.devices.base import OutOfDeviceMemory
from gpudedup.errors import BusyError
from gpudedup.mm.access import AccessPaths
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.device_queue import Scratch
from gpudedup.mm.memory.device_table import Entries, Made
from gpudedup.mm.memory.mirror import ACCESS_BYTES, ROW_BYTES, Mirror
from gpudedup.mm.memory.pools import OutOfMemory, Pages
from gpudedup.mm.passes.access import migrate_pages
from gpudedup.mm.passes.copies import replicate_pages
from gpudedup.mm.passes.faults import AROUND, lacking, mirror, mirror_around
from gpudedup.mm.state.arrays import PER_GONE, Count, PageNumbers, State, grown

PATIENCE = 4
"""Faults of one access, after which fault and kernel run in one hold of the manager's lock."""

MAX_AROUND = 4096
"""Most pages that one fault maps beside those that faulted."""


@dataclass(frozen=True, slots=True)
class _Access:
    """A load, a store or an addition.

    :param index: (n,) int64, one page per row
    :param size: bytes of a row
    :param store: whether it needs more than loads do
    :param run: runs its kernel over rows and waits; returns the rows that it missed
    :param remote: does rows on the host; None: atomics, which the device must do
    """

    mapping: Mapping
    index: Index
    size: int
    store: bool
    run: Callable[[Index], Index]
    remote: Callable[[Index], None] | None


class ManagedDevice:
    """A device of a manager, which holds no reference to it: no cycle keeps either alive."""

    def __init__(self, manager: AccessPaths, mirror: Mirror) -> None:
        self._manager = manager
        self.mirror = mirror
        self.number, self.node = mirror.number, mirror.node
        self.table, self._queue = mirror.table, mirror.queue

    @property
    def name(self) -> str:
        """Return model and number, e.g. ``NVIDIA H200 (0)``; ``cpu (0)`` stands for a device."""
        return self.mirror.name

    @property
    def lost(self) -> bool:
        """Return whether the device failed: pages whose only frame it has are lost."""
        return self.mirror.lost

    def read(
        self, mapping: Mapping, index: Any, *, offset: int = 0, size: int | None = None
    ) -> Pages:
        """Load from pages; return what they hold, (n, size) uint8, on the host.

        :param index: (n,) int, or one
        :param offset: first byte within the page
        :param size: bytes of each page; None: up to its end
        :raises UsageError: if an index lies outside, or an argument does not fit
        :raises DeviceError: if the device fails
        """
        index = as_index(index)
        offset, size = check_part(offset, size, self._manager.page_size)
        out = np.empty((len(index), size), np.uint8)

        def load(rows: Index) -> Index:
            (pages,) = self._queue.send(_some(index, rows))
            found, missed = self._queue.room((len(rows), size)), self._queue.room((len(rows),))
            self._queue.launch(
                "load_pages", len(rows), *self.table.directory(mapping), pages,
                np.uint32(len(rows)), np.uint32(offset), np.uint32(size), found.address,
                missed.address,
            )  # fmt: skip
            self._queue.fetch(found, missed)
            self._queue.finish()
            return _take(rows, missed, found, out)

        def remote(rows: Index) -> None:
            out[rows] = self._manager.read(mapping, index[rows], offset=offset, size=size)

        self._access(_Access(mapping, index, size, False, load, remote))
        return out

    def write(self, mapping: Mapping, index: Any, data: Any, *, offset: int | None = None) -> None:
        """Store to pages; protections are broken first, as by a store of the host.

        Arguments and errors are those of :meth:`gpudedup.mm.manager.MemoryManager.write`.

        :raises DeviceError: if the device fails; some pages may be written
        """
        index = as_index(index)
        data = as_data(data, len(index), self._manager.page_size, offset)
        last = last_of_equal(index)
        size = data.shape[1]

        def store(rows: Index) -> Index:
            pages, sent = self._queue.send(_some(index, rows), _some(data, rows))
            missed = self._queue.room((len(rows),))
            self._queue.launch(
                "store_pages", len(rows), *self.table.directory(mapping), pages,
                np.uint32(len(rows)), np.uint32(offset or 0), np.uint32(size), sent,
                np.uint64(size), missed.address,
            )  # fmt: skip
            self._queue.fetch(missed)
            self._queue.finish()
            return _take(rows, missed)

        def remote(rows: Index) -> None:
            self._manager.write(mapping, index[rows], data[rows], offset=offset)

        self._access(_Access(mapping, index, size, True, store, remote), last)

    def atomic_add(
        self, mapping: Mapping, index: Any, word: Any, value: Any
    ) -> npt.NDArray[np.uint64]:
        """Add to one 64-bit word of each page; return the values before, (n,) uint64.

        The device acquires the pages first, unless it holds them: all other entries are
        invalidated. Rows of one word are added in any order. After DeviceError some pages may
        have been added to.

        :param word: number of the word in the page, one or (n,)
        :param value: modulo 2**64, one or (n,)
        :raises BusyError: if one of the frames is pinned and not shared; ``done`` of the error,
            (n,) bool, says which rows were added
        :raises OutOfMemory: if the device has no room for them; ``done`` likewise
        :raises UsageError: if an index or a word lies outside
        """
        index = as_index(index)
        words, values = as_words(index, word, value, self._manager.page_size)
        before = np.empty(len(index), np.uint64)
        done = np.zeros(len(index), np.bool_)

        def add(rows: Index) -> Index:
            pages, word, value = self._queue.send(
                _some(index, rows), _some(words, rows).astype(np.uint32), _some(values, rows)
            )
            found = self._queue.room((len(rows),), np.uint64)
            missed = self._queue.room((len(rows),))
            self._queue.launch(
                "add_words", len(rows), *self.table.directory(mapping), pages, word, value,
                found.address, missed.address, np.uint32(len(rows)),
            )  # fmt: skip
            self._queue.fetch(found, missed)
            self._queue.finish()
            left = _take(rows, missed, found, before)
            done[rows] = missed.twin == 0
            return left

        try:
            self._access(_Access(mapping, index, 8, True, add, None))
        except (BusyError, OutOfMemory) as error:
            error.done = done
            raise
        return before

    def _access(self, access: _Access, rows: Index | None = None) -> None:
        """Run a kernel over rows, and serve faults, until none is missed.

        :param rows: (k,) int64; None: all
        """
        self._manager.check_index(access.mapping, access.index)
        if self._manager.memory.unsettled:
            # An interrupted call may have left entries that are true no longer.
            with self._manager.lock:
                self._manager.memory.settle()
        if rows is None:
            rows = np.arange(len(access.index))
        for part in self._queue.pieces(len(rows), access.size + ROW_BYTES):
            todo, tries = rows[part], 0
            while len(todo):
                with ExitStack() as held:
                    if tries > PATIENCE:
                        held.enter_context(self._manager.lock)
                    made = None
                    if tries:
                        todo, made = self._fault(access, todo)
                    if len(todo):
                        todo = self._submit(access, todo, made)
                tries += 1

    def _submit(self, access: _Access, rows: Index, made: Made | None) -> Index:
        """Queue the entries that a fault made, and the kernel; wait; return the rows it missed."""
        entering = made is not None
        try:
            with self._queue.working():
                if made is not None and not self.table.enter(made):
                    self.mirror.retries += 1
                entering = False
                self._queue.make_room(len(rows) * (access.size + ACCESS_BYTES))
                return access.run(rows)
        except OutOfDeviceMemory as error:
            if not entering:
                raise
            if access.remote is None:
                raise OutOfMemory(str(error)) from None
        # Without the queue's lock, under which no thread waits for the manager's.
        with self._manager.lock:
            self.mirror.remote += len(rows)
            access.remote(rows)
        return rows[:0]

    def _fault(self, access: _Access, rows: Index) -> tuple[Index, Made]:
        """Bring the pages of missed rows; return rows to run again, and entries for them."""
        mapping, remote = access.mapping, access.remote
        index = distinct(access.index[rows])
        self.mirror.faults += len(index)
        with self._manager.lock:
            if remote is None:
                pages = self._take_exclusively(mapping, index)
            else:
                pages = self._bring(mapping, index, access.store)
            entries = self._entries(pages, access.store)
            sequence = self.table.sequence(mapping)
            served = entries != 0
            if not served.all():
                assert remote is not None
                here = served[np.searchsorted(index, access.index[rows])]
                rows, far = rows[here], rows[~here]
                self.mirror.remote += len(far)
                remote(far)
            index, entries = index[served], entries[served]
            if remote is not None:
                beside, more = self._around(mapping, pages[served], index, access.store)
                if len(beside):
                    index = np.concatenate([index, beside])
                    entries = np.concatenate([entries, more])
        return rows, Made(mapping, index, entries, sequence)

    def _bring(self, mapping: Mapping, index: Index, store: bool) -> PageNumbers:
        """Give pages, as many as fit, a frame on the device that serves a load, or a store."""
        manager = self._manager
        pages = manager.reach_from(mapping, index, self.number, create=True)
        lacks = np.empty(len(pages), np.bool_)
        n = int(lacking(manager.memory.state, pages, self.node, store, lacks))
        fits = manager.memory.room(self.node, n)
        brought = np.flatnonzero(lacks)[:fits]
        if store:
            ready = (manager.grants.holders_of(pages) == 0) & ~lacks
            ready[brought] = True
            # One frame for each that lacks one: a page copied here by a break need not be moved.
            manager.make_writable(mapping, pages[ready], node=self.node, room=fits)
        if fits:
            change = migrate_pages if store else replicate_pages
            done = np.empty(fits, np.bool_)
            manager.memory.copying(change, fits, pages[brought], self.node, done)
        return pages

    def _take_exclusively(self, mapping: Mapping, index: Index) -> PageNumbers:
        """Acquire the pages that this device does not hold exclusively already."""
        manager = self._manager
        pages = manager.reach_from(mapping, index, self.number, create=True)
        free = manager.grants.holders_of(pages) == 0
        if free.any():
            manager.acquire(mapping, index[free], pages[free], None, self.number)
        return pages

    def _entries(self, pages: PageNumbers, store: bool) -> Entries:
        state, entries = self._room_to_mirror(len(pages)), np.empty(len(pages), np.uint64)
        mirror(state, pages, self.number, self.table.zero_page, store, entries)
        return entries

    def _around(
        self, mapping: Mapping, pages: PageNumbers, index: Index, store: bool
    ) -> tuple[Index, Entries]:
        """Make entries for pages beside those that were entered; return their indices, too."""
        most = min(len(pages) * (AROUND - 1), MAX_AROUND)
        found, entries = np.empty(most, np.int64), np.empty(most, np.uint64)
        n = int(
            mirror_around(
                self._room_to_mirror(most), pages, index, self.number, store, mapping.is_file,
                found, entries,
            )
        )  # fmt: skip
        self.mirror.around += n
        return found[:n], entries[:n]

    def _room_to_mirror(self, pages: int) -> State:
        """Return the state, with room to list ``pages`` more pages for invalidation."""
        memory = self._manager.memory
        least = int(memory.state.counts[Count.MIRRORED_PAGES]) + pages
        memory.state = grown(memory.state, PER_GONE, least)
        return memory.state


def _some(array: npt.NDArray[Any], rows: Index) -> npt.NDArray[Any]:
    """Return some rows of an array: a view if they follow each other, as those of a first try."""
    first, n = int(rows[0]), len(rows)
    if n == 1 or (int(rows[-1]) - first == n - 1 and (rows[1:] > rows[:-1]).all()):
        return array[first : first + n]
    return array[rows]


def _take(
    rows: Index,
    missed: Scratch,
    found: Scratch | None = None,
    out: npt.NDArray[Any] | None = None,
) -> Index:
    """Write what was found to the rows of ``out``, and return the rows that were missed."""
    if not missed.twin.any():
        if out is not None and found is not None:
            out[rows] = found.twin
        return rows[:0]
    hit = missed.twin == 0
    if out is not None and found is not None:
        out[rows[hit]] = found.twin[hit]
    kept: Index = rows[~hit]
    return kept
