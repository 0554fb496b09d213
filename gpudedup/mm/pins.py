"""Pins and spliced buffers: holders of frames that are no aliases.

A pinned frame is not freed, moved or protected, whatever happens to the pages it was pinned by.

A holder that is dropped while it pins frames is named by a ResourceWarning. Its thread may hold the
manager's lock, in the midst of a pass: the frames are unpinned by the manager's next call.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Self

import numpy as np

from gpudedup.arguments import Index, as_data
from gpudedup.errors import UsageError
from gpudedup.mm.core import ManagerCore
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.memory import Memory
from gpudedup.mm.memory.pools import Frames, Pages
from gpudedup.mm.passes.access import UNPINNED, note_pin_writes, remove_pins
from gpudedup.mm.state.arrays import PageNumbers


def _unpin(memory: Memory, frames: Frames, written: PageNumbers | None, is_file: bool) -> None:
    """Unpin frames; the pages of those pinned for writing count as written."""
    if written is not None:
        note_pin_writes(memory.state, written, frames, is_file)
    remove_pins(memory.state, frames)


class _Holder:
    """Frames that stay pinned until released.

    :param written: pages of frames pinned for writing, (n,) uint32; None: for reading
    """

    def __init__(
        self,
        manager: ManagerCore,
        mapping: Mapping,
        index: Index,
        frames: Frames,
        written: PageNumbers | None = None,
    ) -> None:
        self._manager = manager
        self.mapping = mapping
        self.index = index
        self._written = written
        self._frames: Frames | None = frames

    def _held(self) -> Frames:
        if self._frames is None or UNPINNED in self._frames[:1]:
            raise UsageError(f"pages of {self.mapping.name!r} were already let go")
        self._manager.memory.settle()
        return self._frames

    def _read(self) -> Pages:
        with self._manager.lock:
            frames = self._held()
            pages = np.empty((len(frames), self._manager.page_size), np.uint8)
            self._manager.memory.read(frames, pages)
            return pages

    def _let_go(self) -> None:
        with self._manager.lock:
            if self._frames is not None:
                _unpin(self._manager.memory, self._frames, self._written, self.mapping.is_file)
                self._frames = None

    def __del__(self) -> None:
        frames, self._frames = getattr(self, "_frames", None), None
        if frames is None or not len(frames):
            return
        # Not self, nor anything that refers to the manager: both would be kept alive.
        self._manager.dropped.append(
            partial(_unpin, self._manager.memory, frames, self._written, self.mapping.is_file)
        )
        warnings.warn(
            f"{len(frames)} pages of {self.mapping.name!r} were pinned until their "
            f"{type(self).__name__} was dropped",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )

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
        super().__init__(manager, mapping, index, frames, pages if write else None)

    def read(self) -> Pages:
        """Return what the pinned frames hold, (n, page_size) uint8.

        :raises UsageError: after :meth:`unpin`
        """
        return self._read()

    def write(self, data: Any, offset: int | None = None) -> None:
        """Write to the pinned frames, (n, k) uint8; no protection is broken.

        :raises UsageError: if they were pinned for reading only, or are not pinned any more
        """
        if self._written is None:
            raise UsageError(f"pages of {self.mapping.name!r} are pinned for reading")
        with self._manager.lock:
            frames = self._held()
            data = as_data(data, len(frames), self._manager.page_size, offset)
            self._manager.memory.write(frames, data, offset or 0)

    def unpin(self) -> None:
        """Unpin; pages pinned for writing count as written. Calling it again does nothing."""
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
        self._let_go()

    def __exit__(self, *_: object) -> None:
        self.close()
