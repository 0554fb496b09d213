"""How near do digest and exact partition come to merely reading the pages?

Candidates, on the same bytes in memory with the same threads: a compiled loop that sums the words
(the read ceiling), the same loop with the digest's prefetch, XXH3-128 of every page without
grouping, and the exact partition. Prefetch can beat the plain loop, so a digest may come out above
the read ceiling.
"""

from __future__ import annotations

import harness
import numpy as np

from gpudedup.compiled.intrinsics import PREFETCH_BYTES, prefetch
from gpudedup.compiled.jit import compiled
from gpudedup.compiled.xxh3 import digest_page
from gpudedup.engines.base import PageSource
from gpudedup.engines.cpu.engine import CpuEngine


@compiled
def digest_pages(address, page_size, out):  # type: ignore[no-untyped-def]
    """Write the digests of consecutive pages to ``out``, (n, 2) uint64."""
    acc = np.empty(8, np.uint64)
    for i in range(len(out)):
        page = np.uint64(address) + np.uint64(i * page_size)
        out[i, 0], out[i, 1] = digest_page(page, page_size, acc)


@compiled
def read_ahead(words, address):  # type: ignore[no-untyped-def]
    """Return the sum of ``words``, (8 k,) uint64 at ``address``, with prefetch."""
    total = np.uint64(0)
    for line in range(0, len(words), 8):
        prefetch(np.uint64(address) + np.uint64(8 * line + PREFETCH_BYTES))
        for i in range(line, line + 8):
            total += words[i]
    return total


def compare(population: str, size: int, threads: int, rounds: int) -> harness.Comparison:
    """Measure one population at one number of threads."""
    ids = harness.content_ids(population, size // harness.PAGE_SIZE)
    pages = harness.fill(ids)
    store, engine = PageSource.of_array(pages), CpuEngine(threads)
    digests = np.empty((len(pages), 2), np.uint64)

    words = pages.view(np.uint64)

    def ahead() -> None:
        harness.over_tasks(
            lambda a, b: read_ahead(words[a:b].reshape(-1), words[a:b].ctypes.data),
            len(pages),
            pages.shape[1],
            threads,
        )

    def digest() -> None:
        harness.over_tasks(
            lambda a, b: digest_pages(pages[a:b].ctypes.data, pages.shape[1], digests[a:b]),
            len(pages),
            pages.shape[1],
            threads,
        )

    partition = engine.partition(store)
    assert np.array_equal(partition.representative, harness.expected(ids))
    result = harness.interleave(
        {
            "read ceiling": harness.read_ceiling(pages, threads),
            "read with prefetch": ahead,
            "digest": digest,
            "exact": lambda: engine.partition(store),
        },
        size=pages.nbytes,
        rounds=rounds,
        population=population,
        threads=threads,
    )
    for name in ("digest", "exact"):
        result.ratio(name, "read ceiling")
        result.ratio(name, "read with prefetch")
    result.print()
    return result


def main() -> None:
    """Measure both populations on one thread and on all."""
    options = harness.arguments(__doc__).parse_args()
    results = [
        compare(population, options.size, threads, options.rounds)
        for population in harness.POPULATIONS
        for threads in sorted({1, options.threads})
    ]
    harness.write("read_ceiling", __doc__ or "", results)


if __name__ == "__main__":
    main()
