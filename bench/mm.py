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
from typing import Any

import harness
import numpy as np
import numpy.typing as npt
from numba import njit, types

import gpudedup as gd
from gpudedup.mm.state.arrays import LEAF_PAGES, PER_FRAME, PER_LEAF, PER_PAGE
from gpudedup.mm.state.numba_type import ARRAYS

SIZES = (10**5, 10**6, 10**7, 10**8)
BYTES_PER_PAGE = 70
"""Free memory, in bytes per page, that a size needs to be measured."""

BATCH = 10**5
"""Operations per bulk call, on random pages."""

memcpy: Any = types.ExternalFunction(
    "memcpy", types.uint64(types.uint64, types.uint64, types.uint64)
)


@njit(nogil=True)
def copy_pages(target, source, page_size):  # type: ignore[no-untyped-def]
    """Copy pages one after another, by address: no break that copies can be faster."""
    for i in range(len(target)):
        memcpy(target[i], source[i], page_size)


def addresses(pages: harness.Pages) -> npt.NDArray[np.uint64]:
    """Return the address of each page."""
    return np.uint64(pages.ctypes.data) + np.arange(len(pages), dtype=np.uint64) * np.uint64(
        pages.shape[1]
    )


class Breaks:
    """A mapping; each sample forks it, breaks COW by stores to the fork, and drops the fork."""

    def __init__(self, size: int) -> None:
        self.n = size // harness.PAGE_SIZE
        self.mm = gd.MemoryManager(harness.PAGE_SIZE)
        self.parent = self.mm.create("parent", pages=self.n)
        self.index = np.arange(self.n)
        self.mm.write(self.parent, self.index, np.ones(harness.PAGE_SIZE, np.uint8))
        self.part = np.full(64, 7, np.uint8)
        self.whole = np.full((self.n, harness.PAGE_SIZE), 9, np.uint8)
        self.other = np.ones_like(self.whole)
        self.at, self.to = addresses(self.whole), addresses(self.other)

    def stores(self) -> float:
        """Return the seconds of stores that break all pages, without fork and drop."""
        child = self.mm.fork(self.parent)
        started = time.perf_counter()
        self.mm.write(child, self.index, self.part, offset=128)
        seconds = time.perf_counter() - started
        self.mm.drop(child)
        return seconds

    def whole_stores(self) -> float:
        """Return the seconds of stores of whole pages, which need not copy the old ones."""
        child = self.mm.fork(self.parent)
        started = time.perf_counter()
        self.mm.write(child, self.index, self.whole)
        seconds = time.perf_counter() - started
        self.mm.drop(child)
        return seconds

    def ceiling(self) -> float:
        """Return the seconds of :func:`copy_pages`."""
        started = time.perf_counter()
        copy_pages(self.to, self.at, np.uint64(harness.PAGE_SIZE))
        return time.perf_counter() - started


def breaks(size: int, rounds: int) -> harness.Comparison:
    """Compare breaks with copies."""
    work = Breaks(size)
    candidates: dict[str, Callable[[], float]] = {
        "page copy": work.ceiling,
        "break, 64 bytes stored": work.stores,
        "break, page stored": work.whole_stores,
    }
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for at in range(rounds):
        for name in names[at % 3 :] + names[: at % 3]:
            seconds[name].append(candidates[name]())
    result = harness.Comparison({"question": "breaks", "pages": work.n}, size, seconds)
    for name in names[1:]:
        result.ratio(name, "page copy")
    result.print()
    return result


def single(size: int, rounds: int) -> harness.Comparison:
    """Measure operations that copy nothing, in bulk."""
    n = size // harness.PAGE_SIZE
    mm = gd.MemoryManager(harness.PAGE_SIZE)
    heap = mm.create("heap", pages=2 * n)
    mm.write(heap, np.arange(n), np.ones(harness.PAGE_SIZE, np.uint8))
    order = np.random.default_rng(1).permutation(n)
    word, out = np.full(8, 3, np.uint8), np.empty((n, 8), np.uint8)
    half = order[: n // 2]
    rest = order[n // 2 :]

    def mixed() -> None:
        for start in range(0, len(half), 1 << 14):
            a, b = half[start : start + (1 << 14)], rest[start : start + (1 << 14)]
            mm.read(heap, a, size=8, out=out[: len(a)])
            mm.write(heap, b, word, offset=16)
            mm.read(heap, a + n, size=8, out=out[: len(a)])
            mm.pin(heap, b).unpin()

    candidates = {
        "load of 8 bytes": lambda: mm.read(heap, order, size=8, out=out),
        "store of 8 bytes": lambda: mm.write(heap, order, word, offset=16),
        "pin and unpin": lambda: mm.pin(heap, order).unpin(),
        "mixed: load, store, load of a hole, pin": mixed,
    }
    result = harness.interleave(candidates, size=n, rounds=rounds, question="single operations")
    operations = {"mixed: load, store, load of a hole, pin": 2 * n, "pin and unpin": 2 * n}
    for name, samples in result.seconds.items():
        rate = operations.get(name, n) / median(samples) / 1e6
        result.ratios[f"{name}: M/s"] = round(rate, 2)
    print_ratios(result)
    return result


def merges(size: int, rounds: int) -> harness.Comparison:
    """Measure merging on the population `mix`; zero pages are one ordinary content."""
    ids = harness.content_ids("mix", size // 512)
    pages = harness.fill(ids, 512)
    seconds: dict[str, list[float]] = {}
    moved = 0
    for _ in range(rounds + 1):
        mm = gd.MemoryManager.from_image(pages)
        report = mm.merge()
        moved = report.merged
        for stage, taken in report.seconds.items():
            seconds.setdefault(stage, []).append(taken)
    # The first round compiles.
    seconds = {stage: samples[1:] for stage, samples in seconds.items()}
    result = harness.Comparison(
        {"question": "merge", "pages": len(ids), "moved": moved}, size, seconds
    )
    result.ratios["apply: M pages/s"] = round(moved / median(seconds["apply_s"]) / 1e6, 2)
    result.ratios["compare: M pages/s"] = round(moved / median(seconds["compare_s"]) / 1e6, 2)
    total = sum(median(samples) for samples in seconds.values())
    result.ratios["all of it: M pages/s"] = round(len(ids) / total / 1e6, 2)
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
