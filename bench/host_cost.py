"""What does the host add to each page of a scan on a device?

The device costs nothing (``free_device.py``), so what is left is the host's: queueing, staging,
classes and representatives, memory for results, totals. Pages are in "device memory", where no
bytes are needed, or in host memory. ``--against`` names another checkout, whose engine takes turns
with this one's, each in a process of its own. ``cpu_s`` is the processor's seconds, of all threads:
other work on the machine changes it less than wall time. Not measured: the card, the bus, CUDA's
own calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from free_device import RESIDENT, Found, FreeDevice
from harness import (
    PAGE_SIZE,
    POPULATIONS,
    Comparison,
    Pages,
    arguments,
    content_ids,
    expected,
    fill,
    write,
)
from numba import njit

HERE = Path(__file__).parent
STAGES = ("open_s", "load_s", "frames_s", "stream_s", "verify_s", "settle_s", "count_s", "rest_s")
PIECE = 4 << 20
RING = 32 << 20


class Resident:
    """Pages in device memory; no bytes are there."""

    def __init__(self, pages: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (pages, PAGE_SIZE), "typestr": "|u1", "data": (RESIDENT, False), "version": 3,
        }  # fmt: skip


@njit(nogil=True)
def _copy_in_turn(words, ring, start, stop):  # type: ignore[no-untyped-def]
    """Copy words to a small buffer that is used again and again."""
    for at in range(start, stop, len(ring)):
        end = min(at + len(ring), stop)
        ring[: end - at] = words[at:end]


def memcpy_seconds(pages: Pages, threads: int) -> float:
    """Return the seconds that ``threads`` threads take to copy all pages to a ring each."""
    words = pages.view(np.uint64).reshape(-1)
    rings = np.zeros((threads, RING // threads // 8), np.uint64)
    step = -(-len(words) // threads)
    starts = range(0, len(words), step)
    workers = [
        threading.Thread(target=_copy_in_turn, args=(words, ring, at, min(at + step, len(words))))
        for ring, at in zip(rings, starts, strict=True)
    ]
    _copy_in_turn(words[:1], rings[0], 0, 1)
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


def stages_of(run: Callable[[], Any], device: FreeDevice) -> tuple[Any, dict[str, float]]:
    """Return a scan, and its seconds by stage, those of the device's own copies taken off."""
    device.own = 0.0
    started, worked = time.perf_counter(), time.process_time()
    scan = run()
    wall, work = time.perf_counter() - started, time.process_time() - worked
    found = {name: scan.timings.get(name, 0.0) for name in STAGES[:-1]}
    found["stream_s"] -= device.own
    found["rest_s"] = wall - scan.timings["total_s"]
    busy = {"staging_s": scan.timings["staging_s"]}
    more = {"wall_s": wall - device.own, "cpu_s": work - device.own, "device_s": device.own}
    return scan, {**found, **more, **busy}


def given(device: FreeDevice, numbers: object = None) -> list[FreeDevice]:
    """Stand for ``open_devices``."""
    return [device]


def child(pages: int, host_pages: int, threads: int) -> None:
    """Scan each population once for its code, then twice; print the seconds by stage."""
    import gpudedup as gd

    cuda: Any = import_module("gpudedup.devices.cuda")
    found: dict[str, dict[str, float]] = {}
    for place, n in (("resident", pages), ("host", host_pages)):
        for population in POPULATIONS:
            ids = content_ids(population, n)
            # The host drops zero pages: the device numbers the others.
            device = FreeDevice(Found.of(ids if place == "resident" else ids[ids != 0]))
            cuda.open_devices = partial(given, device)
            image: Any = Resident(n) if place == "resident" else fill(ids)
            small = Resident(1000) if place == "resident" else image[:1000]
            gd.scan(small, backend="cuda", threads=threads)
            run = partial(gd.scan, image, backend="cuda", threads=threads)
            for turn in ("first", "again"):
                scan, seconds = stages_of(run, device)
                assert np.array_equal(scan.partition.representative, expected(ids))
                del scan
                found[f"{place} {population} {turn}"] = seconds
            if place == "host":
                found[f"memcpy {population}"] = {"wall_s": memcpy_seconds(image, threads)}
            getattr(gd, "close_devices", lambda: None)()
    print(json.dumps(found))


def measure(tree: Path, asked: Any) -> dict[str, dict[str, float]]:
    """Run :func:`child` with the engine of ``tree``."""
    words = [sys.executable, __file__, "--child", "--pages", asked.pages, "--size", asked.size]
    words += ["--threads", asked.threads]
    done = subprocess.run(
        [str(word) for word in words],
        env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result: dict[str, dict[str, float]] = json.loads(done.stdout)
    return result


def compare(runs: dict[str, list[dict[str, dict[str, float]]]], asked: Any) -> list[Comparison]:
    """Return a comparison for each case, printed as nanoseconds per page."""
    comparisons = []
    first = next(iter(runs.values()))
    for case in first[0]:
        n = asked.pages if case.startswith("resident") else asked.size // PAGE_SIZE
        seconds = {
            f"{tree} {stage}": [run[case][stage] for run in rounds]
            for tree, rounds in runs.items()
            for stage in rounds[0][case]
        }
        made = Comparison({"case": case, "pages": n}, n * PAGE_SIZE, seconds)
        if len(runs) > 1:
            made.ratio("now wall_s", "start wall_s")
        comparisons.append(made)
        print(f"\n{case}, {n} pages: ns a page, median (least)")
        for stage in (*STAGES, "wall_s", "cpu_s", "staging_s", "device_s"):
            for tree in runs:
                if samples := seconds.get(f"{tree} {stage}"):
                    each = [1e9 * sample / n for sample in samples]
                    print(f"  {stage:10} {tree:6} {median(each):8.2f} ({min(each):.2f})")
    return comparisons


def main() -> None:
    """Measure, print, record."""
    parser = arguments(__doc__, size=1 << 30, rounds=5)
    parser.add_argument("--pages", type=int, default=2_000_000, help="pages in device memory")
    parser.add_argument("--against", type=Path, help="folder of another checkout")
    parser.add_argument("--child", action="store_true", help="print one round's seconds as JSON")
    asked = parser.parse_args()
    if asked.child:
        child(asked.pages, asked.size // PAGE_SIZE, asked.threads)
        return
    trees = {"now": HERE.parent}
    if asked.against:
        trees["start"] = asked.against.resolve()
    runs: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in trees}
    for name in trees:
        measure(trees[name], asked)
    for turn in range(asked.rounds):
        names = list(trees)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            runs[name].append(measure(trees[name], asked))
    comparisons = compare(runs, asked)
    write("host_cost", (__doc__ or "").splitlines()[0], comparisons, threads=asked.threads)


if __name__ == "__main__":
    main()
