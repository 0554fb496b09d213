"""How fast do the pages of a dump in the page cache become digests, and a scan?

The dump of each population lies in the page cache. Candidates, all with the same threads and the
same tasks: compiled XXH3-128 over a memory map of the file; the same over ``preadv`` of 1 MiB into
aligned, reused buffers; the engine without and with the byte compare, over the dump's extents; and
a whole ``gpudedup.scan`` of the path, which also opens the dump and counts.
"""

from __future__ import annotations

import argparse
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from queue import Queue

import harness
import numpy as np
from peers import write_dump
from read_ceiling import digest_pages

import gpudedup as gd
from gpudedup.engines.cpu import CpuEngine
from gpudedup.scanning.population import population as population_of

BUFFER = 1 << 20
"""Bytes of one ``preadv``."""


def over_map(path: str, offset: int, rows: int, threads: int) -> Callable[[], harness.Digests]:
    """Return a function that digests ``rows`` pages at ``offset`` through a fresh memory map."""

    def digest() -> harness.Digests:
        out = np.empty((rows, 2), np.uint64)
        with Path(path).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            pages = np.frombuffer(mapped, np.uint8, rows * harness.PAGE_SIZE, offset)
            base = pages.ctypes.data
            harness.over_tasks(
                lambda a, b: digest_pages(
                    base + a * harness.PAGE_SIZE, harness.PAGE_SIZE, out[a:b]
                ),
                rows,
                harness.PAGE_SIZE,
                threads,
            )
        return out

    return digest


def over_reads(path: str, offset: int, rows: int, threads: int) -> Callable[[], harness.Digests]:
    """Return a function that digests them through ``preadv`` into one aligned buffer per thread."""
    step = BUFFER // harness.PAGE_SIZE
    # Aligned to a page: to other addresses the kernel copies more slowly.
    buffers: Queue[harness.Pages] = Queue()
    for _ in range(threads):
        buffers.put(np.frombuffer(mmap.mmap(-1, BUFFER), np.uint8))

    def digest() -> harness.Digests:
        out = np.empty((rows, 2), np.uint64)
        fd = os.open(path, os.O_RDONLY)

        def task(start: int, stop: int) -> None:
            buffer = buffers.get()
            for at in range(start, stop, step):
                end = min(at + step, stop)
                want = (end - at) * harness.PAGE_SIZE
                got = os.preadv(fd, [buffer[:want].data], offset + at * harness.PAGE_SIZE)
                assert got == want
                digest_pages(buffer.ctypes.data, harness.PAGE_SIZE, out[at:end])
            buffers.put(buffer)

        harness.over_tasks(task, rows, harness.PAGE_SIZE, threads)
        os.close(fd)
        return out

    return digest


def compare(population: str, options: argparse.Namespace) -> harness.Comparison:
    """Measure one population."""
    ids = harness.content_ids(population, options.size // harness.PAGE_SIZE)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        # A raw image is one stretch, which keeps the candidates' loops simple.
        raw, dump = str(Path(folder, "pages.raw")), str(Path(folder, "dump.arrow"))
        with Path(raw).open("wb") as file:
            for first in range(0, len(ids), 1 << 14):
                file.write(harness.fill(ids[first : first + (1 << 14)]).data)
        write_dump(dump, ids)
        engine = CpuEngine(options.threads)
        mapped = over_map(raw, 0, len(ids), options.threads)
        reads = over_reads(raw, 0, len(ids), options.threads)
        assert np.array_equal(mapped(), reads())
        with gd.open_image(dump) as image:
            store = population_of([image]).store()
            assert np.array_equal(engine.partition(store).digests, mapped())
            result = harness.interleave(
                {
                    "XXH3-128 over a memory map": mapped,
                    "XXH3-128 over preadv": reads,
                    "engine, digests grouped": lambda: engine.partition(store, verify=False),
                    "engine, exact": lambda: engine.partition(store),
                    "gpudedup.scan of the path": lambda: gd.scan(dump, threads=options.threads),
                },
                size=len(ids) * harness.PAGE_SIZE,
                rounds=options.rounds,
                population=population,
                threads=options.threads,
            )
    for name in ("engine, digests grouped", "engine, exact", "gpudedup.scan of the path"):
        for peer in ("XXH3-128 over a memory map", "XXH3-128 over preadv"):
            result.ratio(name, peer)
    result.print()
    return result


def main() -> None:
    """Measure both populations."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--folder", default=None, help="where the files are written")
    options = parser.parse_args()
    results = [compare(population, options) for population in harness.POPULATIONS]
    harness.write("file", __doc__ or "", results)


if __name__ == "__main__":
    main()
