"""The CPU engine: compiled passes on all cores, page bytes in buffers of fixed size."""

from __future__ import annotations

import os
import platform
import threading
import time
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpudedup.arguments import as_number
from gpudedup.compiled.memory import zeros
from gpudedup.engines.base import (
    DEVICE_MEMORY,
    PageSource,
    Partition,
    Progress,
    digest_mask,
    one_page,
)
from gpudedup.engines.cpu.mapped import MappedFiles
from gpudedup.engines.cpu.passes import MAX_ROWS, Found, Place, partition_rows
from gpudedup.engines.representatives import new_partition, resolve
from gpudedup.errors import UsageError
from gpudedup.threads import ThreadPool

BATCH_BYTES = 1 << 20
"""Bytes of pages digested before they are looked up: half of a core's L2 on most machines."""

TASK_BYTES = 16 << 20
"""Bytes of pages a worker takes at a time: the grain of progress and interrupts."""


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Return the model of this machine's processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


MAX_THREADS = 4096
"""Host threads of an engine, or of a verification."""


def thread_count(threads: int | None) -> int:
    """Return the host threads to use: ``threads``; None: one per usable core.

    :raises UsageError: if it is below 1 or above :data:`MAX_THREADS`
    """
    count = usable_cores() if threads is None else as_number(threads, "threads")
    if count < 1:
        raise UsageError(f"threads {count}: must be at least 1")
    if count > MAX_THREADS:
        raise UsageError(f"threads {count}: at most {MAX_THREADS}")
    return count


class CpuEngine:
    """Implements :class:`gpudedup.engines.base.Engine` on the host.

    :param threads: host threads; None: one per usable core
    :raises UsageError: as :func:`thread_count`
    """

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = thread_count(threads)
        self.device = processor()

    def load(self, page_size: int) -> None:
        """Compile, or load compiled code."""
        self.partition(one_page(page_size))

    def partition(
        self,
        source: PageSource,
        *,
        alias_of: npt.NDArray[np.int64] | None = None,
        verify: bool = True,
        digest_bits: int = 128,
        progress: Progress | None = None,
        batch_pages: int | None = None,
    ) -> Partition:
        """Find which pages of ``source`` are equal; see the protocol for the parameters.

        :param batch_pages: pages digested before they are looked up; None: :data:`BATCH_BYTES`
        :raises UsageError: if pages lie in device memory, or are more than one scan can number
        """
        n = source.pages
        if (source.fd == DEVICE_MEMORY).any():
            raise UsageError("pages in device memory need the cuda engine")
        if n > MAX_ROWS:
            raise UsageError(f"{n} pages: more than one scan can number ({MAX_ROWS})")
        started = time.perf_counter()
        result = new_partition(n, alias_of)
        batch = batch_pages or max(1, BATCH_BYTES // source.page_size)
        with ThreadPool(self.threads) as pool:
            collisions, zero_row = self._stream(
                pool, source, result, batch, verify, digest_bits, progress
            )
            streamed = time.perf_counter()
            resolve(pool, self.threads, result, zero_row, has_aliases=alias_of is not None)
        settled = time.perf_counter()
        seconds = {"stream_s": streamed - started, "settle_s": settled - streamed}
        return replace(result, collisions=collisions, seconds=seconds)

    def _stream(
        self,
        pool: Executor,
        source: PageSource,
        result: Partition,
        batch: int,
        verify: bool,
        digest_bits: int,
        progress: Progress | None,
    ) -> tuple[int, int]:
        """Partition all rows; return the number of collisions, and the lowest ZERO row or n."""
        n = source.pages
        table = zeros((n + n // 2 + 1,), np.uint64)
        step = max(batch, TASK_BYTES // source.page_size)
        mask = digest_mask(digest_bits)
        found = Found(result.digests, result.classes, result.representative)
        starts = iter(range(0, n, step))
        lock, stop = threading.Lock(), threading.Event()
        done, collisions, lowest_zero = 0, 0, n

        def work() -> None:
            nonlocal done, collisions, lowest_zero
            buffer = zeros((2 * batch, source.page_size), np.uint8)
            while not stop.is_set():
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                end = min(start + step, n)
                with files.task() as mapped:
                    place = Place(
                        source.page_size, source.first_row, source.fd, source.base, mapped
                    )
                    collided, zero_row = partition_rows(
                        start, end, place, buffer, found, table, mask, verify
                    )
                with lock:
                    done += end - start
                    collisions += collided
                    if zero_row >= 0:
                        lowest_zero = min(lowest_zero, zero_row)

        with MappedFiles(source) as files:
            workers: list[Future[None]] = []
            try:
                for _ in range(self.threads):
                    # One by one: those before one that cannot be started are waited for.
                    workers.append(pool.submit(work))  # noqa: PERF401
                while wait(workers, timeout=0.1 if progress else None).not_done:
                    if progress:
                        progress(done, n)
            finally:
                stop.set()
                wait(workers)
        for worker in workers:
            worker.result()
        return collisions, lowest_zero
