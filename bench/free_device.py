"""A device that costs nothing: its kernels do not run, what they would find is known before.

What the host does around a card can be measured without one. The copies of results, which a card's
copy engine would make, are made by the caller's thread; their seconds are counted apart, but the
first touch of a page of host memory is not: that is the host's work on any machine.
"""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import Digests, Ids, expected

from gpudedup.compiled.memory import zeros

CONTENT, ZERO, FOLLOWER = 0, 1, 5
RESIDENT = 1 << 44
"""Address at which resident pages begin; no bytes are there."""

PAGE_BYTES = 4096
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Found:
    """What a device finds out about its pages, by number.

    :param digests: (p, 2) uint64
    :param classes: (p,) uint8 before they are settled
    :param heads: (p,) uint64, number of the anchor
    :param settled: (p,) uint8, the classes of the result
    :param lowest: (p,) uint64, number of the lowest page with the same bytes
    :param counts: (4,) uint32, pages left, zero and beyond the lowest; contents of several
    """

    digests: Digests
    classes: npt.NDArray[np.uint8]
    heads: npt.NDArray[np.uint64]
    settled: npt.NDArray[np.uint8]
    lowest: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, ids: Ids) -> Found:
        """Return what is found of pages of contents ``ids``, 0 being the zero page."""
        lowest = expected(ids)
        settled = np.where(ids == 0, ZERO, CONTENT).astype(np.uint8)
        follows = (ids != 0) & (lowest != np.arange(len(ids)))
        low = ids.astype(np.uint64) * _GOLDEN
        return cls(
            np.column_stack([low, ~low]),
            np.where(follows, FOLLOWER, settled).astype(np.uint8),
            lowest.astype(np.uint64),
            settled,
            lowest.astype(np.uint64),
            np.array([0, (ids == 0).sum(), follows.sum(), len(set(lowest[follows]))], np.uint32),
        )


@dataclass(eq=False)
class Memory:
    """Device memory, which is nothing but an address."""

    address: int
    size: int


class FreeDevice:
    """Implements :class:`gpudedup.devices.base.Device`.

    :param found: what its kernels find
    :ivar own: processor seconds of copying results, which a card's copy engine would do
    """

    name = "free (0)"
    multiprocessors = 132

    def __init__(self, found: Found) -> None:
        self.found, self.own = found, 0.0
        self._next = count(1)
        self._lock = threading.Lock()
        self._held: dict[int, tuple[npt.NDArray[Any], int]] = {}
        self._pinned: dict[int, list[npt.NDArray[np.uint8]]] = {}

    def free_memory(self) -> int:
        """Return the bytes of a large card."""
        return 128 << 30

    def allocate(self, size: int) -> Memory:
        """Return an address."""
        return Memory(next(self._next) << 32, size)

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Return touched host memory, kept for reuse as CuPy's pool keeps pinned memory."""
        with self._lock:
            kept = self._pinned.setdefault(size, [])
            whole = kept.pop() if kept else None
        if whole is None:
            whole = zeros((size,), np.uint8)
            whole[::PAGE_BYTES] = 0
        lent = np.frombuffer(whole.data, np.uint8)
        weakref.finalize(lent, kept.append, whole).atexit = False
        return lent

    def stream(self) -> None:
        """Make no stream."""

    def upload(self, address: int, source: Any, stream: Any) -> None:
        """Do nothing."""

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Do nothing."""

    def fill(self, address: int, byte: int, size: int, stream: Any) -> None:
        """Do nothing."""

    def download(self, target: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Copy what the kernels found for the chunk whose results begin at ``address``."""
        held, first = self._held[address]
        # First touch is the host's work.
        target.reshape(-1).view(np.uint8)[::PAGE_BYTES] = 0
        started = time.thread_time()
        target[...] = held[first : first + len(target)].view(target.dtype)
        with self._lock:
            self.own += time.thread_time() - started

    def launch(
        self,
        kernel: str,
        blocks: int,
        arguments: tuple[Any, ...],
        stream: Any,
        *,
        page_size: int = 0,
        layout: str = "",
    ) -> None:
        """Note where the results of a chunk would lie."""
        if kernel == "insert":
            digests, first = int(arguments[0]), int(arguments[1])
            self._held[digests + 16 * first] = (self.found.digests, first)
        elif kernel == "resolve":
            first, classes, heads = (int(arguments[at]) for at in (2, 4, 5))
            self._held[classes] = (self.found.classes, first)
            self._held[heads] = (self.found.heads, first)
        elif kernel == "settle":
            classes, heads, counts = (int(arguments[at]) for at in (3, 4, 9))
            first = self._held[classes][1]
            self._held[classes] = (self.found.settled, first)
            self._held[heads] = (self.found.lowest, first)
            self._held[counts] = (self.found.counts, 0)

    def record(self, stream: Any) -> float:
        """Return the time."""
        return time.perf_counter()

    def wait(self, stream: Any, event: float) -> None:
        """Do nothing."""

    def finish(self, event: float) -> None:
        """Do nothing."""

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds between two events."""
        return end - start

    def synchronize(self) -> None:
        """Do nothing."""

    def trim(self) -> None:
        """Do nothing."""

    def holds(self, address: int) -> bool:
        """Return whether ``address`` is a resident page's."""
        return address >= RESIDENT
