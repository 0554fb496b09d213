"""Pins and spliced buffers: holders of frames that are no aliases.

A pinned frame is not freed, moved or protected, whatever happens to the pages it was pinned by.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from gpudedup.arguments import Index, as_data
from gpudedup.errors import UsageError
from gpudedup.mm.core import ManagerCore
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.pools import Frames, Pages
from gpudedup.mm.passes.access import note_pin_writes, remove_pins
from gpudedup.mm.state.arrays import PageNumbers


class _Holder:
    """Frames that stay pinned until released."""

    def __init__(
        self, manager: ManagerCore, mapping: Mapping, index: Index, frames: Frames
    ) -> None:
        self._manager = manager
        self.mapping = mapping
        self.index = index
        self._frames: Frames | None = frames

    def _held(self) -> Frames:
        if self._frames is None:
            raise UsageError(f"pages of {self.mapping.name!r} were already let go")
        return self._frames

    def _read(self) -> Pages:
        with self._manager.lock:
            frames = self._held()
            pages = np.empty((len(frames), self._manager.page_size), np.uint8)
            self._manager.memory.read(frames, pages)
            return pages

    def _let_go(self) -> None:
        if self._frames is not None:
            remove_pins(self._manager.memory.state, self._frames)
            self._frames = None

    def __enter__(self) -> Self:
        return self


class Pin(_Holder):
    """Frames of pages ``index``, (n,) int64, pinned for direct I/O or a device's DMA."""

    def __init__(
        self,
        manager: ManagerCore,
        mapping: Mapping,
        index: Index,
        pages: PageNumbers,
        frames: Frames,
        write: bool,
    ) -> None:
        super().__init__(manager, mapping, index, frames)
        self._pages = pages
        self._writes = write

    def read(self) -> Pages:
        """Return what the pinned frames hold, (n, page_size) uint8.

        :raises UsageError: after :meth:`unpin`
        """
        return self._read()

    def write(self, data: Any, offset: int | None = None) -> None:
        """Write to the pinned frames, (n, k) uint8; no protection is broken.

        :raises UsageError: if they were pinned for reading only, or are not pinned any more
        """
        if not self._writes:
            raise UsageError(f"pages of {self.mapping.name!r} are pinned for reading")
        with self._manager.lock:
            frames = self._held()
            data = as_data(data, len(frames), self._manager.page_size, offset)
            self._manager.memory.write(frames, data, offset or 0)

    def unpin(self) -> None:
        """Unpin; pages pinned for writing count as written. Calling it again does nothing."""
        with self._manager.lock:
            if self._frames is not None and self._writes:
                state = self._manager.memory.state
                note_pin_writes(state, self._pages, self._frames, self.mapping.is_file)
            self._let_go()

    def __exit__(self, *_: object) -> None:
        self.unpin()


class Buffer(_Holder):
    """Frames that pages ``index``, (n,) int64, had when they were spliced, pinned."""

    def bytes(self) -> bytes:
        """Return what was spliced, n · page_size bytes.

        :raises UsageError: after :meth:`close`
        """
        return self._read().tobytes()

    def close(self) -> None:
        """Unpin the frames. Calling it again does nothing."""
        with self._manager.lock:
            self._let_go()

    def __exit__(self, *_: object) -> None:
        self.close()
