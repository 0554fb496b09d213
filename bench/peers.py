"""How does an exact scan compare with the tools one would use otherwise, on the same bytes?

In memory: the pages are one Arrow column of fixed-size binary (Polars: binary), and every candidate
must find the number of distinct contents, which is checked. From a file: the same dump in the page
cache, opened and counted by each candidate in its own best way. Peers may use as many threads as
the engine; Polars reads its number at start, so the script restarts itself with that number set.
Slow peers run on a part of the pages, which hardly changes their rate; its size is recorded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import pyarrow as pa

import gpudedup as gd
from gpudedup.engines.base import PageSource
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import Mapping, PageColumns

SLOW_PART = 2
"""Divisor of the number of pages for pyarrow, np.unique and the loop over python-xxhash."""


def arrow_column(pages: harness.Pages) -> pa.Array:
    """Return pages as an Arrow array that shares their memory."""
    buffers = [None, pa.py_buffer(pages)]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(pages.shape[1]), len(pages), buffers)


def polars_exact(column: pa.Array) -> Callable[[], int]:
    """Return Polars' count of distinct pages; its conversion to ``binary`` is not timed.

    The eager engine: the lazy and the streaming engine took five to ten times as long on pages.
    """
    import polars as pl

    frame = pl.DataFrame({"page": pl.from_arrow(column.cast(pa.binary_view()))})
    return lambda: frame.group_by("page").len().height


def duckdb_exact(column: pa.Array, threads: int) -> Callable[[], int]:
    """Return DuckDB's count of distinct pages, in a table of its own; filling it is not timed."""
    import duckdb

    connection = duckdb.connect(config={"threads": threads})
    connection.register("arrow", pa.table({"page": column}))
    connection.execute("CREATE TABLE pages AS SELECT page FROM arrow")
    query = "SELECT count(*) FROM (SELECT page FROM pages GROUP BY page)"

    def count() -> int:
        row = connection.execute(query).fetchone()
        assert row
        return int(row[0])

    return count


def xxhash_loop(pages: harness.Pages) -> Callable[[], int]:
    """Return the usual script's loop: the digest of each page into a dict; not exact."""
    import xxhash

    def count() -> int:
        seen: dict[bytes, int] = {}
        view = pages.reshape(-1).data
        size = pages.shape[1]
        for row in range(len(pages)):
            seen.setdefault(xxhash.xxh3_128_digest(view[row * size : (row + 1) * size]), row)
        return len(seen)

    return count


def in_memory(population: str, options: argparse.Namespace) -> list[harness.Comparison]:
    """Compare on pages in memory: first all of them, then a part with the slow peers."""
    ids = harness.content_ids(population, options.size // harness.PAGE_SIZE)
    pages = harness.fill(ids)
    few = pages[: len(pages) // SLOW_PART]
    engine = CpuEngine(options.threads)

    def exact(of: harness.Pages) -> Callable[[], int]:
        store = PageSource.of_array(of)

        def count() -> int:
            found = engine.partition(store).representative
            return int(np.count_nonzero(found == np.arange(len(found))))

        return count

    pa.set_cpu_count(options.threads)
    fast = {
        "gpudedup exact": exact(pages),
        "Polars exact": polars_exact(arrow_column(pages)),
        "DuckDB exact": duckdb_exact(arrow_column(pages), options.threads),
    }
    words = few.view(f"V{harness.PAGE_SIZE}").reshape(-1)
    slow = {
        "gpudedup exact": exact(few),
        "pyarrow exact": lambda: len(
            pa.table({"page": arrow_column(few)}).group_by("page").aggregate([])
        ),
        "np.unique exact": lambda: len(np.unique(words)),
        "python-xxhash and dict": xxhash_loop(few),
    }
    results = []
    for candidates, part in ((fast, ids), (slow, ids[: len(few)])):
        distinct = len(np.unique(part))
        for name, count in candidates.items():
            assert count() == distinct, name
        result = harness.interleave(
            candidates,
            size=len(part) * harness.PAGE_SIZE,
            rounds=options.rounds if candidates is fast else max(3, options.rounds // 2),
            warm=False,
            where="memory",
            population=population,
            threads=options.threads,
        )
        for name in list(candidates)[1:]:
            result.ratio("gpudedup exact", name)
        harness.show(result)
        results.append(result)
    return results


def from_file(population: str, options: argparse.Namespace) -> harness.Comparison:
    """Compare on a dump in the page cache, opened anew each time."""
    import duckdb
    import polars as pl

    ids = harness.content_ids(population, options.size // harness.PAGE_SIZE)
    distinct = len(np.unique(ids))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = str(Path(folder, "dump.arrow"))
        write_dump(path, ids)

        def scan() -> int:
            return gd.scan(path, threads=options.threads).totals.distinct_contents

        def polars() -> int:
            frame = pl.read_ipc(path, columns=["content"])
            return frame.group_by("content").len().height

        def duck() -> int:
            with pa.memory_map(path) as source:
                connection = duckdb.connect(config={"threads": options.threads})
                connection.register("dump", pa.ipc.open_file(source).read_all())
                row = connection.execute(
                    "SELECT count(*) FROM (SELECT content FROM dump GROUP BY content)"
                ).fetchone()
                assert row
                return int(row[0])

        candidates = {"gpudedup scan": scan, "Polars": polars, "DuckDB": duck}
        for name, count in candidates.items():
            assert count() == distinct, name
        result = harness.interleave(
            candidates,
            size=len(ids) * harness.PAGE_SIZE,
            rounds=max(3, options.rounds // 2),
            warm=False,
            where="file in the page cache",
            population=population,
            threads=options.threads,
        )
    for name in ("Polars", "DuckDB"):
        result.ratio("gpudedup scan", name)
    harness.show(result)
    return result


def write_dump(path: str, ids: harness.Ids) -> None:
    """Write the pages of ``ids`` to a dump, in record batches of 64 MiB."""
    mapping = Mapping("bench", "", "anon", "", 0)
    step = (64 << 20) // harness.PAGE_SIZE
    with DumpWriter(path, harness.PAGE_SIZE, [mapping], source="bench") as dump:
        for first in range(0, len(ids), step):
            part = ids[first : first + step]
            rows = np.arange(first, first + len(part), dtype=np.uint64)
            columns = PageColumns(first, np.zeros(len(part), np.int32), rows)
            dump.write(columns, harness.fill(part))


def main() -> None:
    """Restart with Polars' number of threads set, then measure."""
    parser = harness.arguments(__doc__, size=1 << 30, rounds=5)
    parser.add_argument("--folder", default=None, help="where the dump is written")
    options = parser.parse_args()
    if os.environ.get("POLARS_MAX_THREADS") != str(options.threads):
        again = {**os.environ, "POLARS_MAX_THREADS": str(options.threads)}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=again, check=False).returncode)
    results = []
    for population in harness.POPULATIONS:
        results += in_memory(population, options)
        results.append(from_file(population, options))
    harness.write("peers", __doc__ or "", results)


if __name__ == "__main__":
    main()
