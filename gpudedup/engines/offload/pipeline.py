"""Stage, upload, digest, group, compare and settle the chunks of one device, overlapped.

Three streams: uploads, kernels, downloads. A *slot* holds the buffers of one chunk; while the
device works on one slot, the host's threads (``ring.py``) fill the next. Each page crosses the bus
once; anchors are kept on the device while there is room, to compare later pages with. Aligned pages
in the device's memory are read in place. What leaves the device is settled: the lowest page with
the same bytes is known.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.memory import zeros
from gpudedup.devices.base import Device, DeviceMemory, Event, OutOfDeviceMemory
from gpudedup.engines.base import PageSource, Partition, Tally
from gpudedup.engines.offload.ring import POLL_S, Order, Piece, Ring, Task
from gpudedup.engines.offload.staging import deliver
from gpudedup.errors import DeviceError, UsageError
from gpudedup.kernels import KERNELS, blocks, layouts

SLOTS = 3
"""Chunks in flight: one is staged, one is uploaded, one is computed."""

ALIGNMENT = 16
"""Alignment in bytes of pages that kernels read in place."""

MAX_PAGES = 2**32 - 2
"""Pages per device: kernels number them with 32 bits."""

BYTES_OF_PAGE = 16 + 8
"""Device memory per page, besides the tables: its digest, and the address of its bytes."""

BYTES_OF_SLOT = 8 + 8 + 4
"""Device memory per slot of the tables: of contents, of words, and the lowest page of a word."""

BYTES_IN_SLOT = 1 + 8 + 8
"""Device memory per page of a slot, besides its bytes: class, head, slot in a table."""


def budget(device: Device, memory: int | None) -> int:
    """Return the bytes to use of a device: nine tenths of the free ones, at most ``memory``."""
    free = device.free_memory() * 9 // 10
    return free if memory is None else min(free, memory)


def table_slots(pages: int) -> int:
    """Return the number of slots in a table of ``pages`` pages."""
    return pages + pages // 2 + 1


def words_of_marks(pages: int) -> int:
    """Return the 32-bit words that have a bit for each of ``pages`` pages."""
    return pages // 32 + 1


def bytes_of_notes(pages: int) -> int:
    """Return the device memory for notes of ``pages`` pages, from the first to the last chunk."""
    tables = table_slots(pages) * BYTES_OF_SLOT + 4
    return pages * BYTES_OF_PAGE + tables + 4 * words_of_marks(pages)


def chunk_that_fits(spare: int, page_size: int) -> int:
    """Return bytes of pages per chunk, at least a page, so that all slots fit into ``spare``."""
    return max(1, spare // SLOTS // (page_size + BYTES_IN_SLOT)) * page_size


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows ``start .. stop - 1`` at ``address`` on the device, or 0: in files or host memory."""

    start: int
    stop: int
    address: int = 0

    @property
    def in_place(self) -> bool:
        """Return whether kernels can read the pages in place."""
        return self.address != 0 and self.address % ALIGNMENT == 0


def are_one_run(chunks: Sequence[Chunk]) -> bool:
    """Return whether all rows from the first to the last are in ``chunks``, and on the device.

    The number of a page is that of its row then, but for a constant, and results can be downloaded
    to where they belong.
    """
    return all(chunk.address for chunk in chunks) and all(
        before.stop == after.start for before, after in pairwise(chunks)
    )


@dataclass(frozen=True, slots=True)
class Options:
    """Options, the same for all devices.

    :param verify: compare bytes
    :param mask: (2,) uint64, bits of the digest to keep
    :param memory: limit of bytes used per device, see :func:`budget`
    """

    verify: bool
    mask: npt.NDArray[np.uint64]
    memory: int | None


_NOTHING = np.empty(0, np.uint8)


@dataclass(slots=True)
class _Slot:
    """Host and device buffers of one chunk, and its events.

    :ivar digests_out: empty, as the next two, if results go to their rows directly
    :ivar chunk: the chunk; None: the slot is free
    :ivar first: number of its first page on the device
    :ivar count: its pages on the device so far; the host dealt with the other rows
    :ivar closed: set once all its work is queued
    """

    staging: DeviceMemory | None
    classes: DeviceMemory
    heads: DeviceMemory
    found: DeviceMemory
    digests_out: npt.NDArray[np.uint64]
    classes_out: npt.NDArray[np.uint8]
    heads_out: npt.NDArray[np.uint64]
    chunk: Chunk | None = None
    first: int = 0
    count: int = 0
    events: list[Event] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)


class Pipeline:
    """Pipeline of one device.

    :param chunks: chunks of the device, ascending
    :param result: written for the rows of the chunks, as if there were no others: what is LEFT,
        or equal to pages elsewhere, is for :mod:`gpudedup.engines.offload.reconcile`
    :param ring: copies host pages, if there are any
    :raises OutOfDeviceMemory: if tables and slots do not fit, even with no page kept
    :raises UsageError: if pages are more than :data:`MAX_PAGES`
    :ivar seconds: of work, by part
    :ivar left: LEFT rows; as ``tally`` known once it has run
    :ivar tally: counts of its other rows; pages that are not uploaded are not in it
    """

    def __init__(
        self,
        device: Device,
        source: PageSource,
        chunks: list[Chunk],
        result: Partition,
        ring: Ring | None,
        options: Options,
    ) -> None:
        self._device, self._source, self._chunks, self._result = device, source, chunks, result
        self._ring, self._options = ring, options
        self._pages = sum(chunk.stop - chunk.start for chunk in chunks)
        if self._pages > MAX_PAGES:
            raise UsageError(f"{self._pages} pages: more than one device can number ({MAX_PAGES})")
        self.seconds = {"transfer_s": 0.0, "kernel_s": 0.0}
        self.left, self.tally = 0, Tally(0, 0, 0)
        self._direct = are_one_run(chunks)
        self._rows = zeros((0 if self._direct else self._pages,), np.int64)
        self._next = 0
        self._order, self._queued = Order(), 0
        self._up, self._work, self._down = (device.stream() for _ in range(3))
        self._allocate()

    def _allocate(self) -> None:
        pages, size, chunks = self._pages, self._source.page_size, self._chunks
        of_chunk = max((c.stop - c.start for c in chunks), default=0)
        moved = [c.stop - c.start for c in chunks if not c.in_place]
        slots = min(SLOTS, len(chunks))
        usable = budget(self._device, self._options.memory)
        self._slots_of_table = table_slots(pages)
        needed = bytes_of_notes(pages) + slots * (
            max(moved, default=0) * size + of_chunk * BYTES_IN_SLOT
        )
        if needed > usable:
            raise OutOfDeviceMemory(
                f"{self._device.name}: {pages} pages need {needed} bytes of device memory, of"
                f" which {usable} may be used"
            )
        allocate = self._device.allocate
        self._digests = allocate(max(16 * pages, 1))
        self._address = allocate(max(8 * pages, 1))
        self._table = allocate(8 * self._slots_of_table)
        self._words = allocate(8 * self._slots_of_table)
        self._lowest = allocate(4 * self._slots_of_table + 4)
        self._marks = allocate(4 * words_of_marks(pages))
        self._used, self._counts = allocate(4), allocate(16)
        self._slots = [self._slot(max(moved, default=0), of_chunk) for _ in range(slots)]
        # Queued only when no allocation can fail any more: memory that is freed must be idle.
        for memory, byte in (
            (self._table, 0xFF), (self._words, 0), (self._lowest, 0xFF), (self._used, 0),
            (self._marks, 0), (self._counts, 0),
        ):  # fmt: skip
            self._device.fill(memory.address, byte, memory.size, self._work)
        self._kept_room = 0
        self._kept: DeviceMemory | None = None
        if self._options.verify:
            self._allocate_kept(min(sum(moved), (usable - needed) // size))

    def _allocate_kept(self, room: int) -> None:
        """Allocate memory to keep ``room`` pages; halve ``room`` until it fits."""
        while room:
            try:
                self._kept = self._device.allocate(room * self._source.page_size)
            except OutOfDeviceMemory:
                room //= 2
            else:
                self._kept_room = room
                return

    def _slot(self, moved: int, pages: int) -> _Slot:
        """Allocate a slot for ``pages`` pages, ``moved`` of which at most are not read in place."""
        allocate, pinned = self._device.allocate, self._device.pinned
        size, out = moved * self._source.page_size, 0 if self._direct else pages
        return _Slot(
            staging=allocate(size) if size else None,
            classes=allocate(pages),
            heads=allocate(8 * pages),
            found=allocate(8 * pages),
            digests_out=(pinned(16 * out) if out else _NOTHING).view(np.uint64).reshape(out, 2),
            classes_out=pinned(out) if out else _NOTHING,
            heads_out=(pinned(8 * out) if out else _NOTHING).view(np.uint64),
        )

    def run(self, stop: threading.Event, report: Callable[[int], None]) -> None:
        """Open the chunks in turn, and deliver their results, until ``stop`` is set.

        The device may be at work afterwards if ``stop`` was set, or if this raises.

        :param report: called with the number of rows of each chunk, once its results are delivered
        :raises DeviceError: if the device fails
        """
        slots = self._slots
        for at, chunk in enumerate(self._chunks):
            slot = slots[at % len(slots)]
            self._collect(slot, stop, report)
            if stop.is_set():
                return
            self._open(slot, chunk)
        for at in range(len(slots)):
            self._collect(slots[(len(self._chunks) + at) % len(slots)], stop, report)
            if stop.is_set():
                return
        counts = np.zeros(4, np.uint32)
        self._device.download(counts, self._counts.address, self._work)
        self._device.finish(self._device.record(self._work))
        self.left, zero, sharing, shared = counts.tolist()
        self.tally = Tally(zero, sharing, shared)

    def synchronize(self) -> None:
        """Wait for all work, after which memory may be freed; that of a lost device has ended."""
        with suppress(DeviceError):
            self._device.synchronize()

    def _open(self, slot: _Slot, chunk: Chunk) -> None:
        """Let the ring fill a slot, or queue the work on pages of the device."""
        slot.chunk, slot.count = chunk, 0
        number, pages = self._queued, chunk.stop - chunk.start
        if chunk.address:
            self._queued += 1
            self._order.call(number, partial(self._queue_resident, slot, chunk))
            return
        assert self._ring
        self._queued += self._ring.pieces(pages)
        place = partial(self._place, slot)
        self._ring.add(Task(chunk.start, chunk.stop, number, self._order, place))

    def _begin(self, slot: _Slot) -> None:
        """Begin a chunk, in the order of chunks."""
        slot.events = [self._device.record(self._up)]
        slot.first = self._next

    def _queue_resident(self, slot: _Slot, chunk: Chunk) -> None:
        """Queue the work on pages in the device's memory."""
        self._begin(slot)
        slot.count = chunk.stop - chunk.start
        if not self._direct:
            rows = self._rows[slot.first : slot.first + slot.count]
            rows[:] = np.arange(chunk.start, chunk.stop)
        self._next += slot.count
        pages = chunk.address
        if not chunk.in_place:
            assert slot.staging
            pages = slot.staging.address
            size = slot.count * self._source.page_size
            self._device.copy(pages, chunk.address, size, self._up)
        self._close(slot, pages, in_place=chunk.in_place)

    def _place(self, slot: _Slot, piece: Piece, last: bool) -> None:
        """Queue the upload of a piece; of the last one of a chunk, also the work on the chunk."""
        if not slot.events:
            self._begin(slot)
        assert slot.staging
        count, size = piece.count, self._source.page_size
        if count:
            target = slot.staging.address + slot.count * size
            self._device.upload(target, piece.pages[: count * size], self._up)
            piece.device, piece.uploaded = self._device, self._device.record(self._up)
            self._rows[self._next : self._next + count] = piece.rows[:count]
            slot.count += count
            self._next += count
        if last:
            self._close(slot, slot.staging.address, in_place=False)

    def _close(self, slot: _Slot, pages: int, *, in_place: bool) -> None:
        """Queue kernels and download of a chunk, whose pages are, or will be, at ``pages``."""
        device, record, events = self._device, self._device.record, slot.events
        events.append(record(self._up))
        device.wait(self._work, events[-1])
        events.append(record(self._work))
        if slot.count:
            self._queue_kernels(slot, pages, in_place=in_place)
        events.append(record(self._work))
        device.wait(self._down, events[-1])
        if slot.count:
            self._download(slot)
        events.append(record(self._down))
        slot.closed.set()

    def _queue_kernels(self, slot: _Slot, pages: int, *, in_place: bool) -> None:
        """Digest, group and compare the pages of a slot, which lie at ``pages``."""
        u32, u64 = np.uint32, np.uint64
        size, first, count = u32(self._source.page_size), u32(slot.first), u32(slot.count)
        classes, heads, found = (
            u64(memory.address) for memory in (slot.classes, slot.heads, slot.found)
        )
        address, table = u64(self._address.address), u64(self._table.address)
        digests = self._digests.address
        kept = 0 if in_place else self._kept.address if self._kept else ALIGNMENT
        at = u64(pages)
        low, high = self._options.mask
        self._launch(
            "digest", slot.count,
            at, count, u64(digests + 16 * slot.first), classes, heads, low, high,
        )  # fmt: skip
        self._launch(
            "insert", slot.count,
            u64(digests), first, count, classes, table, u64(self._slots_of_table), found,
        )  # fmt: skip
        self._launch(
            "resolve", slot.count,
            at, size, first, count, classes, heads, table, found, address, u64(kept),
            u32(self._kept_room), u64(self._used.address),
        )  # fmt: skip
        if self._options.verify:
            if self._kept_room and not in_place:
                self._launch(
                    "copy_pages", slot.count,
                    u64(self._address.address + 8 * slot.first), u64(0), u64(0), at, count, size,
                )  # fmt: skip
            self._launch(
                "compare", slot.count,
                at, size, first, count, classes, heads, address,
            )  # fmt: skip
        lowest, slots = u64(self._lowest.address), u64(self._slots_of_table)
        self._launch(
            "insert_words", slot.count,
            first, count, classes, heads, u64(self._words.address), lowest, slots, found,
        )  # fmt: skip
        offset = self._chunks[0].start if self._direct else 0
        self._launch(
            "settle", slot.count,
            first, count, u64(offset), classes, heads, lowest, slots, found,
            u64(self._marks.address), u64(self._counts.address),
        )  # fmt: skip

    def _launch(self, kernel: str, pages: int, *arguments: np.generic) -> None:
        device = self._device
        size = self._source.page_size if KERNELS[kernel].by_page_size else 0
        layout = layouts(size)[0] if size else ""
        resident = device.resident_blocks(kernel, page_size=size, layout=layout)
        grid = blocks(kernel, pages, device.multiprocessors, layout, resident=resident)
        device.launch(kernel, grid, arguments, self._work, page_size=size, layout=layout)

    def _download(self, slot: _Slot) -> None:
        """Queue the download of a slot's results: to their rows, or to the slot."""
        count, download, down = slot.count, self._device.download, self._down
        digests, classes, heads = (
            slot.digests_out[:count], slot.classes_out[:count], slot.heads_out[:count]
        )  # fmt: skip
        if self._direct:
            row = self._chunks[0].start + slot.first
            rows, result = slice(row, row + count), self._result
            digests, classes = result.digests[rows], result.classes[rows]
            heads = result.representative[rows].view(np.uint64)
        download(digests, self._digests.address + 16 * slot.first, down)
        download(classes, slot.classes.address, down)
        download(heads, slot.heads.address, down)

    def _collect(self, slot: _Slot, stop: threading.Event, report: Callable[[int], None]) -> None:
        """Wait for the chunk in a slot, if any, and deliver its results; the slot is free then."""
        chunk = slot.chunk
        if chunk is None:
            return
        while not slot.closed.wait(POLL_S):
            if stop.is_set():
                return
        start_up, end_up, start_work, end_work, end = slot.events
        self._device.finish(end)
        seconds, count, result = self._device.seconds, slot.count, self._result
        self.seconds["transfer_s"] += seconds(start_up, end_up) + seconds(end_work, end)
        self.seconds["kernel_s"] += seconds(start_work, end_work)
        if not self._direct:
            deliver(
                slot.first, self._rows, slot.digests_out[:count], slot.classes_out[:count],
                slot.heads_out[:count], result.digests, result.classes, result.representative,
            )  # fmt: skip
        slot.chunk, slot.events = None, []
        slot.closed.clear()
        report(chunk.stop - chunk.start)
