"""A process that reads mutated files, one after another; :mod:`.watched` watches it.

Run it by hand to repeat one case: ``python -m tests.long.reader FOLDER SEED NUMBER NUMBER+1 1``,
with the folder that the failed test names.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import struct
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from gpudedup.images.dumps.ipc import UNPACKED_BYTES, UNPACKED_TIMES
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

from ..images.common import open_files
from ..traces.common import DEVICES, NODES
from .bases import Base, image_of_traces, load_all
from .mutations import Case, case
from .reading import read_image, read_trace

STATE = struct.Struct("<qqq")
"""The file ``state``: case that is read now, cases done, cases that were refused."""

BEGINNING, ENDED = -2, -1
"""In place of a case: before the first, and after the last."""

ADDRESSES = 4 << 30
"""Bytes of addresses that a reader may take beyond those that it begins with."""

GATHERED = 500
"""Cases after which descriptors are counted."""

MOST_FAILURES = 20

REFUSED = ("arrow compressed", "arrow merged by others")
"""Bases that are refused, wholly or (having no seal) by ``verify``."""


def bytes_of(name: str) -> int:
    """Return a number of ``/proc/self/status`` in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text[text.index(name + ":") :].split(maxsplit=2)[1]) << 10


class Reader:
    """Reads cases from one file, which is written anew for each."""

    def __init__(self, folder: Path, path: str) -> None:
        self.bases = load_all(folder)
        self.image, self.path = image_of_traces(folder), path
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        manager = MemoryManager.from_image(
            self.image, nodes=NODES, devices=DEVICES, device_engine="cpu"
        )
        self.mappings: Sequence[Mapping] = manager.mappings
        self.began = self.opened = 0

    def warm_up(self) -> None:
        """Read every base; what is compiled and imported on the way takes memory for good."""
        for base in self.bases:
            data = bytearray(base.data)
            refused = self.read(Case(base, data, max(base.size, len(data)), 4096))
            assert bool(refused) == (base.name in REFUSED), base.name
        gc.collect()
        self.opened = open_files()
        self.began_again()

    def began_again(self) -> None:
        """Begin to measure memory anew."""
        Path("/proc/self/clear_refs").write_text("5")
        self.began = bytes_of("VmRSS")

    def read(self, one: Case) -> int:
        """Read a case, its trace or image; return how often it was refused."""
        os.ftruncate(self.file, 0)
        if one.base.kind == "raw":
            # Pages of zeros become holes.
            for at in range(0, len(one.data), 4096):
                if any(one.data[at : at + 4096]):
                    os.pwrite(self.file, one.data[at : at + 4096], at)
        else:
            os.pwrite(self.file, one.data, 0)
        os.ftruncate(self.file, one.size)
        if one.base.kind == "trace":
            return read_trace(self.path, self.image, list(self.mappings))
        forced = None if one.page_size == 4096 else one.base.kind
        size = None if one.base.kind == "arrow" else one.page_size
        return read_image(self.path, one.size, forced, size)

    def check_descriptors(self) -> None:
        """Check that no case so far left a descriptor open; a memory map has one until then."""
        gc.collect()
        assert open_files() == self.opened, "descriptors are left open"

    def check(self, one: Case) -> int:
        """Read a case; check that it took no more memory than it may."""
        refused = self.read(one)
        most = UNPACKED_BYTES + UNPACKED_TIMES * one.size
        if bytes_of("VmHWM") - self.began > most:
            # What the cases before left behind is not this one's.
            self.began_again()
            self.read(one)
            grown = bytes_of("VmHWM") - self.began
            assert grown <= most, f"{grown} bytes of memory for a file of {one.size}"
            self.began_again()
        return refused


def reading(folder: Path, seed: int, numbers: range, state: mmap.mmap, path: str) -> None:
    """Read cases; append each that fails to the file ``failures``."""
    reader = Reader(folder / "bases", path)
    reader.warm_up()
    base = bytes_of("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (base + ADDRESSES,) * 2)
    failures = done = refused = 0
    for number in numbers:
        STATE.pack_into(state, 0, number, done, refused)
        one = case(reader.bases, seed, number)
        try:
            refused += bool(reader.check(one))
            if done % GATHERED == 0:
                reader.check_descriptors()
        except Exception:
            failures += 1
            with (folder / "failures").open("a") as file:
                file.write(told(one, seed, number, traceback.format_exc()))
            (folder / f"case {number}").write_bytes(one.data)
        done += 1
        if failures >= MOST_FAILURES:
            break
    STATE.pack_into(state, 0, ENDED, done, refused)


def told(one: Case, seed: int, number: int, what: str) -> str:
    """Return a case and what came of it, in lines."""
    edits = "; ".join(one.edits)
    return (
        f"\nseed {seed}, case {number}: {one.base.name!r}, {one.size} bytes, read with pages of"
        f" {one.page_size}; {edits}\n{what}\n"
    )


def bases_of(folder: Path) -> list[Base]:
    return load_all(folder / "bases")


def main() -> None:
    folder, seed, first, stop, step = Path(sys.argv[1]), *map(int, sys.argv[2:6])
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=shm) as scratch,
        Path(*(sys.argv[6:] or [f"{folder}/by hand"])).open("w+b") as file,
    ):
        file.write(STATE.pack(BEGINNING, 0, 0))
        file.flush()
        with mmap.mmap(file.fileno(), STATE.size) as state:
            reading(folder, seed, range(first, stop, step), state, f"{scratch}/case")


if __name__ == "__main__":
    main()
