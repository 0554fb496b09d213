"""The CPU engine: all cores, compiled by numba, in bounded memory."""

from __future__ import annotations

import math
import mmap
import os
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import PageClass, PageStore, Partition, Progress
from gpudedup.engines.mapped import MappedFiles
from gpudedup.engines.partition import MAX_ROWS, partition_rows
from gpudedup.engines.settle import settle_aliases, settle_contents, settle_filled
from gpudedup.errors import UsageError

BATCH_BYTES = 1 << 20
"""Pages digested before they are looked up: half of a core's L2 on most machines."""

TASK_BYTES = 16 << 20
"""Pages that a worker takes at a time, and the grain of progress and interrupts."""

HUGE_PAGE = 2 << 20


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


class CpuEngine:
    """Implements :class:`gpudedup.engines.base.Engine` on the host.

    :param threads: workers; None: one for each usable core
    :raises UsageError: if threads is below 1
    """

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = usable_cores() if threads is None else threads
        if self.threads < 1:
            raise UsageError(f"threads {self.threads}: must be at least 1")
        self.device = processor()

    def partition(
        self,
        store: PageStore,
        *,
        alias_of: npt.NDArray[np.int64] | None = None,
        verify: bool = True,
        digest_bits: int = 128,
        progress: Progress | None = None,
        batch_pages: int | None = None,
    ) -> Partition:
        """Find which pages of ``store`` are equal; see the protocol for the parameters.

        :param batch_pages: pages digested before they are looked up; None: about 1 MiB
        """
        n = store.pages
        if n > MAX_ROWS:
            raise UsageError(f"{n} pages: more than one scan can number ({MAX_ROWS})")
        started = time.perf_counter()
        result = Partition(
            digests=_zeros((n, 2), np.uint64),
            classes=_zeros((n,), np.uint8),
            representative=_zeros((n,), np.int64),
            collisions=0,
        )
        if alias_of is not None:
            np.copyto(result.representative, alias_of)
            result.classes[alias_of < np.arange(n)] = PageClass.ALIAS
        batch = batch_pages or max(1, BATCH_BYTES // store.page_size)
        with ThreadPoolExecutor(self.threads) as pool:
            collisions, zero_row = self._stream(
                pool, store, result, batch, verify, digest_bits, progress
            )
            streamed = time.perf_counter()
            self._settle(pool, result, zero_row, alias_of is not None)
        settled = time.perf_counter()
        seconds = {"stream_s": streamed - started, "settle_s": settled - streamed}
        return replace(result, collisions=collisions, seconds=seconds)

    def _stream(
        self,
        pool: Executor,
        store: PageStore,
        result: Partition,
        batch: int,
        verify: bool,
        digest_bits: int,
        progress: Progress | None,
    ) -> tuple[int, int]:
        """Read, digest, look up and compare all rows.

        Return the number of collisions, and the lowest ZERO row or n.
        """
        n = store.pages
        table = _zeros((n + n // 2 + 1,), np.uint64)
        step = max(batch, TASK_BYTES // store.page_size)
        mask = np.array([_low_bits(digest_bits), _low_bits(digest_bits - 64)], np.uint64)
        starts = iter(range(0, n, step))
        lock, stop = threading.Lock(), threading.Event()
        done, collisions, lowest_zero = 0, 0, n

        def work() -> None:
            nonlocal done, collisions, lowest_zero
            buffer = _zeros((2 * batch, store.page_size), np.uint8)
            while not stop.is_set():
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                end = min(start + step, n)
                with files.task() as mapped:
                    found, zero_row = partition_rows(
                        start, end, store.page_size, store.first_row, store.fd, store.base,
                        mapped, buffer, result.digests, result.classes, result.representative,
                        table, mask, verify,
                    )  # fmt: skip
                with lock:
                    done += end - start
                    collisions += found
                    if zero_row >= 0:
                        lowest_zero = min(lowest_zero, zero_row)

        with MappedFiles(store) as files:
            workers = [pool.submit(work) for _ in range(self.threads)]
            try:
                while wait(workers, timeout=0.1 if progress else None).not_done:
                    if progress:
                        progress(done, n)
            finally:
                stop.set()
                wait(workers)
        for worker in workers:
            worker.result()
        return collisions, lowest_zero

    def _settle(self, pool: Executor, result: Partition, zero_row: int, has_aliases: bool) -> None:
        """Give every row the lowest row of its content."""
        classes, representative = result.classes, result.representative
        n = len(classes)
        step = max(1, -(-n // self.threads))

        def parts(settle: Callable[..., None], *more: object) -> None:
            jobs = [
                pool.submit(settle, a, min(a + step, n), classes, representative, *more)
                for a in range(0, n, step)
            ]
            for job in jobs:
                job.result()

        parts(settle_contents, zero_row)
        filled = int(np.count_nonzero(classes == PageClass.FILLED))
        if filled:
            settle_filled(classes, representative, np.full(1 << filled.bit_length(), -1, np.int64))
        if has_aliases:
            parts(settle_aliases)


def _zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros that start on a page, if they fill one on a huge page.

    Touching huge pages first costs a third; NumPy asks for them too, but its arrays start anywhere,
    and ends get small ones. And what is read from files goes to aligned memory: on Zen 3 the
    kernel copies to an address that is not a multiple of 64 at a sixth of the speed.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    spare = HUGE_PAGE if size >= HUGE_PAGE else 1
    memory = mmap.mmap(-1, size + spare, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size < HUGE_PAGE:
        return np.ndarray(shape, dtype, memory)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    return np.ndarray(shape, dtype, memory, offset=-address % HUGE_PAGE)


def _low_bits(bits: int) -> int:
    return (1 << min(max(bits, 0), 64)) - 1
