"""How many events of a trace does a replay execute per second?

Two parts, single-threaded; loading, merging, checking and digesting are not timed:

- Loads and stores of 8 bytes that copy nothing, half each, in random order, on random pages of one
  mapping and of many: a replay, with its samples of memory; the same accesses in bulk calls of the
  memory manager, all loads, then all stores, one mapping after another, which keep no order and
  count nothing; and one call of the manager for each of the first events.
- Each mix of ``gpudedup trace generate`` on a synthetic image, merged first, with the host device:
  events per second, and how many pages broke.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import harness
import numpy as np
import pyarrow as pa

import gpudedup as gd
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import Mapping, PageColumns
from gpudedup.schema import trace_schema
from gpudedup.traces.mixes import MIXES

EVENTS = 2_000_000
PAGES = 100_000
MAPPINGS = (1, 10, 200)
SINGLE = 20_000
"""Events executed by one call each."""

MIXED = 200_000
"""Events per mix."""


class Accesses:
    """A manager with written pages, and a trace of loads and stores to them.

    :param mappings: number of mappings that share the pages equally
    """

    def __init__(self, mappings: int, events: int) -> None:
        rng = np.random.default_rng(1)
        each = PAGES // mappings
        self.mm = gd.MemoryManager(harness.PAGE_SIZE)
        self.mappings = [self.mm.create(f"m{at}", pages=each) for at in range(mappings)]
        for mapping in self.mappings:
            self.mm.write(mapping, np.arange(each), np.ones(harness.PAGE_SIZE, np.uint8))
        self.store = rng.random(events) < 0.5
        self.mapping = rng.integers(0, mappings, events).astype(np.int32)
        self.index = rng.integers(0, each, events)
        columns = {
            "operation": pa.DictionaryArray.from_arrays(
                pa.array(self.store.astype(np.int8)), pa.array(["read", "write"])
            ),
            "mapping": pa.array(self.mapping),
            "index": pa.array(self.index.astype(np.uint64)),
            "count": pa.array(np.ones(events, np.uint32)),
            "node": pa.nulls(events, pa.int16()),
            "device": pa.nulls(events, pa.int16()),
            "seed": pa.array(np.arange(events, dtype=np.uint64)),
            "time_ns": pa.nulls(events, pa.uint64()),
        }
        self.trace = pa.table(columns, trace_schema(harness.PAGE_SIZE))
        self.groups = [
            [np.flatnonzero((self.mapping == at) & (self.store == store)) for at in range(mappings)]
            for store in (False, True)
        ]
        self.words = np.arange(events, dtype=np.uint64).view(np.uint8).reshape(-1, 8)

    def replay(self) -> float:
        """Return the seconds of the replay's events."""
        done = gd.replay(self.mm, self.trace, merge=False)
        assert done.totals["bytes_copied"] == 0
        return done.timings["run_s"]

    def in_bulk(self) -> None:
        """Do the same loads and stores in bulk, without their order."""
        for store, groups in enumerate(self.groups):
            for mapping, rows in zip(self.mappings, groups, strict=True):
                for start in range(0, len(rows), 1 << 16):
                    part = rows[start : start + (1 << 16)]
                    if store:
                        self.mm.write(mapping, self.index[part], self.words[part], offset=0)
                    else:
                        self.mm.read(mapping, self.index[part], size=8)

    def one_by_one(self) -> None:
        """Do the first :data:`SINGLE` loads and stores, one call each."""
        for at in range(SINGLE):
            mapping, index = self.mappings[self.mapping[at]], self.index[at]
            if self.store[at]:
                self.mm.write(mapping, index, self.words[at], offset=0)
            else:
                self.mm.read(mapping, index, size=8)


def accesses(mappings: int, events: int, rounds: int) -> harness.Comparison:
    """Measure loads and stores that copy nothing."""
    work = Accesses(mappings, events)
    candidates: dict[str, Callable[[], float]] = {
        "replay": work.replay,
        "bulk calls, unordered": harness.timed(work.in_bulk),
        "one call each": harness.timed(work.one_by_one),
    }
    result = harness.interleave_clocked(
        candidates, size=events, rounds=rounds, question="accesses", mappings=mappings
    )
    for name, samples in result.seconds.items():
        done = SINGLE if name == "one call each" else events
        result.ratios[f"{name}: M events/s"] = round(done / median(samples) / 1e6, 3)
    result.ratio("replay", "bulk calls, unordered")
    show(result)
    return result


def write_image(path: Path, pages: int) -> None:
    """Write the population `mix` as an image whose every other mapping is a file."""
    ids = harness.content_ids("mix", pages)
    maps = [
        Mapping(f"p{at}", "", ("anon", "file")[at % 2], f"m{at}", 0) for at in range(MAPPINGS[1])
    ]
    each = pages // len(maps)
    with DumpWriter(path, harness.PAGE_SIZE, maps, source="bench", force=True) as dump:
        for at in range(len(maps)):
            index = np.arange(each, dtype=np.uint64)
            columns = PageColumns(at * each, np.full(each, at, np.int32), index)
            dump.write(columns, harness.fill(ids[at * each : (at + 1) * each]))


def mixes(events: int, rounds: int) -> harness.Comparison:
    """Measure each mix."""
    policy = gd.MergePolicy(kinds=("anon", "file"))
    totals: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.arrow"
        write_image(image, PAGES // 2)
        candidates: dict[str, Callable[[], float]] = {}
        for name in MIXES:
            trace = Path(folder) / f"{name}.arrow"
            gd.generate_trace(image, trace, gd.Mix(name, events, seed=1))

            def run(name: str = name, trace: Path = trace) -> float:
                done = gd.replay(image, trace, policy=policy, device_engine="cpu")
                totals[name] = done.totals
                return done.timings["run_s"]

            candidates[name] = run
        result = harness.interleave_clocked(
            candidates, size=events, rounds=rounds, question="mixes", pages=PAGES // 2
        )
    for name, samples in result.seconds.items():
        result.ratios[f"{name}: thousand events/s"] = round(events / median(samples) / 1e3, 1)
        result.ratios[f"{name}: pages broken"] = totals[name]["breaks"]
        result.ratios[f"{name}: pages touched"] = totals[name]["pages"]
    show(result)
    return result


def show(result: harness.Comparison) -> None:
    """Print the figures that are not rates of bytes."""
    print("\n" + "  ".join(f"{k}={v}" for k, v in result.case.items()))
    for name, value in result.ratios.items():
        print(f"  {name:58} {value:12.3f}")


def main() -> None:
    """Measure everything."""
    parser = harness.arguments(__doc__, rounds=5)
    parser.add_argument("--events", type=int, default=EVENTS)
    options = parser.parse_args()
    results = [accesses(count, options.events, options.rounds) for count in MAPPINGS]
    results.append(mixes(min(MIXED, options.events), options.rounds))
    harness.write("replay", __doc__ or "", results)


if __name__ == "__main__":
    main()
