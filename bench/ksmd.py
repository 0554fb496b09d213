"""How long does Linux's ksmd take, at full throttle, for what an exact scan finds?

The same pages lie twice in memory: in this process for the engine, and in a child's mergeable
region for ksmd (one kernel thread, no pause between batches). KSM merges in its second pass, so
it runs two. ksmd merges and the engine does not: the figure is the time until the sharing is known,
not the cost of merging. KSM's counters are checked against the population. Needs root and KSM at
rest, and restores every setting; otherwise prints the reason and writes nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import harness
import numpy as np

from gpudedup.engines.base import PageSource
from gpudedup.engines.cpu.engine import CpuEngine

KSM = Path("/sys/kernel/mm/ksm")
THROTTLE = {
    "advisor_mode": "none",
    "smart_scan": "0",
    "use_zero_pages": "1",
    "max_page_sharing": "256",
    "sleep_millisecs": "0",
    "pages_to_scan": "1000000",
}
"""Settings, in the order of writing: an active advisor owns pages_to_scan."""

COUNTERS = ("pages_shared", "pages_sharing", "ksm_zero_pages")


def read(name: str) -> str:
    """Return a setting or counter of KSM; of a choice, the value in brackets."""
    text = (KSM / name).read_text().strip()
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else text


def why_not() -> str:
    """Return why ksmd cannot be measured here; empty: it can."""
    if not os.access(KSM / "run", os.W_OK):
        return "KSM is not there, or not ours to switch: needs root"
    if read("run") == "1" or int(read("pages_shared")):
        return "KSM is in use"
    return ""


@contextmanager
def at_full_throttle() -> Iterator[None]:
    """Write :data:`THROTTLE`; at the end unmerge everything and restore the settings."""
    before = {name: read(name) for name in THROTTLE if (KSM / name).exists()}
    run = read("run")
    try:
        for name in before:
            (KSM / name).write_text(THROTTLE[name])
        yield
    finally:
        (KSM / "run").write_text("2")
        # advisor_mode is restored last: under an advisor pages_to_scan cannot be written.
        for name, value in reversed(before.items()):
            (KSM / name).write_text(value)
        (KSM / "run").write_text(run)


def foretold(ids: harness.Ids) -> dict[str, int]:
    """Return the counters that KSM must show after merging the pages of ``ids``."""
    copies = np.unique(ids[ids > 0], return_counts=True)[1]
    shared = int(np.count_nonzero(copies > 1))
    sharing = int(copies.sum()) - len(copies)
    return dict(zip(COUNTERS, (shared, sharing, int(np.count_nonzero(ids == 0))), strict=True))


def merge(ids: harness.Ids) -> float:
    """Return the seconds of ksmd's two passes over the pages of ``ids`` in a child."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        region = mmap.mmap(-1, len(ids) * harness.PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(mmap.MADV_NOHUGEPAGE)
        region.madvise(mmap.MADV_MERGEABLE)
        pages = np.frombuffer(region, np.uint8).reshape(len(ids), harness.PAGE_SIZE)
        for first in range(0, len(ids), 1 << 12):
            pages[first : first + (1 << 12)] = harness.fill(ids[first : first + (1 << 12)])
        ctypes.CDLL(None).prctl(1, 9)  # die with the parent
        os.write(here, b"x")
        time.sleep(3600)
    try:
        os.read(there, 1)
        passes = int(read("full_scans"))
        started = time.perf_counter()
        (KSM / "run").write_text("1")
        while int(read("full_scans")) < passes + 2:
            time.sleep(0.001)
        seconds = time.perf_counter() - started
        merged = {name: int(read(name)) for name in COUNTERS}
        assert merged == foretold(ids), (merged, foretold(ids))
        return seconds
    finally:
        (KSM / "run").write_text("2")
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(there)
        os.close(here)


def main() -> None:
    """Measure the mixed population, on one engine thread and on all."""
    options = harness.arguments(__doc__, rounds=3).parse_args()
    if reason := why_not():
        print(f"ksmd is not measured: {reason}")
        sys.exit()
    ids = harness.content_ids("mix", options.size // harness.PAGE_SIZE)
    pages = harness.fill(ids)
    store = PageSource.of_array(pages)
    results = []
    with at_full_throttle():
        for threads in sorted({1, options.threads}):
            engine = CpuEngine(threads)
            result = harness.Comparison(
                {"population": "mix", "threads": threads},
                pages.nbytes,
                {"gpudedup exact": [], "ksmd, two passes": []},
            )
            engine.partition(store)
            for _ in range(options.rounds):
                started = time.perf_counter()
                engine.partition(store)
                result.seconds["gpudedup exact"].append(time.perf_counter() - started)
                result.seconds["ksmd, two passes"].append(merge(ids))
            result.ratio("gpudedup exact", "ksmd, two passes")
            harness.show(result)
            results.append(result)
    harness.write("ksmd", __doc__ or "", results)


if __name__ == "__main__":
    main()
