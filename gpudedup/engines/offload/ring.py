"""Copy host pages to devices: threads fill small pinned pieces, each uploaded on its own.

The pieces form a ring that stays in the processor's last-level cache, so a page's bytes leave
memory once. No thread waits for another: pieces are placed in the order of their rows, and a piece
that is filled too early is placed by the thread that fills the one before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gpudedup.devices.base import Bytes, Device, Event
from gpudedup.engines.base import PageSource, Partition
from gpudedup.engines.offload.staging import stage_rows

PIECE_BYTES = 4 << 20
"""Bytes of pages per piece: copying them takes many times what Python takes to queue them."""

RING_BYTES = 64 << 20
"""Bytes of all pieces at most, but at least a page each: they stay in the last-level cache."""

UPLOADING = 4
"""Pieces beyond one for each thread: they are uploaded while the threads fill the others."""

POLL_S = 0.1
"""Seconds after which a thread that waits looks whether the scan was stopped."""

_Item = TypeVar("_Item")


@dataclass(eq=False, slots=True)
class Piece:
    """Pinned memory for some pages.

    :param pages: bytes of the pages, one after another
    :param rows: (p,) int64, row of each page
    :ivar count: pages in it
    :ivar device: device that reads it until ``uploaded``; None: no device does
    """

    pages: Bytes
    rows: npt.NDArray[np.int64]
    count: int = 0
    device: Device | None = None
    uploaded: Event = None


class Order:
    """Calls functions in the order of their numbers, in whatever order they come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._next = 0

    def call(self, number: int, function: Callable[[], None]) -> None:
        """Call ``function``, and those that waited for it, once all lower numbers were called."""
        with self._lock:
            self._waiting[number] = function
            while self._next in self._waiting:
                self._waiting.pop(self._next)()
                self._next += 1


@dataclass(slots=True)
class Task:
    """Rows to copy.

    :param start: first row; the first that no thread has taken
    :param stop: last row + 1
    :param number: number of the next piece in ``order``
    :param place: called in order with each piece, and whether it is the last: queues the upload,
        and sets ``device`` and ``uploaded`` of the piece
    """

    start: int
    stop: int
    number: int
    order: Order
    place: Callable[[Piece, bool], None]


class Ring:
    """Pieces of pinned memory, and the tasks of the threads that fill them.

    :param result: class and representative of rows that are not uploaded are written
    :param piece_bytes: bytes per piece at most, but at least a page
    :param drop_zeros: do not upload zero pages
    :param pinned: allocates pinned memory, which all devices can read
    :ivar pages: pages per piece
    :ivar seconds: of copying, summed over threads
    """

    def __init__(
        self,
        source: PageSource,
        result: Partition,
        *,
        threads: int,
        piece_bytes: int,
        drop_zeros: bool,
        pinned: Callable[[int], Bytes],
    ) -> None:
        self._source, self._result, self._drop_zeros = source, result, drop_zeros
        count = threads + UPLOADING
        self.pages = max(1, min(piece_bytes, RING_BYTES // count) // source.page_size)
        self.seconds = 0.0
        self._taking, self._adding = threading.Lock(), threading.Lock()
        self._task: Task | None = None
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._free: SimpleQueue[Piece] = SimpleQueue()
        for _ in range(count):
            pages = pinned(self.pages * source.page_size)
            self._free.put(Piece(pages, np.empty(self.pages, np.int64)))

    def pieces(self, rows: int) -> int:
        """Return the pieces of a task of ``rows`` rows."""
        return -(-rows // self.pages)

    def add(self, task: Task | None) -> None:
        """Queue a task; None ends a thread."""
        self._tasks.put(task)

    def work(self, stop: threading.Event) -> None:
        """Fill pieces until a task is None or ``stop`` is set; the body of each thread.

        :raises DeviceError: if a device fails
        """
        while (piece := _get(self._free, stop)) is not None:
            if piece.device is not None:
                piece.device.finish(piece.uploaded)
                piece.device = None
            # Taken with a piece at hand: those behind wait for this one to be placed.
            part = self._take(stop)
            if part is None:
                return
            self._fill(piece, part)
            part.order.call(part.number, _Placing(self._free, piece, part))

    def _take(self, stop: threading.Event) -> _Part | None:
        """Return the next rows to copy; None: there are no more."""
        with self._taking:
            task = self._task or _get(self._tasks, stop)
            if task is None:
                return None
            end = min(task.start + self.pages, task.stop)
            part = _Part(task.start, end, task.number, task.order, task.place, end == task.stop)
            task.start, task.number = end, task.number + 1
            self._task = None if part.last else task
            return part

    def _fill(self, piece: Piece, part: _Part) -> None:
        started = time.perf_counter()
        source, result = self._source, self._result
        piece.count = stage_rows(
            part.start, part.stop, source.page_size, source.first_row, source.fd, source.base,
            result.classes, result.representative, self._drop_zeros, piece.pages, piece.rows,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        with self._adding:
            self.seconds += seconds


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a task that fill a piece; ``last``: the task has no more."""

    start: int
    stop: int
    number: int
    order: Order
    place: Callable[[Piece, bool], None]
    last: bool


@dataclass(frozen=True, slots=True)
class _Placing:
    """Place a piece; it may be filled again then."""

    free: SimpleQueue[Piece]
    piece: Piece
    part: _Part

    def __call__(self) -> None:
        self.part.place(self.piece, self.part.last)
        self.free.put(self.piece)


def _get(queue: SimpleQueue[_Item], stop: threading.Event) -> _Item | None:
    """Return the next item; None if ``stop`` is set meanwhile."""
    while not stop.is_set():
        try:
            return queue.get(timeout=POLL_S)
        except Empty:
            continue
    return None
