"""What do merging and restoring cost beside the bytes that must be moved, and beside compression?

The dump of each population lies in the page cache, outputs on the same disk. Merging is compared
with a plain loop that reads the dump once and writes the bytes of the frames; restoring with a
plain copy of the dump, by the same loop and by ``cp``. Each candidate writes a fresh file, and does
not wait for writeback (the file system is synced before, untimed). Opening is timed in a process
that has imported everything.

Peers on the same bytes, where installed: ``zstd -1``, ``zstd -1 --long=31``, borg and casync with
fixed chunks of 4 KiB; bytes kept, and seconds of storing and restoring. A *capture* of three Python
processes stands for real memory: other populations have incompressible pages.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import harness
from peers import write_dump

import gpudedup as gd

BUFFER = 1 << 20
"""Bytes per read or write of the plain loops: 256 KiB took as long, 2 MiB and more often three
times as long."""

OPENED = 21
"""Times that the merged dump is opened."""

PROCESSES = """
import sys, time, json, decimal, email.mime.text, http.client, sqlite3, xml.dom.minidom
kept = [{str(n): [n, str(n) * 3]} for n in range(int(sys.argv[1]))]
print("ready", flush=True); time.sleep(3600)
"""


def copy(source: str, target: str, size: int) -> None:
    """Copy the first ``size`` bytes of a file to another, and read the rest too."""
    # Aligned to a page: to other addresses the kernel copies more slowly.
    buffer = memoryview(mmap.mmap(-1, BUFFER))
    with (
        Path(source).open("rb", buffering=0) as old,
        Path(target).open("wb", buffering=0) as new,
    ):
        left = size
        while got := old.readinto(buffer):
            if left:
                left -= new.write(buffer[: min(got, left)])


def capture(path: str, entries: int) -> None:
    """Capture two processes that hold ``entries`` objects each, and one that holds half."""
    with ExitStack() as stack:
        pids = []
        for part in (1, 1, 2):
            child = subprocess.Popen(
                [sys.executable, "-c", PROCESSES, str(entries // part)], stdout=subprocess.PIPE
            )
            stack.callback(child.wait)
            stack.callback(child.kill)
            assert child.stdout
            child.stdout.readline()
            child.stdout.close()
            pids.append(child.pid)
        gd.capture(pids, path, stop=True)


class Bench:
    """One dump, and the candidates that merge, restore and compress it."""

    def __init__(self, folder: Path, dump: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.dump = str(dump)
        self.options = options
        self.merged = str(folder / "merged.arrow")
        self.out = str(folder / "out")
        with gd.open_image(self.dump) as image:
            self.pages = image.pages * image.page_size
        self.frames = gd.merge_images(self.dump, self.merged, threads=options.threads).size

    def fresh(self, work: Callable[[], object]) -> Callable[[], float]:
        """Return a timed ``work`` that starts without output file and without dirty pages."""

        def run() -> float:
            Path(self.out).unlink(missing_ok=True)
            os.sync()
            started = time.perf_counter()
            work()
            return time.perf_counter() - started

        return run

    def compare(self, **case: Any) -> harness.Comparison:
        """Measure merging, restoring and verifying, against plain loops."""
        threads = self.options.threads
        whole = Path(self.dump).stat().st_size
        result = harness.interleave_clocked(
            {
                "read the dump, write the frames": self.fresh(
                    lambda: copy(self.dump, self.out, self.frames)
                ),
                "gpudedup merge": self.fresh(
                    lambda: gd.merge_images(self.dump, self.out, threads=threads)
                ),
                "copy the dump": self.fresh(lambda: copy(self.dump, self.out, whole)),
                "cp": self.fresh(lambda: subprocess.run(["cp", self.dump, self.out], check=True)),
                "gpudedup restore": self.fresh(lambda: gd.restore(self.merged, self.out)),
                "gpudedup verify": timed_verify(self.merged, threads),
            },
            size=self.pages,
            rounds=self.options.rounds,
            stored=round(self.frames / whole, 4),
            **case,
        )
        result.ratio("gpudedup merge", "read the dump, write the frames")
        result.ratio("gpudedup restore", "copy the dump")
        result.ratio("gpudedup restore", "cp")
        harness.show(result)
        gd.restore(self.merged, self.out, force=True)
        assert Path(self.out).read_bytes() == Path(self.dump).read_bytes()
        return result

    def peers(self, **case: Any) -> tuple[list[harness.Comparison], list[str]]:
        """Measure peers: bytes kept, storing, restoring; return also which are not installed."""
        results, missing = [], []
        whole = Path(self.dump).stat().st_size
        for peer in (Gpudedup, Zstd, ZstdLong, Casync, Borg):
            tool = peer(self)
            if not tool.installed():
                missing.append(tool.name)
                continue
            seconds: dict[str, list[float]] = {"store": [], "give back": []}
            for _ in range(self.options.peer_rounds):
                tool.clear()
                os.sync()
                for what, work in (("store", tool.store), ("give back", tool.give_back)):
                    seconds[what].append(harness.timed(work)())
                    os.sync()
            left = tool.size()
            tool.clear()
            result = harness.Comparison(
                {"peer": tool.name, "stored": round(left / whole, 4), **case}, self.pages, seconds
            )
            harness.show(result)
            results.append(result)
        return results, missing


def timed_verify(path: str, threads: int) -> Callable[[], float]:
    """Return a timed verification."""

    def work() -> None:
        assert not gd.verify(path, threads=threads).damage

    return harness.timed(work)


class Gpudedup:
    """The command line itself, imports included, as the peers are processes too."""

    name = "gpudedup"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.kept = str(bench.folder / "kept")
        self.back = str(bench.folder / "back")

    def installed(self) -> bool:
        """Return whether the tool is installed."""
        return True

    def run(self, *words: str) -> None:
        """Run a command."""
        subprocess.run(words, check=True, capture_output=True, cwd=self.bench.folder)

    def store(self) -> None:
        """Merge the dump."""
        self.run(sys.executable, "-m", "gpudedup", "merge", self.bench.dump, "-o", self.kept)

    def give_back(self) -> None:
        """Restore the dump."""
        self.run(sys.executable, "-m", "gpudedup", "restore", self.kept, "-o", self.back)

    def size(self) -> int:
        """Return the bytes kept: the length of a file, or the allocated blocks of a folder."""
        path = Path(self.kept)
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        return sum(p.stat().st_blocks * 512 if path.is_dir() else p.stat().st_size for p in files)

    def clear(self) -> None:
        """Remove everything."""
        for name in (self.kept, self.back):
            shutil.rmtree(name, ignore_errors=True)
            Path(name).unlink(missing_ok=True)


class Zstd(Gpudedup):
    """zstd at its fastest ordinary level, with all threads."""

    name = "zstd -1"
    flags: tuple[str, ...] = ("-1",)

    def installed(self) -> bool:
        """Return whether zstd is installed."""
        return shutil.which("zstd") is not None

    def store(self) -> None:
        """Compress."""
        threads = f"-T{self.bench.options.threads}"
        self.run("zstd", "-q", "-f", *self.flags, threads, self.bench.dump, "-o", self.kept)

    def give_back(self) -> None:
        """Decompress."""
        self.run("zstd", "-q", "-d", "-f", "--long=31", self.kept, "-o", self.back)


class ZstdLong(Zstd):
    """zstd with a window of 2 GiB, which finds equal pages."""

    name = "zstd -1 --long=31"
    flags = ("-1", "--long=31")


class Casync(Gpudedup):
    """casync with fixed chunks of 4 KiB: blobs in a chunk store, and an index."""

    name = "casync, 4 KiB chunks"

    def installed(self) -> bool:
        """Return whether casync is installed."""
        return shutil.which("casync") is not None

    def store(self) -> None:
        """Make an index and its chunk store."""
        Path(self.kept).mkdir()
        self.run(
            "casync", "make", "--chunk-size=4096:4096:4096", f"--store={self.kept}/s.castr",
            f"{self.kept}/i.caibx", self.bench.dump,
        )  # fmt: skip

    def give_back(self) -> None:
        """Extract."""
        self.run(
            "casync", "extract", f"--store={self.kept}/s.castr", f"{self.kept}/i.caibx", self.back
        )


class Borg(Gpudedup):
    """borg with fixed chunks of 4 KiB, lz4 as by default, no encryption."""

    name = "borg, 4 KiB chunks"

    def installed(self) -> bool:
        """Return whether borg is installed."""
        return shutil.which("borg") is not None

    def store(self) -> None:
        """Make a repository with one archive."""
        os.environ |= {
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_BASE_DIR": str(self.bench.folder / "borg"),
        }
        self.run("borg", "init", "-e", "none", self.kept)
        self.run(
            "borg", "create", "--chunker-params", "fixed,4096", f"{self.kept}::a", self.bench.dump
        )

    def give_back(self) -> None:
        """Extract."""
        with Path(self.back).open("wb") as out:
            subprocess.run(
                ["borg", "extract", "--stdout", f"{self.kept}::a"], check=True, stdout=out
            )


def opening(path: str) -> dict[str, float]:
    """Return median seconds to open, and to open and read the first page of the last mapping."""
    opened, first = [], []
    for _ in range(OPENED):
        started = time.perf_counter()
        with gd.open_merged(path) as store:
            opened.append(time.perf_counter() - started)
            last = store[len(store.mappings) - 1]
            last.pages(last.index[:1])
            first.append(time.perf_counter() - started)
    return {"open_s": round(median(opened), 6), "first_page_s": round(median(first), 6)}


def main() -> None:
    """Measure all populations."""
    parser = harness.arguments(__doc__, size=1 << 30, rounds=5)
    parser.add_argument("--folder", default=None, help="where the files are written")
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument("--entries", type=int, default=500_000, help="objects of each process")
    options = parser.parse_args()
    results: list[harness.Comparison] = []
    opened: dict[str, Any] = {}
    missing: list[str] = []
    with ExitStack() as stack:
        benches = {}
        for population in (*harness.POPULATIONS, "capture"):
            name = stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder))
            dump = Path(name, "dump.arrow")
            if population == "capture":
                capture(str(dump), options.entries)
            else:
                pages = options.size // harness.PAGE_SIZE
                write_dump(str(dump), harness.content_ids(population, pages))
            benches[population] = Bench(Path(name), dump, options)
        for population, bench in benches.items():
            results.append(bench.compare(population=population, threads=options.threads))
            opened[population] = {"file_bytes": bench.frames, **opening(bench.merged)}
            print(f"  opened: {opened[population]}", flush=True)
        for population, bench in benches.items():
            more, missing = bench.peers(population=population, threads=options.threads)
            results += more
    print("\nnot installed: " + (", ".join(missing) or "nothing"))
    harness.write("merge", __doc__ or "", results, opened=opened, not_installed=missing)


if __name__ == "__main__":
    main()
