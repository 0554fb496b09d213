"""The CPU engine's scan, beside merely reading, copying and digesting the same bytes.

The read ceiling is a plain compiled loop that sums the words. With the digest's prefetch the same
loop can be faster, so a digest may come out above the plain loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpudedup.compiled.digests import digest_into
from gpudedup.compiled.intrinsics import PREFETCH_BYTES, memcpy, prefetch
from gpudedup.compiled.jit import compiled
from gpudedup.compiled.memory import zeros
from gpudedup.engines.base import PageSource, Partition
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.measuring.populations import (
    PAGE_SIZE,
    Pages,
    check_all,
    check_equal,
    content_ids,
    expected,
    fill,
    over_tasks,
)
from gpudedup.measuring.rounds import Comparison, interleave

READ, READ_AHEAD = "read", "read ahead"
COPY, DIGEST, SCAN = "copy, read and written", "digest", "exact scan"


@compiled
def read_words(words):  # type: ignore[no-untyped-def]
    """Return the sum of ``words``, (n,) uint64."""
    total = np.uint64(0)
    for word in words:
        total += word
    return total


@compiled
def read_ahead(words):  # type: ignore[no-untyped-def]
    """Return the sum of ``words``, (8 k,) uint64, with prefetch."""
    address, total = np.uint64(words.ctypes.data), np.uint64(0)
    for line in range(0, len(words), 8):
        prefetch(address + np.uint64(8 * line + PREFETCH_BYTES))
        for i in range(line, line + 8):
            total += words[i]
    return total


@compiled
def copy_pages(target, source, page_size):  # type: ignore[no-untyped-def]
    """Copy pages one after another, by address, (n,) uint64 each."""
    for i in range(len(target)):
        memcpy(target[i], source[i], np.uint64(page_size))


class HostWork:
    """A population in host memory, and what is timed on it, each on all threads.

    :param population: one of :data:`gpudedup.measuring.populations.POPULATIONS`
    :param size: bytes of pages
    """

    def __init__(self, population: str, size: int, threads: int | None = None) -> None:
        self.population = population
        self.ids = content_ids(population, size // PAGE_SIZE)
        self.pages = fill(self.ids)
        self.digests = np.zeros((len(self.pages), 2), np.uint64)
        self.engine = CpuEngine(threads)
        self.threads = self.engine.threads
        self._words = self.pages.view(np.uint64)
        self._source = PageSource.of_array(self.pages)
        self._copied: Pages = zeros((0, PAGE_SIZE), np.uint8)

    def read(self) -> int:
        """Return the sum of all words, modulo 2^64, by the plain loop."""
        return self._sum(read_words)

    def read_ahead(self) -> int:
        """Return the sum of all words, modulo 2^64, by the loop with prefetch."""
        return self._sum(read_ahead)

    def _sum(self, loop: Callable[..., Any]) -> int:
        words, rows = self._words, len(self.pages)
        parts: list[int] = over_tasks(
            lambda a, b: int(loop(words[a:b].reshape(-1))), rows, PAGE_SIZE, self.threads
        )
        return sum(parts) % 2**64

    def copy(self) -> Pages:
        """Copy the first half of the pages; so as many bytes are read and written as there are."""
        half = len(self.pages) // 2
        if len(self._copied) != half:
            self._copied = zeros((half, PAGE_SIZE), np.uint8)
        to, pages = self._copied, self.pages

        def copy(start: int, stop: int) -> None:
            at = [np.array([x[start:].ctypes.data], np.uint64) for x in (to, pages)]
            copy_pages(*at, (stop - start) * PAGE_SIZE)

        over_tasks(copy, half, PAGE_SIZE, self.threads)
        return self._copied

    def digest(self) -> None:
        """Digest all pages into ``digests``, without grouping them."""
        pages, digests = self.pages, self.digests
        over_tasks(
            lambda a, b: digest_into(np.uint64(pages[a:b].ctypes.data), PAGE_SIZE, digests[a:b]),
            len(pages),
            PAGE_SIZE,
            self.threads,
        )

    def scan(self) -> Partition:
        """Find equal pages exactly."""
        return self.engine.partition(self._source)

    def check(self) -> None:
        """Do everything once and compare it with the known answer.

        :raises WrongResultError: if something differs
        """
        name, right = self.population, expected(self.ids)
        words = np.uint64(self._words.sum(dtype=np.uint64))
        for loop in (self.read, self.read_ahead):
            check_equal(f"sum of {name}", np.array([loop()], np.uint64), words.reshape(1))
        copied = self.copy()
        check_all(f"copy of {name}", (copied == self.pages[: len(copied)]).all(axis=1))
        found = self.scan()
        check_equal(f"scan of {name} on the CPU", found.representative, right)
        self.digest()
        for half, digests in zip(self.digests.T, found.digests.T, strict=True):
            check_equal(f"digests of {name}", half, digests)


def compare(work: HostWork, rounds: int) -> Comparison:
    """Measure a population."""
    result = interleave(
        {
            READ: work.read,
            READ_AHEAD: work.read_ahead,
            COPY: work.copy,
            DIGEST: work.digest,
            SCAN: work.scan,
        },
        size=work.pages.nbytes,
        rounds=rounds,
        population=work.population,
        threads=work.threads,
    )
    for name in (DIGEST, SCAN):
        result.ratio(name, READ)
        result.ratio(name, READ_AHEAD)
    return result
