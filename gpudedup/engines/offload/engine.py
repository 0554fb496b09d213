"""The engine that offloads bulk work on pages to one or several devices.

Devices take chunks of host pages in turn, and the pages in their own memory. Each device groups
its own pages; the host compares those whose counterpart is on another device or was not kept. So
the result does not depend on the number of devices, on their memory or on timing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from gpudedup.devices.base import Device, OutOfDeviceMemory
from gpudedup.devices.kept import discard
from gpudedup.engines.base import (
    DEVICE_MEMORY,
    PageClass,
    PageSource,
    Partition,
    Progress,
    digest_mask,
    one_page,
)
from gpudedup.engines.cpu.engine import CpuEngine, thread_count
from gpudedup.engines.cpu.passes import MAX_ROWS
from gpudedup.engines.offload.pipeline import (
    Chunk,
    Options,
    Pipeline,
    are_one_run,
    budget,
    bytes_of_notes,
    chunk_that_fits,
)
from gpudedup.engines.offload.reconcile import reconcile
from gpudedup.engines.offload.ring import PIECE_BYTES, POLL_S, Ring
from gpudedup.engines.representatives import follow, new_partition, over_rows
from gpudedup.errors import DeviceError, UsageError
from gpudedup.threads import ThreadPool

CHUNK_BYTES = 128 << 20
"""Bytes per chunk of pages that need a buffer on the device. At about 50 GB/s the bus takes
milliseconds, which hides the time that Python takes to queue a chunk's work."""

IN_PLACE_BYTES = 1 << 30
"""Bytes per chunk of aligned pages in device memory, which need no buffer."""

_loaded: WeakKeyDictionary[Device, set[int]] = WeakKeyDictionary()
"""Page sizes for which a device has its code."""


class OffloadEngine:
    """Implements :class:`gpudedup.engines.base.Engine` on devices.

    :param devices: devices, at least one
    :param threads: host threads that read images and fill buffers; None: one per usable core
    :param memory: limit of bytes used per device; None: nine tenths of the free bytes
    :param chunk_bytes: bytes per chunk of pages that need a buffer: those of the host, and those in
        device memory that are not aligned
    :param in_place_bytes: the same for aligned pages in device memory
    :param piece_bytes: bytes of host pages that a thread copies at a time
    :param drop_zeros: do not upload zero pages
    :raises UsageError: if a number is out of range
    """

    name = "cuda"

    def __init__(
        self,
        devices: Sequence[Device],
        threads: int | None = None,
        *,
        memory: int | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        in_place_bytes: int = IN_PLACE_BYTES,
        piece_bytes: int = PIECE_BYTES,
        drop_zeros: bool = True,
    ) -> None:
        self.threads = thread_count(threads)
        if memory is not None and memory < 0:
            raise UsageError(f"device memory {memory}: must not be negative")
        self.devices = tuple(devices)
        self.device = ", ".join(device.name for device in self.devices)
        self._memory, self._drop_zeros = memory, drop_zeros
        self._piece_bytes = piece_bytes
        self._chunk_bytes, self._in_place_bytes = chunk_bytes, in_place_bytes

    def load(self, page_size: int) -> None:
        """Compile, or load compiled code, unless each device has that of this page size."""
        if not all(page_size in _loaded.get(device, ()) for device in self.devices):
            self.partition(one_page(page_size))
            for device in self.devices:
                _loaded.setdefault(device, set()).add(page_size)

    def partition(
        self,
        source: PageSource,
        *,
        alias_of: npt.NDArray[np.int64] | None = None,
        verify: bool = True,
        digest_bits: int = 128,
        progress: Progress | None = None,
    ) -> Partition:
        """Find which pages of ``source`` are equal; see the protocol for the parameters.

        :param alias_of: must not make aliases of pages in device memory
        :raises DeviceError: if a device fails or has too little memory
        :raises UsageError: if pages are more than one scan can number, or on none of the devices
        """
        n = source.pages
        if n > MAX_ROWS:
            raise UsageError(f"{n} pages: more than one scan can number ({MAX_ROWS})")
        try:
            return self._partition(
                source, alias_of=alias_of, verify=verify, digest_bits=digest_bits, progress=progress
            )
        except OutOfDeviceMemory:
            raise
        except DeviceError:
            discard(self.devices)
            raise
        finally:
            for device in self.devices:
                # Of a device that failed there is another error to raise.
                with suppress(DeviceError):
                    device.trim()

    def _partition(
        self,
        source: PageSource,
        *,
        alias_of: npt.NDArray[np.int64] | None,
        verify: bool,
        digest_bits: int,
        progress: Progress | None,
    ) -> Partition:
        """Implement :meth:`partition`."""
        n = source.pages
        started = time.perf_counter()
        shares = self._deal(source)
        direct = alias_of is None and all(are_one_run(share) for share in shares)
        result = self._pinned_partition(n) if direct and n else new_partition(n, alias_of)
        options = Options(verify=verify, mask=digest_mask(digest_bits), memory=self._memory)
        lines, ring = self._stream(source, shares, result, options, progress)
        streamed = verified = time.perf_counter()
        if direct and len(lines) == 1 and not lines[0].left:
            result = replace(result, tally=lines[0].tally)
        else:
            result = reconcile(
                source,
                result,
                self.devices,
                threads=self.threads,
                verify=verify,
                digest_bits=digest_bits,
            )
            verified = time.perf_counter()
            self._settle_zeros(source.page_size, result, digest_bits)
            with ThreadPool(self.threads) as pool:
                for aliases in (False, True) if alias_of is not None else (False,):
                    over_rows(pool, self.threads, result, follow, aliases)
        busy = {"staging_s": ring.seconds if ring else 0.0}
        for part in ("transfer_s", "kernel_s"):
            busy[part] = sum(line.seconds[part] for line in lines)
        seconds = {
            "stream_s": streamed - started,
            "verify_s": verified - streamed,
            "settle_s": time.perf_counter() - verified,
        }
        return replace(result, seconds=seconds, busy=busy)

    def _pinned_partition(self, rows: int) -> Partition:
        """Return a partition to download all results to; it is pinned if that much can be."""

        def pinned(width: int) -> npt.NDArray[np.uint8]:
            return self.devices[0].pinned(width * rows)

        try:
            return Partition(
                digests=pinned(16).view(np.uint64).reshape(rows, 2),
                classes=pinned(1),
                representative=pinned(8).view(np.int64),
                collisions=0,
            )
        except OutOfDeviceMemory:
            return new_partition(rows, None)

    def _stream(
        self,
        source: PageSource,
        shares: Sequence[list[Chunk]],
        result: Partition,
        options: Options,
        progress: Progress | None,
    ) -> tuple[list[Pipeline], Ring | None]:
        """Run all devices that have chunks; return their pipelines, and the ring, if any."""
        ring = None
        if any(not chunk.address for share in shares for chunk in share):
            ring = Ring(
                source,
                result,
                threads=self.threads,
                piece_bytes=self._piece_bytes,
                drop_zeros=self._drop_zeros,
                pinned=self.devices[0].pinned,
            )
        lines = [
            Pipeline(device, source, chunks, result, ring, options)
            for device, chunks in zip(self.devices, shares, strict=True)
            if chunks
        ]
        done, lock = 0, threading.Lock()

        def report(rows: int) -> None:
            nonlocal done
            with lock:
                done += rows

        def tell() -> None:
            assert progress
            progress(done, source.pages)

        run_lines(lines, ring, self.threads, threading.Event(), report, tell if progress else None)
        return lines, ring

    def _deal(self, source: PageSource) -> list[list[Chunk]]:
        """Return the chunks of each device, ascending."""
        shares: list[list[Chunk]] = [[] for _ in self.devices]
        on_device = source.fd == DEVICE_MEMORY
        if on_device.any():
            for device in self.devices:
                device.synchronize()
        segments = [
            (start, stop, base, self._holder(base) if base else None)
            for start, stop, base in _segments(source, on_device)
        ]
        held = [0] * len(self.devices)
        for start, stop, _, holder in segments:
            if holder is not None:
                held[holder] += stop - start
        turn, chunk_bytes = 0, self._chunk_that_fits(source.pages, source.page_size, held)
        for start, stop, base, holder in segments:
            in_place = Chunk(start, stop, base).in_place
            bytes_ = self._in_place_bytes if in_place else chunk_bytes
            step = max(1, bytes_ // source.page_size)
            for begin in range(start, stop, step):
                address = base + (begin - start) * source.page_size if base else 0
                chunk = Chunk(begin, min(begin + step, stop), address)
                shares[turn % len(shares) if holder is None else holder].append(chunk)
                turn += holder is None
        return shares

    def _chunk_that_fits(self, pages: int, page_size: int, held: Sequence[int]) -> int:
        """Return the bytes of a chunk of pages that need a buffer, fewer where memory is little.

        :param held: pages in the memory of each device
        """
        usual = max(1, self._chunk_bytes // page_size)
        dealt = -(-(pages - sum(held)) // len(self.devices)) + usual
        fits = self._chunk_bytes
        for device, own in zip(self.devices, held, strict=True):
            share = min(pages, dealt + own)
            spare = budget(device, self._memory) - bytes_of_notes(share)
            fits = min(fits, chunk_that_fits(spare, page_size))
        return fits

    def _holder(self, address: int) -> int:
        for at, device in enumerate(self.devices):
            if device.holds(address):
                return at
        raise UsageError(f"pages at {address:#x} lie in memory of none of: {self.device}")

    def _settle_zeros(self, page_size: int, result: Partition, digest_bits: int) -> None:
        """Set digest and representative of all ZERO rows, uploaded or not, on any device."""
        zero = np.flatnonzero(result.classes == PageClass.ZERO)
        if len(zero):
            page = PageSource.of_array(np.zeros((1, page_size), np.uint8))
            found = CpuEngine(1).partition(page, digest_bits=digest_bits)
            result.digests[zero] = found.digests[0]
            result.representative[zero] = zero[0]


def run_lines(
    lines: Sequence[Pipeline],
    ring: Ring | None,
    threads: int,
    stop: threading.Event,
    report: Callable[[int], None],
    tell: Callable[[], None] | None = None,
) -> None:
    """Run pipelines, with the threads of their ring, to their end; then no device is at work.

    :param stop: ends them early when it is set; set if one of them fails
    :param report: called with the rows of each chunk that is done, by any thread
    :param tell: called now and then, and at the end, by this thread; what it raises ends them
    :raises DeviceError: if a device fails
    """

    def work(ring: Ring) -> None:
        try:
            ring.work(stop)
        except BaseException:
            # The pipelines wait for pieces that do not come.
            stop.set()
            raise

    with ThreadPool(len(lines) + threads) as pool:
        drivers: list[Future[None]] = []
        stagers: list[Future[None]] = []
        try:
            # One by one: those before one that cannot be started are waited for.
            for line in lines:
                drivers.append(pool.submit(line.run, stop, report))  # noqa: PERF401
            for _ in range(threads if ring else 0):
                stagers.append(pool.submit(work, ring))  # noqa: PERF401
            pending = bool(drivers)
            while pending:
                ended, running = wait(drivers, POLL_S if tell else None, FIRST_EXCEPTION)
                pending = bool(running) and not any(driver.exception() for driver in ended)
                if tell:
                    tell()
        finally:
            if len(drivers) < len(lines) or any(not d.done() or d.exception() for d in drivers):
                stop.set()
            for _ in stagers:
                assert ring
                ring.add(None)
            wait([*drivers, *stagers])
            for line in lines:
                line.synchronize()
    for job in (*drivers, *stagers):
        job.result()


def _segments(source: PageSource, on_device: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Return (first row, last row + 1, device address or 0); host neighbours are joined."""
    segments: list[tuple[int, int, int]] = []
    for at, device in enumerate(on_device.tolist()):
        start, stop = int(source.first_row[at]), int(source.first_row[at + 1])
        if not device and segments and not segments[-1][2]:
            segments[-1] = (segments[-1][0], stop, 0)
        elif stop > start:
            segments.append((start, stop, int(source.base[at]) if device else 0))
    return segments
