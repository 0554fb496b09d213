"""The CPU engine: all cores, compiled by numba, in bounded memory."""

from __future__ import annotations

import math
import mmap
import os
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.engines import partition as passes
from gpudedup.engines.aliases import first_rows
from gpudedup.engines.base import PageClass, PageStore, Partition, Progress
from gpudedup.engines.mapped import MappedFiles
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
        if n > passes.MAX_ROWS:
            raise UsageError(f"{n} pages: more than one scan can number ({passes.MAX_ROWS})")
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
        collisions = self._stream(store, result, batch, verify, digest_bits, progress)
        streamed = time.perf_counter()
        _settle_filled(result.classes, result.representative)
        passes.settle(result.classes, result.representative)
        settled = time.perf_counter()
        seconds = {"stream_s": streamed - started, "settle_s": settled - streamed}
        return replace(result, collisions=collisions, seconds=seconds)

    def _stream(
        self,
        store: PageStore,
        result: Partition,
        batch: int,
        verify: bool,
        digest_bits: int,
        progress: Progress | None,
    ) -> int:
        """Read, digest, look up and compare all rows; return the number of collisions."""
        n = store.pages
        table = _zeros((n + n // 2 + 1,), np.uint64)
        step = max(batch, TASK_BYTES // store.page_size)
        mask = np.array([_low_bits(digest_bits), _low_bits(digest_bits - 64)], np.uint64)
        starts = iter(range(0, n, step))
        lock, stop = threading.Lock(), threading.Event()
        done = collisions = 0

        def work() -> None:
            nonlocal done, collisions
            buffer = _zeros((2 * batch, store.page_size), np.uint8)
            while not stop.is_set():
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                end = min(start + step, n)
                with files.task() as mapped:
                    found = passes.partition_rows(
                        start, end, store.page_size, store.first_row, store.fd, store.base,
                        mapped, buffer, result.digests, result.classes, result.representative,
                        table, mask, verify,
                    )  # fmt: skip
                with lock:
                    done += end - start
                    collisions += found

        with MappedFiles(store) as files, ThreadPoolExecutor(self.threads) as pool:
            workers = [pool.submit(work) for _ in range(self.threads)]
            try:
                while wait(workers, timeout=0.1 if progress else None).not_done:
                    if progress:
                        progress(done, n)
            finally:
                stop.set()
        for worker in workers:
            worker.result()
        return collisions


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


def _settle_filled(classes: npt.NDArray[np.uint8], representative: npt.NDArray[np.int64]) -> None:
    """Give rows filled with the same word, told in ``representative``, the lowest of them."""
    rows = np.flatnonzero(classes == PageClass.FILLED)
    if len(rows):
        table = np.full(1 << len(rows).bit_length(), -1, np.int64)
        first = np.empty(len(rows), np.int64)
        no_word = np.uint64(0)
        first_rows(representative[rows].view(np.uint64), no_word, table, 0, first)
        representative[rows] = rows[first]
