"""Write dirty pages of files back, through the callbacks of their mappings.

Pages are clean before their callback is called, and dirty again if it raises. A callback cannot
call its manager: whatever takes the manager's lock calls :meth:`Writebacks.refuse_callback` first.
"""

from __future__ import annotations

import threading

import numpy as np

from gpudedup.arguments import Index, distinct
from gpudedup.errors import UsageError
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.memory import Memory
from gpudedup.mm.passes.access import mark_dirty, take_dirty
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES, Page, PageNumbers

WRITEBACK_BYTES = 8 << 20
"""Bytes of pages per call of a writeback."""


class Writebacks:
    """Writes dirty pages back; callers hold the manager's lock.

    :param mappings: the manager's mappings by number, which it keeps up to date
    :ivar written_back: pages written back so far
    """

    def __init__(self, memory: Memory, mappings: dict[int, Mapping]) -> None:
        self._memory = memory
        self._mappings = mappings
        self._calling = threading.Lock()
        self.written_back = 0

    def refuse_callback(self) -> None:
        """Raise UsageError while a callback runs: it called its manager."""
        if self._calling.locked():
            raise UsageError("a writeback cannot call its manager")

    def write(self, mapping: Mapping, index: Index, pages: PageNumbers) -> int:
        """Write the dirty ones among pages of one file back; return how many.

        A call of the callback has :data:`WRITEBACK_BYTES` at most, so that it takes little memory.

        :param index: (n,) int64, where ``pages``, (n,) uint32, are in the file
        """
        dirty = np.flatnonzero(self._memory.state.flags[pages] & Page.DIRTY.value)
        rows = dirty[np.sort(np.unique(pages[dirty], return_index=True)[1])]
        index, pages = index[rows], pages[rows]
        step = max(1, WRITEBACK_BYTES // self._memory.page_size)
        for start in range(0, len(pages), step):
            part = slice(start, start + step)
            self._write_batch(mapping, index[part], pages[part])
        return len(pages)

    def _write_batch(self, mapping: Mapping, index: Index, pages: PageNumbers) -> None:
        """Write dirty pages back; they stay dirty if that raises."""
        self.refuse_callback()
        try:
            # Clean first, as the kernel does: a store by a device from now on makes them dirty.
            self._memory.run(take_dirty, pages)
            if mapping.writeback is not None:
                data = np.empty((len(pages), self._memory.page_size), np.uint8)
                self._memory.read(self._memory.state.frame[pages], data)
                with self._calling:
                    mapping.writeback(index, data)
        except BaseException:
            mark_dirty(self._memory.state, pages)
            raise
        self.written_back += len(pages)

    def write_all(self, mapping: Mapping) -> int:
        """Write all dirty pages of one file back; return how many."""
        places = mapping.places()
        inside = np.arange(LEAF_PAGES)
        index = (places[:, None] * LEAF_PAGES + inside).reshape(-1)
        leaves = mapping.directory[places].astype(np.int64)
        pages = (leaves[:, None] * LEAF_PAGES + inside).reshape(-1)
        return self.write(mapping, index, pages.astype(np.uint32))

    def write_pages(self, pages: PageNumbers) -> tuple[int, dict[str, str]]:
        """Write the dirty ones among pages of any files back.

        :return: how many; and of files whose writeback failed the name, and why: their pages that
            were not written are dirty still
        """
        state = self._memory.state
        failed: dict[str, str] = {}
        pages = pages[state.flags[pages] & Page.DIRTY.value != 0]
        numbers = state.leaf_mapping[pages >> LEAF_BITS]
        written = 0
        for number in distinct(numbers).tolist():
            own = pages[numbers == number]
            place = state.leaf_place[own >> LEAF_BITS].astype(np.int64)
            index = place * LEAF_PAGES + own % LEAF_PAGES
            mapping = self._mappings[number]
            before = self.written_back
            try:
                self.write(mapping, index, own)
            except Exception as error:
                failed[mapping.name] = f"{type(error).__name__}: {error}"
            written += self.written_back - before
        return written, failed
