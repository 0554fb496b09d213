"""The CPU engine: all cores, compiled by numba, in bounded memory."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt

from gpudedup.engines import partition as passes
from gpudedup.engines.base import PageClass, PageStore, Partition, Progress
from gpudedup.errors import UsageError

BATCH_BYTES = 1 << 20
"""Pages digested before they are looked up: half of a core's L2 on most machines."""

TASK_BYTES = 16 << 20
"""Pages that a worker takes at a time, and the grain of progress and interrupts."""


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


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
        classes = np.zeros(n, np.uint8)
        representative = np.empty(n, np.int64)
        if alias_of is not None:
            np.copyto(representative, alias_of)
            classes[alias_of < np.arange(n)] = PageClass.ALIAS
        digests = np.empty((n, 2), np.uint64)
        table = np.zeros(1 << max(4, (2 * n - 1).bit_length()), np.uint64)
        batch = batch_pages or max(1, BATCH_BYTES // store.page_size)
        step = max(batch, TASK_BYTES // store.page_size)
        mask = np.array([_low_bits(digest_bits), _low_bits(digest_bits - 64)], np.uint64)
        starts = iter(range(0, n, step))
        lock, stop = threading.Lock(), threading.Event()
        done = collisions = 0

        def work() -> None:
            nonlocal done, collisions
            buffer = np.empty((batch + 1, store.page_size), np.uint8)
            while not stop.is_set():
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                end = min(start + step, n)
                found = passes.partition_rows(
                    start, end, store.page_size, store.first_row, store.fd, store.base, buffer,
                    digests, classes, representative, table, mask, verify,
                )  # fmt: skip
                with lock:
                    done += end - start
                    collisions += found

        with ThreadPoolExecutor(self.threads) as pool:
            workers = [pool.submit(work) for _ in range(self.threads)]
            try:
                while wait(workers, timeout=0.1 if progress else None).not_done:
                    if progress:
                        progress(done, n)
            finally:
                stop.set()
        for worker in workers:
            worker.result()
        streamed = time.perf_counter()
        _settle_filled(classes, representative)
        passes.settle(classes, representative)
        settled = time.perf_counter()
        return Partition(
            digests, classes, representative, collisions,
            {"stream_s": streamed - started, "settle_s": settled - streamed},
        )  # fmt: skip


def _low_bits(bits: int) -> int:
    return (1 << min(max(bits, 0), 64)) - 1


def _settle_filled(classes: npt.NDArray[np.uint8], representative: npt.NDArray[np.int64]) -> None:
    """Give rows filled with the same word the lowest of them as representative."""
    rows = np.flatnonzero(classes == PageClass.FILLED)
    if len(rows):
        _, first, inverse = np.unique(representative[rows], return_index=True, return_inverse=True)
        representative[rows] = rows[first][inverse]
