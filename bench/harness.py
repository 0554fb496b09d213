"""Shared by all benchmarks: arguments, and how a run is printed and recorded.

Populations and interleaved rounds are those of ``gpudedup bench``, in ``gpudedup.measuring``.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from gpudedup.engines.cpu.engine import processor, usable_cores
from gpudedup.measuring.machine import machine
from gpudedup.measuring.populations import (
    PAGE_SIZE,
    POPULATIONS,
    Digests,
    Ids,
    Pages,
    content_ids,
    expected,
    fill,
    over_tasks,
)
from gpudedup.measuring.rounds import Comparison, interleave, interleave_clocked, timed

__all__ = [
    "PAGE_SIZE",
    "POPULATIONS",
    "Comparison",
    "Digests",
    "Ids",
    "Pages",
    "arguments",
    "content_ids",
    "expected",
    "fill",
    "interleave",
    "interleave_clocked",
    "over_tasks",
    "show",
    "timed",
    "write",
]

SIZE = 2 << 30
ROUNDS = 7

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "pyarrow", "polars", "duckdb", "xxhash")


def show(comparison: Comparison) -> None:
    """Print rates and ratios."""
    case = "  ".join(f"{k}={v}" for k, v in comparison.case.items())
    print(f"\n{case}  {comparison.size} bytes")
    for name, samples in comparison.seconds.items():
        mid = median(samples)
        spread = f"{min(samples) * 1e3:9.1f} .. {max(samples) * 1e3:9.1f} ms"
        rate = comparison.size / mid / 1e9
        print(f"  {name:34} {rate:8.2f} GB/s {mid * 1e3:9.1f} ms  {spread}")
    for name, value in comparison.ratios.items():
        print(f"  {name:58} {value:6.2f}")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


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
        "machine": {**machine(), "versions": _versions(), "gpudedup": _revision()},
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
