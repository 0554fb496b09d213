"""Shared by all benchmarks: populations, interleaved rounds, ratios, and the record of a run.

Only ratios inside one run count: machines are noisy, and other work comes and goes. So every
round runs each candidate once, the order rotates from round to round, and a ratio is the median
of the rounds' own ratios. The read ceiling is a plain compiled loop that sums the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from gpudedup.engines.cpu.engine import TASK_BYTES, processor, usable_cores

SIZE = 2 << 30
PAGE_SIZE = 4096
ROUNDS = 7
POPULATIONS = ("random", "mix")
"""random: all pages unique; mix: 30 % zero, 40 % unique, 30 % duplicates, shuffled."""

DUPLICATED_PART = 13.6
"""Pages of mix per content that its duplicates are drawn from."""

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "pyarrow", "polars", "duckdb", "xxhash")

Pages = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]


def content_ids(population: str, pages: int, seed: int = 1) -> Ids:
    """Return for each page the number of its content, (pages,) int64; 0 is the zero page."""
    ids = np.arange(1, pages + 1)
    if population == "random":
        return ids
    rng = np.random.default_rng(seed)
    zeros, unique = int(0.3 * pages), int(0.4 * pages)
    ids[:zeros] = 0
    contents = max(1, int(pages / DUPLICATED_PART))
    ids[zeros + unique :] = pages + 1 + rng.integers(0, contents, pages - zeros - unique)
    rng.shuffle(ids)
    return ids


@njit(nogil=True, cache=True)
def _fill(words, ids):  # type: ignore[no-untyped-def]
    """Fill page i with SplitMix64 of its content's number; 0 gives zeros."""
    for i in range(len(ids)):
        state = np.uint64(ids[i]) << np.uint64(20)
        for j in range(words.shape[1]):
            state += np.uint64(0x9E3779B97F4A7C15)
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            words[i, j] = np.uint64(0) if ids[i] == 0 else z ^ (z >> np.uint64(31))


def fill(ids: Ids, page_size: int = PAGE_SIZE) -> Pages:
    """Return the pages of ``ids``, (n, page_size) uint8."""
    pages = np.empty((len(ids), page_size), np.uint8)
    _fill(pages.view(np.uint64), ids)
    return pages


def expected(ids: Ids) -> Ids:
    """Return the lowest row with the same content, for every row."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


@njit(nogil=True, cache=True)
def read_words(words):  # type: ignore[no-untyped-def]
    """Return the sum of uint64 words."""
    total = np.uint64(0)
    for word in words:
        total += word
    return total


def over_tasks(work: Callable[[int, int], Any], rows: int, page_size: int, threads: int) -> None:
    """Call ``work(start, stop)`` for all rows, in the engine's tasks, on ``threads`` threads."""
    step = max(1, TASK_BYTES // page_size)
    starts = iter(range(0, rows, step))

    def run() -> None:
        # next() on a range iterator is atomic under the GIL.
        while (start := next(starts, None)) is not None:
            work(start, min(start + step, rows))

    with ThreadPoolExecutor(threads) as pool:
        for worker in [pool.submit(run) for _ in range(threads)]:
            worker.result()


def read_ceiling(pages: Pages, threads: int) -> Callable[[], None]:
    """Return a function that reads all bytes of ``pages`` once."""
    words = pages.view(np.uint64)

    def read() -> None:
        over_tasks(
            lambda a, b: read_words(words[a:b].reshape(-1)), len(pages), pages.shape[1], threads
        )

    return read


@dataclass
class Comparison:
    """Candidates that did the same work in interleaved rounds.

    :param case: names and values that distinguish it within a run, e.g. population
    :param size: bytes that each candidate processes; operations where no rate of bytes is printed
    :param seconds: samples of each candidate, one per round
    :param ratios: ``"a / b"`` to the median over rounds of a's rate by b's; other figures by name
    """

    case: dict[str, Any]
    size: int
    seconds: dict[str, list[float]]
    ratios: dict[str, float] = field(default_factory=dict)

    def ratio(self, name: str, other: str) -> float:
        """Record and return how many times faster ``name`` is than ``other``."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        value = median(b / a for a, b in pairs)
        self.ratios[f"{name} / {other}"] = round(value, 3)
        return value

    def print(self) -> None:
        """Print rates and ratios."""
        print("\n" + "  ".join(f"{k}={v}" for k, v in self.case.items()), f" {self.size} bytes")
        for name, samples in self.seconds.items():
            mid = median(samples)
            spread = f"{min(samples) * 1e3:9.1f} .. {max(samples) * 1e3:9.1f} ms"
            print(f"  {name:34} {self.size / mid / 1e9:8.2f} GB/s {mid * 1e3:9.1f} ms  {spread}")
        for name, value in self.ratios.items():
            print(f"  {name:58} {value:6.2f}")


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that runs ``work`` and returns its seconds."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    size: int,
    rounds: int,
    warm: bool = True,
    **case: Any,
) -> Comparison:
    """Run every candidate once per round, in rotating order, and record its seconds.

    :param warm: run each candidate once before, untimed, so that no round compiles
    """
    clocked = {name: timed(work) for name, work in candidates.items()}
    return interleave_clocked(clocked, size=size, rounds=rounds, warm=warm, **case)


def interleave_clocked(
    candidates: Mapping[str, Callable[[], float]],
    *,
    size: int,
    rounds: int,
    warm: bool = True,
    **case: Any,
) -> Comparison:
    """Do as :func:`interleave`, with candidates that return their own seconds, by any clock."""
    names = list(candidates)
    if warm:
        for name in names:
            candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for at in range(rounds):
        shift = at % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(candidates[name]())
    return Comparison(case, size, seconds)


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, memory, kernel and versions; no host name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": processor(),
        "cores": usable_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "versions": versions,
        "gpudedup": _revision(),
    }


def _revision() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "-s") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def slug() -> str:
    """Return a short name of this machine: its processor and the number of cores."""
    name = re.sub(r"\(.*?\)|processor|cpu|@.*|\d+-core", "", processor(), flags=re.IGNORECASE)
    return "-".join([*re.findall(r"[a-z0-9]+", name.lower())[:4], str(usable_cores())])


def write(
    name: str,
    question: str,
    comparisons: Iterable[Comparison],
    *,
    folder: Path = RESULTS,
    **more: Any,
) -> Path:
    """Write ``results/<name>-<machine>.json`` with every sample."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{slug()}.json"
    record = {
        "bench": name,
        "question": question,
        "command": " ".join([f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "comparisons": [
            {
                **c.case,
                "bytes": c.size,
                "ratios": c.ratios,
                "seconds": {k: [round(s, 6) for s in v] for k, v in c.seconds.items()},
            }
            for c in comparisons
        ],
        **more,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def byte_count(text: str) -> int:
    """Return the bytes of a size such as 2G, 512M or 1048576."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.upper().removesuffix("IB").removesuffix("B"))
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def arguments(question: str | None, *, size: int = SIZE, rounds: int = ROUNDS) -> Any:
    """Return a parser with the shared options; its description is the script's question."""
    parser = argparse.ArgumentParser(
        description=question, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=byte_count, default=size, help="bytes of pages, e.g. 2G")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=usable_cores())
    return parser
