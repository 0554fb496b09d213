"""What does the memory manager cost: breaks, single operations, merging, and per page it knows?

Four parts, single-threaded:

- Breaks: stores of 64 bytes to all pages of a forked mapping, each of which copies its page, and
  stores of whole pages to it; beside a compiled loop that copies as many pages one after another.
- Operations that copy nothing, in bulk, on pages in random order: loads and stores of 8 bytes, and
  pins, which are bookkeeping only.
- Merging: pages moved per second of the pass that applies a plan; comparing bytes is timed apart.
- Size: up to ``--most`` pages with a frame each (of 512 bytes, never touched), in a process per
  size: nanoseconds per operation, time and peak memory to load and check them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import harness
import numpy as np

import gpudedup as gd
from gpudedup.measuring.manager import PIN, Breaks, Merges, Single
from gpudedup.mm.state.arrays import LEAF_PAGES, PER_FRAME, PER_LEAF, PER_PAGE
from gpudedup.mm.state.numba_type import ARRAYS

SIZES = (10**5, 10**6, 10**7, 10**8)
BYTES_PER_PAGE = 70
"""Free memory, in bytes per page, that a size needs to be measured."""

BATCH = 10**5
"""Operations per bulk call, on random pages."""


def breaks(size: int, rounds: int) -> harness.Comparison:
    """Compare breaks with copies."""
    result = Breaks(size).compare(rounds)
    harness.show(result)
    return result


def single(size: int, rounds: int) -> harness.Comparison:
    """Measure operations that copy nothing, in bulk."""
    work = Single(size)
    mm, heap, n, out = work.mm, work.heap, work.n, work.out
    half, rest = work.order[: n // 2], work.order[n // 2 :]

    def mixed() -> None:
        for start in range(0, len(half), 1 << 14):
            a, b = half[start : start + (1 << 14)], rest[start : start + (1 << 14)]
            mm.read(heap, a, size=8, out=out[: len(a)])
            mm.write(heap, b, work.word, offset=16)
            mm.read(heap, a + n, size=8, out=out[: len(a)])
            mm.pin(heap, b).unpin()

    candidates = {**work.candidates(), "mixed: load, store, load of a hole, pin": mixed}
    result = harness.interleave(candidates, size=n, rounds=rounds, question="single operations")
    operations = {"mixed: load, store, load of a hole, pin": 2 * n, PIN: 2 * n}
    for name, samples in result.seconds.items():
        rate = operations.get(name, n) / median(samples) / 1e6
        result.ratios[f"{name}: M/s"] = round(rate, 2)
    print_ratios(result)
    return result


def merges(size: int, rounds: int) -> harness.Comparison:
    """Measure merging on the population `mix`; zero pages are one ordinary content."""
    work = Merges(size, page_size=512)
    for _ in range(rounds + 1):
        work.merge()
    # The first round compiles.
    reports = work.reports[1:]
    seconds = {stage: [report.seconds[stage] for report in reports] for stage in reports[0].seconds}
    moved = reports[0].merged
    result = harness.Comparison(
        {"question": "merge", "pages": len(work.ids), "moved": moved}, size, seconds
    )
    result.ratios["apply: M pages/s"] = round(moved / median(seconds["apply_s"]) / 1e6, 2)
    result.ratios["compare: M pages/s"] = round(moved / median(seconds["compare_s"]) / 1e6, 2)
    total = sum(median(samples) for samples in seconds.values())
    result.ratios["all of it: M pages/s"] = round(len(work.ids) / total / 1e6, 2)
    print_ratios(result)
    return result


def metadata() -> float:
    """Return metadata bytes per page with its own frame, including leaf and directory."""
    records = sum(ARRAYS[name].itemsize for name in (*PER_PAGE, *PER_FRAME))
    of_leaf = sum(ARRAYS[name].itemsize for name in PER_LEAF) + np.dtype(np.uint32).itemsize
    return records + of_leaf / LEAF_PAGES


def known(pages: int) -> dict[str, float]:
    """Load ``pages`` pages with a frame each, check, time operations; run in a fresh process."""
    mm = gd.MemoryManager(512)
    heap = mm.create("heap", pages=pages)
    started = time.perf_counter()
    for first in range(0, pages, 1 << 20):
        index = np.arange(first, min(first + (1 << 20), pages))
        numbers, _ = mm.memory.locate(heap, index, create=True)
        # As a store of whole pages does, but of no bytes.
        mm.make_writable(heap, numbers, data=np.empty((len(numbers), 0), np.uint8))
    loaded = time.perf_counter()
    mm.check(contents=False)
    checked = time.perf_counter()
    # Not ru_maxrss, which a process inherits from its parent.
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    peak = int(found[1]) >> 10 if found else 0
    index = np.random.default_rng(1).integers(0, pages, BATCH)

    def punch_and_take() -> None:
        mm.punch(heap, index)
        numbers, _ = mm.memory.locate(heap, index, create=True)
        mm.make_writable(heap, numbers, data=np.empty((len(numbers), 0), np.uint8))

    # None writes to a frame: random stores would populate every huge page of the pool.
    operations: dict[str, Callable[[], object]] = {
        "load of 8 bytes": lambda: mm.read(heap, index, size=8),
        "pin and unpin": lambda: mm.pin(heap, index).unpin(),
        "pin for writing and unpin": lambda: mm.pin(heap, index, write=True).unpin(),
        "splice and close": lambda: mm.splice(heap, index).close(),
        "punch and take a frame again": punch_and_take,
    }
    result: dict[str, float] = {}
    for name, operation in operations.items():
        operation()
        samples = []
        for _ in range(5):
            before = time.perf_counter()
            operation()
            samples.append(time.perf_counter() - before)
        result[f"{name}: ns"] = round(median(samples) / BATCH * 1e9, 1)
    return {
        **result,
        "load: ns per page": round((loaded - started) / pages * 1e9, 1),
        "check: ns per page": round((checked - loaded) / pages * 1e9, 1),
        "peak MiB of load and check": peak,
        "metadata, bytes per page": round(metadata(), 2),
        "metadata with room to grow, bytes per page": round(
            sum(getattr(mm.memory.state, name).nbytes for name in ARRAYS) / pages, 2
        ),
    }


KNOWN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import mm
mm.known(1000)
print(json.dumps(mm.known(int(sys.argv[2]))))
"""


def sizes(most: int) -> tuple[list[harness.Comparison], list[int]]:
    """Measure all sizes that fit into memory; return also the sizes left out."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    free = int(found[1]) << 10 if found else 0
    results, left_out = [], []
    for pages in SIZES:
        if pages > most or pages * BYTES_PER_PAGE > free:
            left_out.append(pages)
            continue
        words = [sys.executable, "-c", KNOWN, str(Path(__file__).parent), str(pages)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        result = harness.Comparison({"question": "size", "pages": pages}, pages, {})
        result.ratios.update(json.loads(done.stdout))
        print_ratios(result)
        results.append(result)
    return results, left_out


def print_ratios(result: harness.Comparison) -> None:
    """Print the figures that are not rates of bytes."""
    print("\n" + "  ".join(f"{k}={v}" for k, v in result.case.items()))
    for name, value in result.ratios.items():
        print(f"  {name:58} {value:10.2f}")


def main() -> None:
    """Measure everything."""
    parser = harness.arguments(__doc__, size=1 << 30)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest number of pages")
    options = parser.parse_args()
    results = [
        breaks(options.size, options.rounds),
        single(options.size, options.rounds),
        merges(options.size, options.rounds),
    ]
    more, left_out = sizes(options.most)
    harness.write("mm", __doc__ or "", [*results, *more], left_out=left_out)


if __name__ == "__main__":
    main()
