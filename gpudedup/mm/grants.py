"""Grants of exclusive access: one owner holds a page, until any other touch revokes it.

A touch calls the owner's callback first, in a thread of its own, and waits for it no longer than
:data:`PATIENCE_S`, whatever the callback does or raises. Meanwhile the manager's lock is free: the
owner can use its pages, and others theirs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import Index, distinct
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.memory import Memory
from gpudedup.mm.passes.exclusive import grant, holders, take_back
from gpudedup.mm.state.arrays import PageNumbers
from gpudedup.threads import start

PATIENCE_S = 0.1
"""Seconds that a touch waits for owners' callbacks."""

OnRevoke = Callable[[Mapping, npt.NDArray[np.int64]], None]
"""Called with the mapping and the (n,) indices of pages to be revoked, which the owner still has:
it may read and write them by its handle. Another touch of them from it waits, and is not waited
for."""


@dataclass(eq=False, slots=True)
class _Call:
    """A call of an owner's callback.

    :param index: pages it is about
    :param deadline: by ``time.monotonic``, until when it is waited for
    :param done: True once it has returned or raised
    """

    index: frozenset[int]
    deadline: float
    done: bool = False

    @property
    def pending(self) -> bool:
        """Return whether it is to be waited for."""
        return not self.done and time.monotonic() < self.deadline


@dataclass(eq=False, slots=True)
class Grant:
    """One owner's exclusive access.

    :param number: number of the grant
    :param mapping: mapping of the pages
    :param index: (n,) int64, pages granted, ascending
    :param held: (1,) int64, pages still held; the passes count them, so that no exception comes
        between a page and its count
    :param device: number of the device that holds them; None: the host
    :param on_revoke: the owner's callback, if any
    :param calls: calls of it so far
    """

    number: int
    mapping: Mapping
    index: Index
    device: int | None
    on_revoke: OnRevoke | None
    calls: list[_Call] = field(default_factory=list)
    held: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))

    @property
    def left(self) -> int:
        """Return how many pages are still held."""
        return int(self.held[0])

    def tell(self, index: Index, ended: threading.Condition) -> list[_Call]:
        """Call ``on_revoke`` for pages that it was not called for; return calls to wait for.

        :param ended: notified at the end of each call
        :raises ThreadError: if no thread can be started for it; the pages stay granted, so that the
            next touch calls it
        """
        if self.on_revoke is None:
            return []
        wanted = frozenset(index.tolist())
        if new := wanted.difference(*(call.index for call in self.calls)):
            call = _Call(new, time.monotonic() + PATIENCE_S)
            arguments = (call, np.array(sorted(new), np.int64), ended)
            name = "gpudedup-on-revoke"
            thread = threading.Thread(target=self._call, args=arguments, daemon=True, name=name)
            self.calls.append(call)
            try:
                start(thread)
            except BaseException:
                if thread.ident is None:
                    # The next touch calls it.
                    self.calls.remove(call)
                raise
        return [call for call in self.calls if call.index & wanted and call.pending]

    def _call(self, call: _Call, index: Index, ended: threading.Condition) -> None:
        try:
            assert self.on_revoke
            self.on_revoke(self.mapping, index)
        except BaseException:
            # What the owner raises is nobody else's: its pages are revoked all the same.
            pass
        with ended:
            call.done = True
            ended.notify_all()


class Grants:
    """All grants of a manager, and pages ``revoked`` so far; callers hold the manager's lock.

    :ivar waits: times that the lock was free while owners were told
    """

    def __init__(self, memory: Memory, lock: threading.RLock) -> None:
        self._memory = memory
        self._ended = threading.Condition(lock)
        self._grants: dict[int, Grant] = {}
        self._last = 0
        self.revoked = self.waits = 0

    def add(
        self,
        mapping: Mapping,
        index: Index,
        pages: PageNumbers,
        on_revoke: OnRevoke | None,
        device: int | None,
    ) -> Grant:
        """Grant pages, each the only alias of a frame that no grant holds, to one owner.

        :param index: (n,) int64, ascending, distinct
        :param device: number of the device that holds them; None: the host
        """
        while self._last in self._grants or self._last == 0:
            self._last = (self._last + 1) % (1 << 32)
        new = Grant(self._last, mapping, index, device, on_revoke)
        if len(index):
            self._grants[new.number] = new
            self._memory.run(grant, pages, new.number, new.held)
        return new

    def holders_of(self, pages: PageNumbers) -> npt.NDArray[np.uint32]:
        """Return the numbers of the grants that hold pages, (n,); 0: none."""
        numbers = np.empty(len(pages), np.uint32)
        holders(self._memory.state, pages, numbers)
        return numbers

    def revoke(self, index: Index, pages: PageNumbers, by: int | None = None) -> bool:
        """End the grants on pages, but those of device ``by``, after their owners were told.

        :return: whether owners were waited for. The lock was free then: the caller looks again, at
            pages that may be others, and has to call this again.
        """
        return self._wait(self._tell(index, pages, by))

    def revoke_from(self, mapping: Mapping, start: int = 0) -> None:
        """Revoke all pages of a mapping from ``start`` on."""
        calls: list[_Call] | None = None
        while calls is None or self._wait(calls):
            # Meanwhile it may have been dropped, and its number be another's.
            self._memory.locate(mapping, np.empty(0, np.int64))
            calls = []
            for held in [g for g in self._grants.values() if g.mapping is mapping]:
                if not held.left:
                    # It ended with another's, or an exception came between its last page and this.
                    self._grants.pop(held.number, None)
                    continue
                index = held.index[(held.index >= start) & (held.index < mapping.pages)]
                pages, _ = self._memory.locate(mapping, index)
                calls += self._tell(index, pages, None)

    def _tell(self, index: Index, pages: PageNumbers, by: int | None) -> list[_Call]:
        """End the grants whose owners know; tell others, and return calls to wait for."""
        calls = []
        numbers = self.holders_of(pages)
        for number in distinct(numbers[numbers != 0]).tolist():
            held = self._grants[number]
            if by is not None and held.device == by:
                continue
            mine = numbers == number
            pending = held.tell(distinct(index[mine]), self._ended)
            if not pending:
                self.revoked += self.end(pages[mine], number)
            calls += pending
        return calls

    def _wait(self, calls: list[_Call]) -> bool:
        """Wait for calls, with the manager's lock free; return whether there are any."""
        self.waits += bool(calls)
        while left := [call for call in calls if call.pending]:
            self._ended.wait(max(call.deadline for call in left) - time.monotonic())
        return bool(calls)

    def release(self, pages: PageNumbers) -> None:
        """End all grants of pages, without calling ``on_revoke``."""
        numbers = self.holders_of(pages)
        for number in distinct(numbers[numbers != 0]).tolist():
            self.end(pages[numbers == number], number)

    def end(self, pages: PageNumbers, number: int) -> int:
        """End one grant for pages; return how many pages it held."""
        held = self._grants[number]
        ended = int(self._memory.run(take_back, pages, number, held.held))
        if not held.left:
            del self._grants[number]
        return ended
