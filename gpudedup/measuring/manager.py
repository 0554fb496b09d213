"""What the memory manager costs: breaks of COW, operations that copy nothing, merging."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gpudedup.engines.base import PageSource
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.errors import WrongResultError
from gpudedup.measuring.host import copy_pages
from gpudedup.measuring.populations import (
    PAGE_SIZE,
    Pages,
    check_all,
    check_equal,
    content_ids,
    expected,
    fill,
)
from gpudedup.measuring.rounds import Comparison, interleave_clocked
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.policy import MergePolicy, MergeReport

COPY, BREAK, BREAK_WHOLE = "page copy", "break, 64 bytes stored", "break, page stored"
LOAD, STORE, PIN = "load of 8 bytes", "store of 8 bytes", "pin and unpin"
SCAN, MERGE = "scan", "merge"
APPLY = "apply"


def addresses(pages: Pages) -> npt.NDArray[np.uint64]:
    """Return the address of each page."""
    return np.uint64(pages.ctypes.data) + np.arange(len(pages), dtype=np.uint64) * np.uint64(
        pages.shape[1]
    )


class Breaks:
    """A mapping; each sample forks it, breaks COW by stores to the fork, and drops the fork.

    :param size: bytes of pages
    """

    def __init__(self, size: int) -> None:
        self.n = size // PAGE_SIZE
        self.mm = MemoryManager(PAGE_SIZE)
        self.parent = self.mm.create("parent", pages=self.n)
        self.index = np.arange(self.n)
        self.mm.write(self.parent, self.index, np.ones(PAGE_SIZE, np.uint8))
        self.part = np.full(64, 7, np.uint8)
        self.whole = np.full((self.n, PAGE_SIZE), 9, np.uint8)
        self.other = np.ones_like(self.whole)
        self.at, self.to = addresses(self.whole), addresses(self.other)

    def stores(self) -> float:
        """Return the seconds of stores that break all pages, without fork and drop."""
        child, seconds = self._break(self.part, 128)
        self.mm.drop(child)
        return seconds

    def whole_stores(self) -> float:
        """Return the seconds of stores of whole pages, which need not copy the old ones."""
        child, seconds = self._break(self.whole, None)
        self.mm.drop(child)
        return seconds

    def _break(self, data: Pages, offset: int | None) -> tuple[Mapping, float]:
        """Fork and store to all pages of the fork; return it, and the seconds of the stores."""
        child = self.mm.fork(self.parent)
        started = time.perf_counter()
        self.mm.write(child, self.index, data, offset=offset)
        return child, time.perf_counter() - started

    def ceiling(self) -> float:
        """Return the seconds of a loop that copies as many pages one after another."""
        started = time.perf_counter()
        copy_pages(self.to, self.at, PAGE_SIZE)
        return time.perf_counter() - started

    def check(self) -> None:
        """Break COW in both ways and compare all bytes.

        :raises WrongResultError: if a page of the fork or of the parent is wrong
        """
        old = np.ones(PAGE_SIZE, np.uint8)
        for data, offset in ((self.part, 128), (self.whole, None)):
            child, _ = self._break(data, offset)
            new = old.copy()
            start = offset or 0
            new[start : start + data.shape[-1]] = data if data.ndim == 1 else data[0]
            for mapping, right in ((self.parent, old), (child, new)):
                found = self.mm.read(mapping, self.index)
                check_all("pages after stores to a fork", (found == right).all(axis=1))
            self.mm.drop(child)

    def compare(self, rounds: int) -> Comparison:
        """Measure breaks beside copies."""
        candidates: dict[str, Callable[[], float]] = {
            COPY: self.ceiling,
            BREAK: self.stores,
            BREAK_WHOLE: self.whole_stores,
        }
        result = interleave_clocked(
            candidates, size=self.n * PAGE_SIZE, rounds=rounds, question="breaks", pages=self.n
        )
        for name in (BREAK, BREAK_WHOLE):
            result.ratio(name, COPY)
        return result


class Single:
    """Operations that copy nothing, in bulk, on the pages of a mapping in random order.

    :param size: bytes of pages; the mapping has as many holes after them
    """

    def __init__(self, size: int) -> None:
        n = size // PAGE_SIZE
        self.n, self.mm = n, MemoryManager(PAGE_SIZE)
        self.heap = self.mm.create("heap", pages=2 * n)
        self.mm.write(self.heap, np.arange(n), np.ones(PAGE_SIZE, np.uint8))
        self.order = np.random.default_rng(1).permutation(n)
        self.word, self.out = np.full(8, 3, np.uint8), np.empty((n, 8), np.uint8)

    def load(self) -> None:
        """Load 8 bytes of each page."""
        self.mm.read(self.heap, self.order, size=8, out=self.out)

    def store(self) -> None:
        """Store 8 bytes to each page."""
        self.mm.write(self.heap, self.order, self.word, offset=16)

    def pin(self) -> None:
        """Pin and unpin each page."""
        self.mm.pin(self.heap, self.order).unpin()

    def candidates(self) -> dict[str, Callable[[], object]]:
        """Return the operations by name."""
        return {LOAD: self.load, STORE: self.store, PIN: self.pin}

    def check(self) -> None:
        """Store, load, pin, and compare what is read.

        :raises WrongResultError: if a word is wrong
        """
        self.store()
        self.pin()
        stored = self.mm.read(self.heap, self.order, size=8, offset=16)
        self.load()
        for words, byte in ((stored, 3), (self.out, 1)):
            check_all("words that were loaded", (words == byte).all(axis=1))


class Merges:
    """Merging of the population mix, each time in a new manager.

    :param size: bytes of pages
    :param threads: host threads of the engine that digests; None: one per usable core
    """

    def __init__(self, size: int, threads: int | None = None, page_size: int = PAGE_SIZE) -> None:
        self.ids = content_ids("mix", size // page_size)
        self.pages = fill(self.ids, page_size)
        self.engine = CpuEngine(threads)
        self.reports: list[MergeReport] = []
        self._source = PageSource.of_array(self.pages)

    def merge(self) -> float:
        """Return the seconds of a merge; its report is added to ``reports``."""
        self._merged()
        return sum(self.reports[-1].seconds.values())

    def _merged(self) -> MemoryManager:
        mm = MemoryManager.from_image(self.pages)
        self.reports.append(mm.merge(engine=self.engine))
        return mm

    def check(self) -> None:
        """Merge once; compare frames with the closed form, and all bytes.

        :raises WrongResultError: if a page is wrong, or a frame too many or too few is left
        """
        mm = self._merged()
        _, equal = np.unique(self.ids, return_counts=True)
        # Zero pages are one content among others; a frame has at most so many aliases.
        frames = int((-(-equal // MergePolicy().max_page_sharing)).sum())
        freed, right = self.reports.pop().frames_freed, len(self.ids) - frames
        if freed != right:
            raise WrongResultError(f"a merge freed {freed} frames, not {right}")
        found = mm.read(mm.mappings[0], np.arange(len(self.ids)))
        check_all("pages after a merge", (found == self.pages).all(axis=1))
        scanned = self.engine.partition(self._source).representative
        check_equal("scan of what is merged", scanned, expected(self.ids))

    def compare(self, rounds: int) -> Comparison:
        """Measure merges beside scans of the same pages; the stage ``apply`` also by itself."""
        result = interleave_clocked(
            {
                SCAN: lambda: sum(self.engine.partition(self._source).seconds.values()),
                MERGE: self.merge,
            },
            size=self.pages.nbytes,
            rounds=rounds,
            question="merge",
            pages=len(self.ids),
            moved=0,
        )
        reports = self.reports[-rounds:]
        result.case["moved"] = reports[0].merged
        result.seconds[APPLY] = [report.seconds["apply_s"] for report in reports]
        result.ratio(MERGE, SCAN)
        return result
