"""An owner's exclusive access to pages, until they are revoked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import Index, as_data, as_index, as_words
from gpudedup.errors import RevokedError
from gpudedup.mm.access import AccessPaths
from gpudedup.mm.device import ManagedDevice
from gpudedup.mm.grants import Grant
from gpudedup.mm.memory.pools import Pages
from gpudedup.mm.passes.exclusive import add_words
from gpudedup.mm.state.arrays import PageNumbers


class Exclusive:
    """Exclusive access to pages ``index``, (n,) int64, ascending, of ``mapping``."""

    def __init__(self, manager: AccessPaths, grant: Grant) -> None:
        self._manager, self._grant = manager, grant
        self.mapping, self.index = grant.mapping, grant.index

    @property
    def left(self) -> int:
        """Return how many of the pages are still held."""
        return self._grant.left

    def read(self, index: Any) -> Pages:
        """Return what pages hold, (n, page_size) uint8.

        :raises RevokedError: if a page is not held any more
        """
        with self._manager.lock:
            pages = self._held(as_index(index))
            out = np.empty((len(pages), self._manager.page_size), np.uint8)
            self._manager.memory.read(self._manager.memory.state.frame[pages], out)
            return out

    def write(self, index: Any, data: Any, *, offset: int | None = None) -> None:
        """Write to pages, as :meth:`gpudedup.mm.manager.MemoryManager.write` does.

        :raises RevokedError: if a page is not held any more; then nothing is written
        """
        index = as_index(index)
        data = as_data(data, len(index), self._manager.page_size, offset)
        with self._manager.lock:
            pages = self._held(index)
            self._manager.memory.write(self._manager.memory.state.frame[pages], data, offset or 0)

    def atomic_add(self, index: Any, word: Any, value: Any) -> npt.NDArray[np.uint64]:
        """Add to one 64-bit word of each page; return the values before, (n,) uint64.

        :param word, value: as for :meth:`gpudedup.mm.device.ManagedDevice.atomic_add`
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
        """End the grant. A second call does nothing."""
        with self._manager.lock:
            if self._grant.left:
                index = self.index[self.index < self.mapping.pages]
                pages, _ = self._manager.memory.locate(self.mapping, index)
                self._manager.grants.end(pages, self._grant.number)

    def _held(self, index: Index) -> PageNumbers:
        pages, _ = self._manager.memory.locate(self.mapping, index)
        numbers = self._manager.grants.holders_of(pages)
        if (numbers != self._grant.number).any():
            lost = int(index[numbers != self._grant.number][0])
            raise RevokedError(f"mapping {self.mapping.name!r}: page {lost} is not held any more")
        return pages
