"""How near do digest and exact partition come to merely reading the pages?

Candidates, on the same bytes in memory with the same threads: a compiled loop that sums the words
(read, the ceiling), the same loop with the digest's prefetch, a copy, XXH3-128 of every page
without grouping, and the exact partition. Prefetch can beat the plain loop, so a digest may come
out above the read ceiling.
"""

from __future__ import annotations

import harness

from gpudedup.measuring.host import HostWork, compare


def measure(population: str, size: int, threads: int, rounds: int) -> harness.Comparison:
    """Measure one population at one number of threads."""
    work = HostWork(population, size, threads)
    work.check()
    result = compare(work, rounds)
    harness.show(result)
    return result


def main() -> None:
    """Measure both populations on one thread and on all."""
    options = harness.arguments(__doc__).parse_args()
    results = [
        measure(population, options.size, threads, options.rounds)
        for population in harness.POPULATIONS
        for threads in sorted({1, options.threads})
    ]
    harness.write("read_ceiling", __doc__ or "", results)


if __name__ == "__main__":
    main()
