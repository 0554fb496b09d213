"""Mapped files: the same results as by reads, and no SIGBUS when a file shrinks."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpudedup.engines.base import PageClass, PageSource
from gpudedup.engines.cpu import engine as cpu
from gpudedup.engines.cpu import mapped
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.cpu.mapped import Addresses, MappedFiles
from gpudedup.errors import ThreadError

from ..common import file_source, joined, oracle, population

PATIENCE_S = 30


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Map files even if the page cache holds them in small folios."""
    monkeypatch.setattr(mapped, "_is_in_large_folios", lambda memory: True)
    with file_source(tmp_path / "probe", np.zeros((8, 512), np.uint8)) as source:
        if not are_mapped(source):
            pytest.skip("the file system of the temporary directory grants no leases")


def are_mapped(source: PageSource) -> bool:
    with MappedFiles(source) as files, files.task() as addresses:
        return bool(addresses.all())


def wait_until_wanted(files: MappedFiles) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not files._is_wanted():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("offset", [0, 24, 5000])
def test_same_answer_as_in_memory(tmp_path: Path, page_size: int, offset: int) -> None:
    """Windows are smaller than a task; the last window is not full."""
    pages = population(offset, (9 << 20) // page_size + 3, page_size)
    with file_source(tmp_path / "pages", pages, offset) as source:
        assert are_mapped(source)
        results = [CpuEngine(t).partition(source, batch_pages=b) for t, b in ((1, None), (3, 7))]
    expected = CpuEngine(1).partition(PageSource.of_array(pages))
    for result in results:
        assert np.array_equal(result.representative, expected.representative)
        assert np.array_equal(result.classes, expected.classes)
        assert np.array_equal(result.digests, expected.digests)


@pytest.mark.usefixtures("always")
def test_stretches_of_several_files(tmp_path: Path) -> None:
    """One file is truncated: its stretch, which ends beyond the file, is read, not mapped."""
    pages = [population(seed, 100, 1024) for seed in (1, 1, 2)]
    pieces = [(1, 50, 99), (0, 0, 40), (2, 0, 100), (1, 0, 50), (0, 40, 100)]
    with ExitStack() as opened:
        stores = [
            PageSource.of_array(pages[0]),
            opened.enter_context(file_source(tmp_path / "a", pages[1], 8)),
            opened.enter_context(file_source(tmp_path / "b", pages[2])),
        ]
        source = joined(stores, pieces)
        os.truncate(tmp_path / "b", 60 * 1024)
        with MappedFiles(source) as files, files.task() as addresses:
            assert (addresses != 0).tolist() == [True, False, False, True, False]
        result = CpuEngine(2).partition(source, batch_pages=16)
    together = np.concatenate([pages[at][start:stop] for at, start, stop in pieces])
    gone = np.arange(49 + 40 + 60, 49 + 40 + 100)
    assert np.flatnonzero(result.classes == PageClass.UNREADABLE).tolist() == gone.tolist()
    rest = np.delete(np.arange(len(together)), gone)
    expected = rest[oracle(together[rest])]
    assert result.representative[rest].tolist() == expected.tolist()


@pytest.mark.usefixtures("always")
def test_a_file_that_shrinks_under_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is truncated before the third task; without a lease SIGBUS would end the tests."""
    pages = population(2, 64, 4096)
    tasks = 0
    take = MappedFiles.task

    @contextmanager
    def task(files: MappedFiles) -> Iterator[Addresses]:
        nonlocal tasks
        tasks += 1
        if tasks == 3:
            cut.start()
            wait_until_wanted(files)
        with take(files) as addresses:
            assert addresses.all() == (tasks < 3)
            if tasks == 3:
                cut.join(PATIENCE_S)
                assert not cut.is_alive()
            yield addresses

    monkeypatch.setattr(MappedFiles, "task", task)
    monkeypatch.setattr(cpu, "TASK_BYTES", 8 * 4096)
    path = tmp_path / "pages"
    cut = threading.Thread(target=os.truncate, args=(path, 37 * 4096 + 1), daemon=True)
    with file_source(path, pages) as source:
        result = CpuEngine(1).partition(source, batch_pages=4)
    assert tasks == 8
    assert np.flatnonzero(result.classes == PageClass.UNREADABLE).tolist() == list(range(37, 64))
    assert result.representative.tolist() == [*oracle(pages[:37]), *range(37, 64)]


@pytest.mark.usefixtures("always")
def test_who_wants_to_cut_a_file_waits_for_all_tasks(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    with file_source(path, population(1, 16, 512)) as source, MappedFiles(source) as files:
        cut = threading.Thread(target=os.truncate, args=(path, 512), daemon=True)
        with files.task() as before:
            assert before.all()
            cut.start()
            wait_until_wanted(files)
            with files.task() as after:
                assert not after.any()
            assert before.all()
            assert path.stat().st_size == 16 * 512
        cut.join(PATIENCE_S)
        assert path.stat().st_size == 512


@pytest.mark.usefixtures("always")
def test_a_file_that_somebody_writes_to_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    with file_source(path, population(1, 16, 512)) as source:
        with path.open("r+b"):
            assert not are_mapped(source)
        assert are_mapped(source)
        path.unlink()
        assert are_mapped(source)


@pytest.mark.usefixtures("always")
def test_two_scans_hold_leases_of_their_own(tmp_path: Path) -> None:
    with file_source(tmp_path / "pages", population(1, 16, 512)) as source:
        with MappedFiles(source) as one:
            assert are_mapped(source)
            with one.task() as addresses:
                assert addresses.all()
        assert fcntl.fcntl(int(source.fd[0]), fcntl.F_GETLEASE) == fcntl.F_UNLCK


@pytest.mark.usefixtures("always")
def test_nothing_stays_open(tmp_path: Path) -> None:
    with file_source(tmp_path / "pages", population(1, 16, 512)) as source:
        before = sorted(Path("/proc/self/fd").iterdir())
        maps = Path("/proc/self/maps").read_text()
        assert are_mapped(source)
        assert str(tmp_path) not in maps
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
        assert sorted(Path("/proc/self/fd").iterdir()) == before


class Folios:
    """Stand-in for a mapped file that takes one fault per ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 100 << 20

    def madvise(self, advice: int, start: int = 0, length: int = 0) -> None:
        memory = mmap.mmap(-1, max(1, length // self.size) * mmap.PAGESIZE)
        for at in range(0, length, self.size):
            memory[at // self.size * mmap.PAGESIZE] = 1


def test_a_thread_that_cannot_be_started_unmaps_nothing_under_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, may_end = threading.Event(), threading.Event()
    start, users = threading.Thread.start, []

    def work(*_: object) -> tuple[int, int]:
        at_work.set()
        may_end.wait()
        return 0, -1

    def start_one(thread: threading.Thread) -> None:
        if threading.active_count() > before:
            at_work.wait()
            raise RuntimeError("can't start new thread")
        start(thread)

    def wait(*arguments: Any, **named: Any) -> Any:
        may_end.set()
        return wait_really(*arguments, **named)

    class Noting(MappedFiles):
        def __exit__(self, *how: object) -> None:
            users.append(self._users)
            may_end.set()
            super().__exit__(*how)

    before, wait_really = threading.active_count(), futures.wait
    for name, instead in (("partition_rows", work), ("wait", wait), ("MappedFiles", Noting)):
        monkeypatch.setattr(cpu, name, instead)
    monkeypatch.setattr(threading.Thread, "start", start_one)
    with (
        file_source(tmp_path / "pages", np.zeros((2, 4096), np.uint8)) as source,
        pytest.raises(ThreadError),
    ):
        CpuEngine(2).partition(source)
    assert users == [0]


@pytest.mark.parametrize(("size", "is_large"), [(2 << 20, True), (256 << 10, True), (65536, False)])
def test_only_files_in_large_folios_are_mapped(size: int, is_large: bool) -> None:
    folios: Any = Folios(size)
    assert mapped._is_in_large_folios(folios) == is_large


SCAN = """
import os, re, sys
from pathlib import Path
import numpy as np
from gpudedup.engines.cpu import mapped
from gpudedup.engines.base import PageSource
from gpudedup.engines.cpu.engine import CpuEngine
mapped._is_in_large_folios = lambda memory: sys.argv[2] == "mapped"

def scan(pages):
    fd = os.open(sys.argv[1], os.O_RDONLY)
    base = np.zeros(1, np.uint64)
    source = PageSource(4096, np.array([0, pages]), np.array([fd], np.int32), base)
    CpuEngine(2).partition(source)
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) << 10

before = scan(100)
print(scan(os.path.getsize(sys.argv[1]) // 4096) - before)
"""


@pytest.mark.parametrize("way", ["mapped", "read"])
def test_a_file_does_not_stay_in_memory(tmp_path: Path, way: str) -> None:
    """The process grows by the arrays, two buffers and two windows, not by the file."""
    path, pages = tmp_path / "pages", 1 << 16
    with path.open("wb") as file:
        for seed in range(4):
            piece = np.random.default_rng(seed).integers(0, 256, (pages // 8, 4096), np.uint8)
            file.write(piece.data)
            file.write(piece.data)
    words = [sys.executable, "-c", SCAN, str(path), way]
    grown = int(subprocess.run(words, check=True, capture_output=True).stdout)
    assert grown < 64 * pages + (24 << 20)
