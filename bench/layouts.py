"""What does each layout of the bookkeeping cost on the same trace?

Counts, not times: look-ups, steps of walks, bytes of structures, frames and copies of
``gpudedup.Bookkeeping`` under its three layouts. Five traces, random from fixed seeds:

- replicas: a file that readers on all nodes share, replicated to all; one write in a hundred.
- forks: a process and its children, which read, write one time in ten, and are dropped.
- truncates: files in groups of equal ones, merged, read, then truncated.
- writes: the same files merged, then most of their pages written, and merged again.
- moves: the same files merged, then pages migrated to another node and read there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import harness
import numpy as np
import pyarrow as pa

import gpudedup as gd

PAGE_SIZE = 512
"""Bytes of a page; costs do not depend on the size."""

NODES = 4
PAGES = 256
FILES = 64
GROUP = 16
"""Files per group; those of a group have the same pages."""

CHILDREN = 64
OPERATIONS = 100_000


def at_random(seed: int, operations: int, mappings: int) -> Iterator[tuple[int, int, int, float]]:
    """Yield mapping (from 1 on), page, node, and a number from 0 to 1, for each operation."""
    rng = np.random.default_rng(seed)
    yield from zip(
        rng.integers(1, mappings + 1, operations).tolist(),
        rng.integers(0, PAGES, operations).tolist(),
        rng.integers(0, NODES, operations).tolist(),
        rng.random(operations).tolist(),
        strict=True,
    )


def replicas(operations: int) -> Iterator[gd.LayoutEvent]:
    """Read a file on all nodes; a page that was written is replicated again at once."""
    pages = 16 * PAGES
    yield gd.LayoutEvent("create_file", 1, count=pages)
    yield gd.LayoutEvent("file_write", 1, count=pages, seed=1)
    for node in range(1, NODES):
        yield gd.LayoutEvent("replicate", 1, count=pages, node=node)
    for part, index, node, chance in at_random(1, operations, 16):
        at = (part - 1) * PAGES + index
        if chance < 0.01:
            yield gd.LayoutEvent("file_write", 1, at, seed=pages + at)
            for other in range(1, NODES):
                yield gd.LayoutEvent("replicate", 1, at, node=other)
        else:
            yield gd.LayoutEvent("read", 1, at, node=node)


def forks(operations: int) -> Iterator[gd.LayoutEvent]:
    """Fork, let children read and write, and drop them in random order."""
    yield gd.LayoutEvent("create", CHILDREN + 1, count=PAGES)
    yield gd.LayoutEvent("write", CHILDREN + 1, count=PAGES, seed=1)
    for child in range(1, CHILDREN + 1):
        yield gd.LayoutEvent("fork", CHILDREN + 1, child)
    for child, index, _, chance in at_random(2, operations, CHILDREN):
        if chance < 0.1:
            yield gd.LayoutEvent("write", child, index, seed=1000 * child + index)
        else:
            yield gd.LayoutEvent("read", child, index)
    for child in np.random.default_rng(6).permutation(CHILDREN).tolist():
        yield gd.LayoutEvent("drop", child + 1)


def merged_files() -> Iterator[gd.LayoutEvent]:
    """Create files on all nodes, equal within a group, and merge them."""
    for number in range(1, FILES + 1):
        group = number % (FILES // GROUP)
        yield gd.LayoutEvent("create_file", number, count=PAGES, node=number % NODES)
        yield gd.LayoutEvent("file_write", number, count=PAGES, seed=1 + PAGES * group)
    yield gd.LayoutEvent("merge")


def truncates(operations: int) -> Iterator[gd.LayoutEvent]:
    """Read merged files, then truncate all to half and most to nothing, in random order."""
    yield from merged_files()
    for number, index, node, _ in at_random(3, operations, FILES):
        yield gd.LayoutEvent("read", number, index, node=node)
    rng = np.random.default_rng(7)
    for pages, files in (PAGES // 2, FILES), (0, FILES - GROUP):
        for number in rng.permutation(FILES)[:files].tolist():
            yield gd.LayoutEvent("truncate", number + 1, count=pages)


def writes(operations: int) -> Iterator[gd.LayoutEvent]:
    """Write to merged files, and merge them again."""
    yield from merged_files()
    for number, index, _, _ in at_random(4, operations // 2, FILES):
        yield gd.LayoutEvent("write", number, index, seed=10**6 + 1000 * number + index)
    yield gd.LayoutEvent("merge")


def moves(operations: int) -> Iterator[gd.LayoutEvent]:
    """Migrate merged pages, 16 at a time, and read them on their new node."""
    yield from merged_files()
    for number, index, node, _ in at_random(5, operations // 512, FILES):
        first = index // 16 * 16
        yield gd.LayoutEvent("migrate", number, first, 16, node)
        for _ in range(32):
            yield gd.LayoutEvent("read", number, first, 16, node)


TRACES = {
    "replicas": replicas,
    "forks": forks,
    "truncates": truncates,
    "writes": writes,
    "moves": moves,
}

COLUMNS = {
    "look-ups": "lookups",
    "steps": "walks",
    "copies": "copies",
    "frames": "frames",
    "peak": "frames_peak",
    "KiB": "metadata_bytes",
    "KiB at peak": "metadata_bytes_peak",
}


def show(name: str, table: pa.Table) -> None:
    """Print the totals of one trace, then the cost of each operation per page, or per call."""
    print(f"\n{name:12}" + "".join(f"{title:>12}" for title in COLUMNS))
    for row in table.to_pylist():
        kib = {column: row[column] >> 10 for column in ("metadata_bytes", "metadata_bytes_peak")}
        values = row | kib
        print(f"  {row['layout']:10}" + "".join(f"{values[c]:12,}" for c in COLUMNS.values()))
    layouts = table["layout"].to_pylist()
    print("    look-ups + steps per page, or call" + "".join(f"{layout:>22}" for layout in layouts))
    for kinds in zip(*table["operations"].to_pylist(), strict=True):
        each = [
            tuple(kind[what] / (kind["pages"] or kind["calls"]) for what in ("lookups", "walks"))
            for kind in kinds
        ]
        costs = "".join(f"{f'{lookups:,.2f} + {walks:,.2f}':>22}" for lookups, walks in each)
        print(f"    {kinds[0]['operation']:34}{costs}")


def main() -> None:
    """Run all traces."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=OPERATIONS, help="of each trace, about")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, trace in TRACES.items():
        table = gd.compare_layouts(trace(options.operations), page_size=PAGE_SIZE, nodes=NODES)
        show(name, table)
        results[name] = table.to_pylist()
    harness.write("layouts", __doc__ or "", [], traces=results)


if __name__ == "__main__":
    main()
