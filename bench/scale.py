"""Do time and memory per page stay flat as a dump grows?

Each size is a synthetic dump in the page cache (30 % zero, 30 % duplicates in groups of 4), scanned
exactly in a process of its own. Memory is the peak of that process (VmHWM), without the data: the
dump is read through small windows. A size that does not fit into memory or on the disk is left
out, and recorded as such.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import harness

import gpudedup as gd

SIZES = (1 << 30, 4 << 30, 16 << 30)
SPARE = 4 << 30
"""Bytes of memory and disk to leave free."""

SCAN = """
import json, re, sys
from pathlib import Path
import gpudedup
def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) << 10

gpudedup.scan(sys.argv[2])
before = peak()
found = gpudedup.scan(sys.argv[1], threads=int(sys.argv[3]))
print(json.dumps({"before": before, "peak": peak(), **found.timings}))
"""


def scan(path: str, small: str, threads: int) -> dict[str, Any]:
    """Scan ``path`` in a fresh process, after ``small``, which loads the code."""
    words = [sys.executable, "-c", SCAN, path, small, str(threads)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def room(folder: str) -> int:
    """Return the largest size of a dump that fits, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory, shutil.disk_usage(folder).free) - SPARE


def main() -> None:
    """Measure all sizes that fit."""
    parser = harness.arguments(__doc__, size=SIZES[-1], rounds=3)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where dumps are written")
    options = parser.parse_args()
    samples: dict[int, list[dict[str, Any]]] = {}
    for size in SIZES:
        if size > min(options.size, room(options.folder)):
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            small, path = str(Path(folder, "small.arrow")), str(Path(folder, "large.arrow"))
            gd.generate(gd.Recipe(pages=256), small)
            gd.generate(gd.Recipe(pages=size // harness.PAGE_SIZE), path)
            samples[size] = [scan(path, small, options.threads) for _ in range(options.rounds)]
    results = []
    for size, runs in samples.items():
        pages = size // harness.PAGE_SIZE
        seconds = [run["total_s"] - run["load_s"] for run in runs]
        result = harness.Comparison(
            {"threads": options.threads, "pages": pages}, size, {"gpudedup.scan": seconds}
        )
        result.ratios["nanoseconds per page"] = round(median(seconds) / pages * 1e9, 1)
        result.ratios["peak MiB"] = max(run["peak"] for run in runs) >> 20
        grown = max(run["peak"] - run["before"] for run in runs)
        result.ratios["bytes per page beyond a small scan"] = round(grown / pages, 1)
        harness.show(result)
        results.append(result)
    left_out = [size for size in SIZES if size <= options.size and size not in samples]
    if left_out:
        print("left out, no room:", ", ".join(f"{size >> 30} GiB" for size in left_out))
    harness.write("scale", __doc__ or "", results, left_out=left_out)


if __name__ == "__main__":
    main()
