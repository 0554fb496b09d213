"""How fast are the pages of a dump in the page cache digested, grouped and scanned?

The candidates run the same tasks on the same threads: compiled XXH3-128 over a memory map of the
file; the same over ``preadv`` into aligned, reused buffers; the engine without and with the byte
compare, over the dump's extents; and a whole ``gpudedup.scan`` of the path, which also opens the
dump and counts.
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

import gpudedup as gd
from gpudedup.compiled.digests import digest_into
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.scanning.population import Population

BUFFER = 1 << 20
"""Bytes of one ``preadv``."""


def over_map(image: gd.Image, threads: int) -> Callable[[], harness.Digests]:
    """Return a function that digests all pages through a fresh memory map of the file."""

    def digest() -> harness.Digests:
        out = np.empty((image.pages, 2), np.uint64)
        with mmap.mmap(image.fd, 0, prot=mmap.PROT_READ) as mapped:
            base = np.frombuffer(mapped, np.uint8).ctypes.data
            harness.over_tasks(
                lambda a, b: digest_into(base + image.offset_of(a), harness.PAGE_SIZE, out[a:b]),
                image.pages,
                harness.PAGE_SIZE,
                threads,
            )
        return out

    return digest


def over_reads(image: gd.Image, threads: int) -> Callable[[], harness.Digests]:
    """Return a function that digests all pages through ``preadv``, one buffer per thread."""
    step = BUFFER // harness.PAGE_SIZE
    # Aligned to a page: to other addresses the kernel copies more slowly.
    buffers: Queue[harness.Pages] = Queue()
    for _ in range(threads):
        buffers.put(np.frombuffer(mmap.mmap(-1, BUFFER), np.uint8))

    def digest() -> harness.Digests:
        out = np.empty((image.pages, 2), np.uint64)

        def task(start: int, stop: int) -> None:
            buffer = buffers.get()
            for at in range(start, stop, step):
                end = min(at + step, stop)
                want = (end - at) * harness.PAGE_SIZE
                got = os.preadv(image.fd, [buffer[:want].data], image.offset_of(at))
                assert got == want
                digest_into(buffer.ctypes.data, harness.PAGE_SIZE, out[at:end])
            buffers.put(buffer)

        harness.over_tasks(task, image.pages, harness.PAGE_SIZE, threads)
        return out

    return digest


def compare(population: str, options: argparse.Namespace) -> harness.Comparison:
    """Measure one population."""
    ids = harness.content_ids(population, options.size // harness.PAGE_SIZE)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        dump = str(Path(folder, "dump.arrow"))
        # Its record batches are whole tasks, so the bytes of each task are contiguous.
        write_dump(dump, ids)
        engine = CpuEngine(options.threads)
        with gd.open_image(dump) as image:
            mapped, reads = over_map(image, options.threads), over_reads(image, options.threads)
            assert np.array_equal(mapped(), reads())
            store = Population.of([image]).source()
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
    harness.show(result)
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
