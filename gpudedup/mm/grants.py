"""Grants of exclusive access: one owner holds a page, until any other touch revokes it.

A touch calls the owner's callback first, in a thread of its own, waits for it no longer than
:data:`PATIENCE_S`, and proceeds whatever the callback does or raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import Index, distinct
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.memory import Memory
from gpudedup.mm.passes.exclusive import grant, holders, take_back
from gpudedup.mm.state.arrays import PageNumbers

PATIENCE_S = 0.1
"""Seconds that a touch waits for the owner's callback."""

OnRevoke = Callable[[Mapping, npt.NDArray[np.int64]], None]
"""Called with the mapping and the (n,) indices of pages to be revoked, under the manager's lock:
calling the manager from it blocks until the touch is over."""


@dataclass(eq=False, slots=True)
class Grant:
    """One owner's exclusive access.

    :param number: number of the grant
    :param mapping: mapping of the pages
    :param index: (n,) int64, pages granted, ascending
    :param left: pages still held
    :param device: number of the device that holds them; None: the host
    :param on_revoke: the owner's callback, if any
    """

    number: int
    mapping: Mapping
    index: Index
    left: int
    device: int | None
    on_revoke: OnRevoke | None

    def tell(self, index: Index) -> bool:
        """Call ``on_revoke``; return whether it returned in time, without an error."""
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


class Grants:
    """All grants of a manager, and pages ``revoked`` so far; callers hold the manager's lock."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._grants: dict[int, Grant] = {}
        self._last = 0
        self.revoked = 0

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
        new = Grant(self._last, mapping, index, len(index), device, on_revoke)
        if new.left:
            self._grants[new.number] = new
            self._memory.run(grant, pages, new.number)
        return new

    def holders_of(self, pages: PageNumbers) -> npt.NDArray[np.uint32]:
        """Return the numbers of the grants that hold pages, (n,); 0: none."""
        numbers = np.empty(len(pages), np.uint32)
        holders(self._memory.state, pages, numbers)
        return numbers

    def revoke(self, index: Index, pages: PageNumbers, by: int | None = None) -> None:
        """Call ``on_revoke`` of grants on pages, then end these; device ``by`` keeps its own."""
        numbers = self.holders_of(pages)
        for number in distinct(numbers[numbers != 0]).tolist():
            if by is not None and self._grants[number].device == by:
                continue
            mine = numbers == number
            self._grants[number].tell(distinct(index[mine]))
            self.revoked += self.end(pages[mine], number)

    def revoke_from(self, mapping: Mapping, start: int = 0) -> None:
        """Revoke all pages of a mapping from ``start`` on."""
        for held in [g for g in self._grants.values() if g.mapping is mapping]:
            index = held.index[(held.index >= start) & (held.index < mapping.pages)]
            pages, _ = self._memory.locate(mapping, index)
            self.revoke(index, pages)

    def release(self, pages: PageNumbers) -> None:
        """End all grants of pages, without calling ``on_revoke``."""
        numbers = self.holders_of(pages)
        for number in distinct(numbers[numbers != 0]).tolist():
            self.end(pages[numbers == number], number)

    def end(self, pages: PageNumbers, number: int) -> int:
        """End one grant for pages; return how many pages it held."""
        ended = int(self._memory.run(take_back, pages, number))
        held = self._grants[number]
        held.left -= ended
        if not held.left:
            del self._grants[number]
        return ended
