"""How near do digest and exact partition come to merely reading the pages?

Candidates, on the same bytes in memory with the same threads: a compiled loop that sums the words
(the read ceiling), XXH3-128 of every page without grouping, and the exact partition.
"""

from __future__ import annotations

import harness
import numpy as np

from gpudedup.engines.base import PageStore
from gpudedup.engines.cpu import CpuEngine
from gpudedup.engines.jit import compiled
from gpudedup.engines.xxh3 import digest_page


@compiled
def digest_pages(address, page_size, out):  # type: ignore[no-untyped-def]
    """Write the digests of consecutive pages to ``out``, (n, 2) uint64."""
    acc = np.empty(8, np.uint64)
    for i in range(len(out)):
        page = np.uint64(address) + np.uint64(i * page_size)
        out[i, 0], out[i, 1] = digest_page(page, page_size, acc)


def compare(population: str, size: int, threads: int, rounds: int) -> harness.Comparison:
    """Measure one population at one number of threads."""
    ids = harness.content_ids(population, size // harness.PAGE_SIZE)
    pages = harness.fill(ids)
    store, engine = PageStore.of_array(pages), CpuEngine(threads)
    digests = np.empty((len(pages), 2), np.uint64)

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
            "digest": digest,
            "exact": lambda: engine.partition(store),
        },
        size=pages.nbytes,
        rounds=rounds,
        population=population,
        threads=threads,
    )
    result.ratio("digest", "read ceiling")
    result.ratio("exact", "read ceiling")
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
