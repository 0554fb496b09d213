"""The engine that offloads bulk work on pages to one device or several.

Chunks of the image are dealt to the devices in turn, pages in device memory to the device that
holds them; each device groups its own pages, and what needs bytes of another or of none is left to
the host. So the result does not depend on how many devices there are, how much memory they have, or
how their work is timed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gpudedup.devices.base import Device
from gpudedup.engines.base import (
    DEVICE_MEMORY,
    PageClass,
    PageSource,
    Partition,
    Progress,
    digest_mask,
)
from gpudedup.engines.cpu.engine import CpuEngine, usable_cores
from gpudedup.engines.cpu.passes import MAX_ROWS
from gpudedup.engines.offload.pipeline import (
    BYTES_OF_PAGE,
    Chunk,
    Options,
    Pipeline,
    budget,
    chunk_that_fits,
    table_slots,
)
from gpudedup.engines.offload.reconcile import reconcile
from gpudedup.engines.representatives import new_partition, resolve
from gpudedup.errors import UsageError

CHUNK_BYTES = 128 << 20
"""Pages of the host that a device takes at a time: at 50 GB/s they cross the bus in 2.7 ms, so that
what Python takes to queue their work and to wake the threads that copy them does not weigh much."""

IN_PLACE_BYTES = 1 << 30
"""The same of pages that are on the device: no buffer holds them."""


class OffloadEngine:
    """Implements :class:`gpudedup.engines.base.Engine` on devices.

    :param devices: at least one
    :param threads: of the host, that read images and fill buffers; None: one for each usable core
    :param memory: most bytes to use of each device; None: nine tenths of what is free
    :param chunk_bytes: bytes of pages in a chunk of the host's
    :param in_place_bytes: the same where the pages are on the device
    :param drop_zeros: do not send zero pages to the device
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
        drop_zeros: bool = True,
    ) -> None:
        self.threads = usable_cores() if threads is None else threads
        if self.threads < 1:
            raise UsageError(f"threads {self.threads}: must be at least 1")
        if memory is not None and memory < 0:
            raise UsageError(f"device memory {memory}: must not be negative")
        self.devices = tuple(devices)
        self.device = ", ".join(device.name for device in self.devices)
        self._memory, self._drop_zeros = memory, drop_zeros
        self._chunk_bytes, self._in_place_bytes = chunk_bytes, in_place_bytes

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

        Pages in device memory are no aliases.

        :raises DeviceError: if a device fails or has too little memory
        """
        n = source.pages
        if n > MAX_ROWS:
            raise UsageError(f"{n} pages: more than one scan can number ({MAX_ROWS})")
        started = time.perf_counter()
        result = new_partition(n, alias_of)
        options = Options(
            verify=verify,
            mask=digest_mask(digest_bits),
            memory=self._memory,
            threads=self.threads,
            drop_zeros=self._drop_zeros,
        )
        busy = self._stream(source, result, options, progress)
        streamed = time.perf_counter()
        result = reconcile(
            source,
            result,
            self.devices,
            threads=self.threads,
            verify=verify,
            digest_bits=digest_bits,
        )
        verified = time.perf_counter()
        zero_row = self._digest_zeros(source.page_size, result, digest_bits)
        with ThreadPoolExecutor(self.threads) as pool:
            resolve(pool, self.threads, result, zero_row, has_aliases=alias_of is not None)
        seconds = {
            "stream_s": streamed - started,
            "verify_s": verified - streamed,
            "settle_s": time.perf_counter() - verified,
        }
        return replace(result, seconds=seconds, busy=busy)

    def _stream(
        self, source: PageSource, result: Partition, options: Options, progress: Progress | None
    ) -> dict[str, float]:
        """Let all devices work; return the seconds that each part of the work took, in sum."""
        n, stop, lock = source.pages, threading.Event(), threading.Lock()
        done = 0

        def report(rows: int) -> None:
            nonlocal done
            with lock:
                done += rows

        shares = self._deal(source)
        busy: Counter[str] = Counter()
        with (
            ThreadPoolExecutor(self.threads) as stagers,
            ThreadPoolExecutor(len(self.devices)) as drivers,
        ):
            lines = [
                Pipeline(device, source, chunks, result, stagers, options)
                for device, chunks in zip(self.devices, shares, strict=True)
                if chunks
            ]
            workers = [drivers.submit(line.run, stop, report) for line in lines]
            try:
                pending = bool(workers)
                while pending:
                    ended, running = wait(workers, 0.1 if progress else None, FIRST_EXCEPTION)
                    pending = bool(running) and not any(worker.exception() for worker in ended)
                    if progress:
                        progress(done, n)
            finally:
                stop.set()
                wait(workers)
        for worker in workers:
            worker.result()
        for line in lines:
            busy.update(line.seconds)
        return dict(busy)

    def _deal(self, source: PageSource) -> list[list[Chunk]]:
        """Return the chunks of each device, ascending."""
        shares: list[list[Chunk]] = [[] for _ in self.devices]
        on_device = source.fd == DEVICE_MEMORY
        if on_device.any():
            for device in self.devices:
                device.synchronize()
        turn, chunk_bytes = 0, self._chunk_that_fits(source)
        for start, stop, base in _segments(source, on_device):
            bytes_ = self._in_place_bytes if base else chunk_bytes
            step = max(1, bytes_ // source.page_size)
            holder = self._holder(base) if base else None
            for begin in range(start, stop, step):
                address = base + (begin - start) * source.page_size if base else 0
                chunk = Chunk(begin, min(begin + step, stop), address)
                shares[turn % len(shares) if holder is None else holder].append(chunk)
                turn += holder is None
        return shares

    def _chunk_that_fits(self, source: PageSource) -> int:
        """Return the bytes of a chunk, fewer than usual where a device has little memory."""
        usable = min(budget(device, self._memory) for device in self.devices)
        usual = max(1, self._chunk_bytes // source.page_size)
        share = min(source.pages, -(-source.pages // len(self.devices)) + usual)
        spare = usable - share * BYTES_OF_PAGE - 8 * table_slots(share)
        return min(self._chunk_bytes, chunk_that_fits(spare, source.page_size))

    def _holder(self, address: int) -> int:
        for at, device in enumerate(self.devices):
            if device.holds(address):
                return at
        raise UsageError(f"pages at {address:#x} lie in memory of none of: {self.device}")

    def _digest_zeros(self, page_size: int, result: Partition, digest_bits: int) -> int:
        """Give all ZERO rows their digest, also those that no device saw; return the lowest."""
        zero = result.classes == PageClass.ZERO
        if not zero.any():
            return len(zero)
        page = PageSource.of_array(np.zeros((1, page_size), np.uint8))
        found = CpuEngine(1).partition(page, digest_bits=digest_bits)
        result.digests[zero] = found.digests[0]
        return int(np.argmax(zero))


def _segments(source: PageSource, on_device: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Return (first row, last row + 1, address on the device or 0): each of one kind of place."""
    segments: list[tuple[int, int, int]] = []
    for at, device in enumerate(on_device.tolist()):
        start, stop = int(source.first_row[at]), int(source.first_row[at + 1])
        if not device and segments and not segments[-1][2]:
            segments[-1] = (segments[-1][0], stop, 0)
        elif stop > start:
            segments.append((start, stop, int(source.base[at]) if device else 0))
    return segments
