"""Exclusive access: one owner has a page, until anybody else touches it.

The owner is told first, by a callback, and the touch then goes on whatever the callback does: it
runs in a thread of its own, for which nobody waits longer than :data:`PATIENCE_S`, and what it
raises is counted and nothing else.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.intrinsics import compare_and_swap, load_acquire
from gpudedup.compiled.jit import compiled
from gpudedup.errors import BusyError, RevokedError
from gpudedup.mm.device import ManagedDevice, as_words
from gpudedup.mm.mapping import Index, Mapping, PageNumbers, as_data, as_index, distinct
from gpudedup.mm.memory.pools import Pages
from gpudedup.mm.passes.access import migrate_pages
from gpudedup.mm.passes.faults import lacking, on_devices
from gpudedup.mm.state.arrays import EXCLUSIVE, SHARED, Count
from gpudedup.mm.state.steps import address_of, invalidate, write_protect

if TYPE_CHECKING:
    from gpudedup.mm.access import AccessPaths


PATIENCE_S = 0.1
"""How long a touch waits for the owner's callback."""

OnRevoke = Callable[[Mapping, npt.NDArray[np.int64]], None]
"""Called with the mapping and the (n,) indices of pages that somebody is about to touch.

The manager's lock is held meanwhile: calling the manager from it waits until the touch is over.
"""


@compiled
def grant(s, pages, number):  # type: ignore[no-untyped-def]
    """Give pages, whose frames nobody shares, to one owner."""
    for p in pages:
        f = s.frame[p]
        s.counts[Count.EXCLUSIVE_FRAMES] += s.protection[f] & EXCLUSIVE == 0
        s.protection[f] |= EXCLUSIVE
        s.token[f] = number
        write_protect(s, np.int64(p))


@compiled
def take_back(s, pages, number):  # type: ignore[no-untyped-def]
    """End the access of grant ``number`` to pages; return how many it had of them."""
    n = 0
    for p in pages:
        f = s.frame[p]
        if s.protection[f] & EXCLUSIVE and s.token[f] == number:
            s.protection[f] &= ~EXCLUSIVE
            s.counts[Count.EXCLUSIVE_FRAMES] -= 1
            s.token[f] = 0
            invalidate(s, p)
            n += 1
    return n


@compiled
def holders(s, pages, numbers):  # type: ignore[no-untyped-def]
    """Write who holds each page, (n,) uint32; 0: nobody."""
    for i in range(len(pages)):
        f = s.frame[pages[i]]
        numbers[i] = s.token[f] if s.protection[f] & EXCLUSIVE else np.uint32(0)


@compiled
def add_words(s, pages, word, value, before):  # type: ignore[no-untyped-def]
    """Add to one 64-bit word of each page; write what was there before."""
    for i in range(len(pages)):
        at = address_of(s, s.frame[pages[i]]) + np.uint64(8 * word[i])
        old, seen = np.uint64(0), load_acquire(at)
        while True:
            old = seen
            seen = compare_and_swap(at, old, old + value[i])
            if seen == old:
                break
        before[i] = old


@dataclass(eq=False, slots=True)
class Grant:
    """What a manager knows of one owner's exclusive access.

    :param number: of the grant
    :param mapping: whose pages
    :param index: (n,) int64, those that were granted, ascending
    :param left: how many of them are held still
    :param device: number of the device that has them; None: the host
    :param on_revoke: whom to tell; None: nobody
    """

    number: int
    mapping: Mapping
    index: Index
    left: int
    device: int | None
    on_revoke: OnRevoke | None

    def tell(self, index: Index) -> bool:
        """Tell the owner that pages are about to be touched; return whether it took that well."""
        if self.on_revoke is None:
            return True
        well = threading.Event()

        def call() -> None:
            try:
                assert self.on_revoke
                self.on_revoke(self.mapping, index)
            except BaseException:
                return
            well.set()

        thread = threading.Thread(target=call, daemon=True, name="gpudedup-on-revoke")
        thread.start()
        thread.join(PATIENCE_S)
        return well.is_set()


class Exclusive:
    """Exclusive access to some pages, through which their owner uses them.

    :param mapping: whose pages
    :param index: (n,) int64, those that were granted, ascending
    """

    def __init__(self, manager: AccessPaths, grant: Grant) -> None:
        self._manager, self._grant = manager, grant
        self.mapping, self.index = grant.mapping, grant.index

    @property
    def left(self) -> int:
        """Return how many of the pages are held still."""
        return self._grant.left

    def read(self, index: Any) -> Pages:
        """Return what pages hold, (n, page_size) uint8.

        :raises RevokedError: if one of them is not held any more
        """
        with self._manager.lock:
            pages = self._held(as_index(index))
            out = np.empty((len(pages), self._manager.page_size), np.uint8)
            self._manager.memory.read(self._manager.memory.state.frame[pages], out)
            return out

    def write(self, index: Any, data: Any, *, offset: int | None = None) -> None:
        """Write to pages, as :meth:`gpudedup.mm.manager.MemoryManager.write` does.

        :raises RevokedError: if one of them is not held any more; then nothing is written
        """
        index = as_index(index)
        data = as_data(data, len(index), self._manager.page_size, offset)
        with self._manager.lock:
            pages = self._held(index)
            self._manager.memory.write(self._manager.memory.state.frame[pages], data, offset or 0)

    def atomic_add(self, index: Any, word: Any, value: Any) -> npt.NDArray[np.uint64]:
        """Add to one 64-bit word of each page; return what was there before, (n,) uint64.

        :param word: number of the word in the page, one or (n,)
        :param value: modulo 2**64, one or (n,)
        :raises RevokedError: if a page is not held any more; then nothing is added
        """
        index = as_index(index)
        words, values = as_words(index, word, value, self._manager.page_size)
        before = np.empty(len(index), np.uint64)
        with self._manager.lock:
            pages = self._held(index)
            if self._grant.device is not None:
                mirror = self._manager.mirrors[self._grant.device]
                device = ManagedDevice(self._manager, mirror)
                return device.atomic_add(self.mapping, index, words, values)
            add_words(self._manager.memory.state, pages, words, values, before)
        return before

    def release(self) -> None:
        """Give back what is still held. A second call does nothing."""
        with self._manager.lock:
            if self._grant.left:
                index = self.index[self.index < self.mapping.pages]
                pages, _ = self.mapping.locate(self._manager.memory, index, create=False)
                self._manager.grants.end(pages, self._grant.number)

    def _held(self, index: Index) -> PageNumbers:
        pages, _ = self.mapping.locate(self._manager.memory, index, create=False)
        numbers = self._manager.grants.holders_of(pages)
        if (numbers != self._grant.number).any():
            lost = int(index[numbers != self._grant.number][0])
            raise RevokedError(f"mapping {self.mapping.name!r}: page {lost} is not held any more")
        return pages


class Grants:
    """All exclusive access of a manager; every method is called with its lock held.

    :param revoked: pages taken from an owner by somebody else's touch
    """

    def __init__(self, manager: AccessPaths) -> None:
        # A manager goes, with its memory, with the last name of it: what it has does not keep it.
        self._of = weakref.ref(manager)
        self._grants: dict[int, Grant] = {}
        self._last = 0
        self.revoked = 0

    @property
    def _manager(self) -> AccessPaths:
        manager = self._of()
        assert manager is not None
        return manager

    def acquire(
        self,
        mapping: Mapping,
        index: Index,
        pages: PageNumbers,
        told: OnRevoke | None,
        device: int | None = None,
    ) -> Exclusive:
        """Give pages, which nobody holds exclusively, to one owner.

        :raises BusyError: if one of them is pinned
        :raises OutOfMemory: if a device has no room for them
        """
        state = self._manager.memory.state
        index, first = np.unique(index, return_index=True)
        pages = pages[first]
        frames = state.frame[pages]
        if ((state.pins[frames] != 0) & (state.protection[frames] & SHARED == 0)).any():
            raise BusyError(f"mapping {mapping.name!r}: a page is pinned")
        self._make_own(mapping, pages, device)
        while self._last in self._grants or self._last == 0:
            self._last = (self._last + 1) % (1 << 32)
        new = Grant(self._last, mapping, index, len(index), device, told)
        if new.left:
            self._grants[new.number] = new
            self._manager.run(grant, pages, new.number)
        return Exclusive(self._manager, new)

    def _make_own(self, mapping: Mapping, pages: PageNumbers, device: int | None) -> None:
        """Let pages have frames of their own, where their owner reaches them."""
        manager = self._manager
        if device is None:
            manager.make_writable(mapping, pages)
            found = np.empty(len(pages), np.uint32)
            far = found[: on_devices(manager.memory.state, pages, found)]
            node = mapping.node
            manager.memory.ensure(node, len(far))
        else:
            node, lacks = manager.mirrors[device].node, np.empty(len(pages), np.bool_)
            room = int(lacking(manager.memory.state, pages, node, True, lacks))
            manager.make_writable(mapping, pages, node=node, room=room)
            far = pages[lacks]
        if len(far):
            manager.copying(migrate_pages, len(far), far, node, np.empty(len(far), np.bool_))

    def holders_of(self, pages: PageNumbers) -> npt.NDArray[np.uint32]:
        """Return the numbers of the grants that hold pages, (n,); 0: none."""
        numbers = np.empty(len(pages), np.uint32)
        holders(self._manager.memory.state, pages, numbers)
        return numbers

    def revoke(self, index: Index, pages: PageNumbers, by: int | None = None) -> None:
        """Take pages from their owners, who are told first.

        :param by: a device, which keeps what it has itself
        """
        numbers = self.holders_of(pages)
        for number in distinct(numbers[numbers != 0]).tolist():
            if by is not None and self._grants[number].device == by:
                continue
            mine = numbers == number
            self._grants[number].tell(distinct(index[mine]))
            self.revoked += self.end(pages[mine], number)

    def revoke_from(self, mapping: Mapping, start: int = 0) -> None:
        """Take all pages of a mapping from ``start`` on from their owners."""
        for held in [g for g in self._grants.values() if g.mapping is mapping]:
            index = held.index[(held.index >= start) & (held.index < mapping.pages)]
            pages, _ = mapping.locate(self._manager.memory, index, create=False)
            self.revoke(index, pages)

    def release(self, pages: PageNumbers) -> None:
        """End the exclusive access to pages, whoever has it; nobody is told."""
        numbers = self.holders_of(pages)
        for number in distinct(numbers[numbers != 0]).tolist():
            self.end(pages[numbers == number], number)

    def end(self, pages: PageNumbers, number: int) -> int:
        """End one owner's access to pages; return how many it had of them."""
        ended = int(self._manager.run(take_back, pages, number))
        held = self._grants[number]
        held.left -= ended
        if not held.left:
            del self._grants[number]
        return ended
