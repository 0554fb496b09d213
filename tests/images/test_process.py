"""Captures of child processes, compared with what the children hold."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gpudedup.errors import ImageError, OutputError, UsageError
from gpudedup.images import pagemap, process
from gpudedup.images.process import Captured, capture
from gpudedup.images.procfs import read_vmas, thread_states
from gpudedup.schema import PageFlag

PAGE = mmap.PAGESIZE
NOBODY = 65534

PRELUDE = """
import ctypes, json, mmap, os, signal, sys, threading
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PRIVATE, SHARED, ANONYMOUS, NORESERVE, RW = 2, 1, 0x20, 0x4000, 3

def map(pages, flags=PRIVATE | ANONYMOUS, fd=-1, protection=RW):
    at = libc.mmap(None, pages * PAGE, protection, flags, fd, 0)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    return at

def page(letter, number):
    return (letter.encode() + b"%06d" % number).ljust(PAGE, b"+")

def fill(at, letter, numbers):
    for number in numbers:
        ctypes.memmove(at + number * PAGE, page(letter, number), PAGE)

def tell(**what):
    print(json.dumps(what), flush=True)

def hear():
    return sys.stdin.readline().strip()
"""


class Child:
    """A Python process that says what it holds in one line of JSON and then waits."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._running = running
        self.pid = running.pid
        self.said = self.ask()

    def ask(self, question: str = "") -> dict[str, Any]:
        assert self._running.stdin
        assert self._running.stdout
        if question:
            self._running.stdin.write(question + "\n")
            self._running.stdin.flush()
        answer: dict[str, Any] = json.loads(self._running.stdout.readline())
        return answer

    def hold(self) -> None:
        """Stop it: two captures find the same."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def kill(self) -> None:
        self._running.kill()
        self._running.wait()


@contextmanager
def child(code: str, *arguments: str) -> Iterator[Child]:
    command = [sys.executable, "-c", PRELUDE + code, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield Child(running)
        finally:
            running.kill()


ANSWERING = """
tell(at=map(4))
while hear():
    tell(awake=True)
"""


def read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def by_address(table: pa.Table) -> dict[int, dict[str, Any]]:
    """Return the rows by the address of their page."""
    return {row["mapping"]["start"] + row["index"] * PAGE: row for row in table.to_pylist()}


def check_balance(pid: int, captured: Captured) -> None:
    """Every page of the address space is a row or absent for one reason."""
    absent = captured.absent
    total = sum(vma.pages for vma in read_vmas(pid, PAGE))
    assert captured.pages + absent.holes + absent.excluded + absent.unreadable == total


@pytest.fixture
def frames_seen() -> None:
    """Skip where the kernel shows no frame numbers."""
    page = mmap.mmap(-1, PAGE)
    page[0] = 1
    own = pagemap.Pagemap(os.getpid(), PAGE)
    hidden = pagemap.hides_frames(
        own.entries(ctypes.addressof(ctypes.c_char.from_buffer(page)) // PAGE, 1)
    )
    own.close()
    if hidden:
        pytest.skip("frame numbers need CAP_SYS_ADMIN")


POPULATION = """
directory = sys.argv[1]
file = open(directory + "/some file", "w+b")
file.write(page("f", 0) + page("f", 1) + page("f", 2)); file.flush()
memory = os.memfd_create("pool"); os.ftruncate(memory, 8 * PAGE)
spots = {
    "anon": map(8),
    "shmem": map(8, SHARED | ANONYMOUS),
    "memfd": map(8, SHARED, memory),
    "forbidden": map(8),
}
for letter, at in spots.items():
    fill(at, letter[0], (0, 1, 5))
libc.mprotect(spots["forbidden"], 8 * PAGE, 0)
spots["file"] = map(3, PRIVATE, file.fileno())
for number in range(3):
    ctypes.string_at(spots["file"] + number * PAGE, 1)
fill(spots["file"], "w", (1,))
spots["untouched"] = map(64)
tell(**spots)
hear()
"""


@pytest.mark.parametrize("batch_pages", [16384, 7, 1])
def test_every_kind_of_memory_comes_back_as_the_child_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_pages: int
) -> None:
    monkeypatch.setattr(process, "BATCH_BYTES", batch_pages * PAGE)
    path = tmp_path / "dump"
    with child(POPULATION, str(tmp_path)) as one:
        one.hold()
        captured = capture([one.pid], str(path))
        check_balance(one.pid, captured)
        comm = Path(f"/proc/{one.pid}/comm").read_text().strip()
    assert not captured.losses
    table = read(path)
    assert table.num_rows == captured.pages
    rows = by_address(table)
    kinds = {"anon": "anon", "shmem": "shmem", "memfd": "shmem", "forbidden": "anon"}
    for what, kind in kinds.items():
        at = one.said[what]
        for number in range(8):
            row = rows.get(at + number * PAGE)
            if number not in (0, 1, 5):
                assert row is None, (what, number)
                continue
            assert row
            assert row["content"] == (what[0] + f"{number:06d}").encode().ljust(PAGE, b"+")
            assert row["mapping"]["kind"] == kind
            assert row["mapping"]["owner"] == f"{comm}[{one.pid}]"
            assert row["mapping"]["domain"] == f"uid:{os.geteuid()}"
    for number, letter in enumerate("fwf"):
        row = rows[one.said["file"] + number * PAGE]
        assert row["content"][:7] == f"{letter}{number:06d}".encode()
        assert (row["mapping"]["kind"], row["index"]) == ("file", number)
        assert row["mapping"]["name"] == str(tmp_path / "some file")
        assert bool(row["flags"] & PageFlag.FILE) == (letter == "f")
    assert not rows.keys() & {one.said["untouched"] + n * PAGE for n in range(64)}
    assert "[vvar]" not in {row["mapping"]["name"] for row in rows.values()}


def test_small_mappings_share_a_batch(tmp_path: Path) -> None:
    with child("for n in range(300): map(2, protection=1 + n % 2 * 2)\ntell()\nhear()") as one:
        captured = capture([one.pid], str(tmp_path / "dump"))
    assert captured.mappings > 100
    with pa.memory_map(str(tmp_path / "dump")) as source:
        assert pa.ipc.open_file(source).num_record_batches == 1


RESERVATION = """
tib = (1 << 40) // PAGE
at = map(tib, PRIVATE | ANONYMOUS | NORESERVE, protection=int(sys.argv[1]))
if int(sys.argv[1]):
    fill(at + (tib // 2) * PAGE, "r", (7,))
tell(at=at, pages=tib)
hear()
"""


@pytest.mark.parametrize("protection", [0, 3])
def test_a_reservation_is_holes(tmp_path: Path, protection: int) -> None:
    with child(RESERVATION, str(protection)) as one:
        one.hold()
        captured = capture([one.pid], str(tmp_path / "dump"))
        check_balance(one.pid, captured)
    assert captured.absent.holes >= one.said["pages"] - 1
    rows = by_address(read(tmp_path / "dump"))
    start, stop = one.said["at"], one.said["at"] + (1 << 40)
    found = {at for at in rows if start <= at < stop}
    assert found == ({start + (1 << 39) + 7 * PAGE} if protection else set())


def test_a_kernel_without_pagemap_scan_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child(POPULATION, str(tmp_path)) as one:
        one.hold()
        first = capture([one.pid], str(tmp_path / "scan"))
        monkeypatch.setattr(pagemap, "_PAGEMAP_SCAN", 0xC060667F)
        second = capture([one.pid], str(tmp_path / "read"))
    assert first == second
    columns = ["mapping", "index", "content"]
    assert read(tmp_path / "scan").select(columns).equals(read(tmp_path / "read").select(columns))


FORKED = """
at = map(8)
fill(at, "k", range(8))
there, here = os.pipe()
pid = os.fork()
if pid == 0:
    fill(at, "c", (3,))
    os.write(here, b"x")
    signal.pause()
os.read(there, 1)
tell(at=at, pid=pid)
hear()
os.kill(pid, signal.SIGKILL)
tell()
"""


@pytest.mark.usefixtures("frames_seen")
def test_forked_pages_have_one_frame_until_they_are_written(tmp_path: Path) -> None:
    with child(FORKED) as one:
        other = one.said["pid"]
        capture([one.pid, other], str(tmp_path / "dump"), stop=True)
        assert one.ask("end") == {}
    rows: dict[int, dict[int, dict[str, Any]]] = {one.pid: {}, other: {}}
    for row in read(tmp_path / "dump").to_pylist():
        pid = int(row["mapping"]["owner"].split("[")[1][:-1])
        rows[pid][row["mapping"]["start"] + row["index"] * PAGE] = row
    for number in range(8):
        mine, its = (rows[p][one.said["at"] + number * PAGE] for p in (one.pid, other))
        shared = number != 3
        assert (mine["frame"] == its["frame"]) == shared
        assert (mine["content"] == its["content"]) == shared
        assert bool(its["flags"] & PageFlag.MMAP_EXCLUSIVE) != shared
        assert mine["node"] is not None


def test_stopped_during_the_capture_and_running_after_it(tmp_path: Path) -> None:
    states: list[set[str]] = []
    code = "threading.Thread(target=signal.pause, daemon=True).start()\n" + ANSWERING
    with child(code) as one:
        captured = capture(
            [one.pid],
            str(tmp_path / "dump"),
            stop=True,
            progress=lambda done, total: states.append(set(thread_states(one.pid).values())),
        )
        assert one.ask("?") == {"awake": True}
    assert states == [{"T"}] * len(states)
    assert states
    assert not any("running" in note for note in captured.notes)


def fail(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_running_again_after_every_failure(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    with child(ANSWERING) as one:
        with pytest.raises(KeyboardInterrupt):
            capture([one.pid], str(path), stop=True, progress=fail)
        assert one.ask("?") == {"awake": True}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(OutputError, match=os.strerror(errno.EFBIG)):
                capture([one.pid], str(path), stop=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert one.ask("?") == {"awake": True}
        assert not list(tmp_path.iterdir())
        path.write_text("mine")
        with pytest.raises(OutputError, match="exists"):
            capture([one.pid], str(path), stop=True)
        assert one.ask("?") == {"awake": True}
    assert path.read_text() == "mine"


def test_what_was_stopped_before_stays_so(tmp_path: Path) -> None:
    with child(ANSWERING) as one:
        one.hold()
        capture([one.pid], str(tmp_path / "dump"), stop=True)
        assert set(thread_states(one.pid).values()) == {"T"}
        os.kill(one.pid, signal.SIGCONT)
        assert one.ask("?") == {"awake": True}


def test_a_process_that_ends_meanwhile_is_kept_as_far_as_it_was_read(tmp_path: Path) -> None:
    pages = (160 << 20) // PAGE
    with child(f"at = map({pages})\nctypes.memset(at, 7, {pages} * PAGE)\ntell()\nhear()") as one:
        reports: list[tuple[int, int]] = []

        def end(done: int, total: int) -> None:
            reports.append((done, total))
            if done:
                one.kill()

        captured = capture([one.pid], str(tmp_path / "dump"), progress=end)
    assert captured.pages == read(tmp_path / "dump").num_rows == (64 << 20) // PAGE
    assert captured.absent.unreadable >= pages - captured.pages
    assert captured.pages + captured.absent.unreadable == reports[-1][0] >= pages
    (loss,) = captured.losses
    assert loss.startswith(f"pid {one.pid}: {captured.absent.unreadable} pages of ")
    assert loss.endswith("the process ended")


def test_the_others_are_captured_whole(tmp_path: Path) -> None:
    with child(ANSWERING) as one, child(ANSWERING) as two:
        two.hold()
        captured = capture(
            [one.pid, two.pid], str(tmp_path / "dump"), progress=lambda done, total: one.kill()
        )
        alone = capture([two.pid], str(tmp_path / "alone"))
    assert captured.pages == alone.pages
    assert captured.absent.unreadable > 100
    assert len(captured.losses) == 1
    with child(ANSWERING) as three, pytest.raises(ImageError, match="the process ended"):
        capture([three.pid], str(tmp_path / "none"), progress=lambda done, total: three.kill())
    assert not (tmp_path / "none").exists()
    gone = capture_error(one.pid, tmp_path)
    assert str(gone) == f"pid {one.pid}: no such process"
    with child(ANSWERING) as two:
        captured = capture([one.pid, two.pid], str(tmp_path / "rest"))
    assert captured.losses == [f"pid {one.pid}: no such process"]


def capture_error(pid: int, directory: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        capture([pid], str(directory / "none"))
    return caught.value


def test_a_thread_stands_for_its_process_which_is_read_once(tmp_path: Path) -> None:
    code = """
thread = threading.Thread(target=signal.pause, daemon=True); thread.start()
tell(tid=thread.native_id)
hear()
"""
    with child(code) as one:
        one.hold()
        once = capture([one.pid], str(tmp_path / "once"))
        often = capture([one.said["tid"], one.pid, one.pid], str(tmp_path / "often"))
    assert often.pages == once.pages
    owners = {row["owner"] for row in read(tmp_path / "often").column("mapping").to_pylist()}
    assert [owner.split("[")[1] for owner in owners] == [f"{one.pid}]"]


def test_itself_can_be_captured_but_not_stopped(tmp_path: Path) -> None:
    pid = os.getpid()
    captured = capture([pid], str(tmp_path / "dump"))
    assert captured.pages > 1000
    assert any("itself" in note for note in captured.notes)
    for number in (pid, threading.get_native_id()):
        with pytest.raises(UsageError, match="cannot stop"):
            capture([number], str(tmp_path / "other"), stop=True)
    with pytest.raises(UsageError, match="no process"):
        capture([], str(tmp_path / "other"))


def test_a_kernel_thread_has_nothing(tmp_path: Path) -> None:
    status = Path("/proc/2/status")
    if not status.exists() or "Kthread:\t1" not in status.read_text():
        pytest.skip("pid 2 is no kernel thread here")
    assert "kernel thread" in str(capture_error(2, tmp_path))
    with pytest.raises(ImageError, match="kernel thread"):
        capture([2], str(tmp_path / "none"), stop=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's privileges for a while; as another user, do nothing."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        # Another user had become unable to trace us.
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def test_no_permission_is_said_with_a_way_out(tmp_path: Path) -> None:
    if Path("/proc/1").stat().st_uid:
        pytest.skip("pid 1 is not root's here")
    with as_nobody():
        error = capture_error(1, tmp_path)
    assert str(error).startswith("pid 1: no permission to read /proc/1/")
    assert "ptrace_scope" in str(error)


@pytest.mark.usefixtures("frames_seen")
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_without_privileges_frames_are_unknown_not_equal() -> None:
    unprivileged = f"os.setuid({NOBODY})\nlibc.prctl(4, 1, 0, 0, 0)\n"
    with tempfile.TemporaryDirectory() as name, child(unprivileged + ANSWERING) as one:
        directory = Path(name)
        os.chown(directory, NOBODY, NOBODY)
        one.hold()
        privileged = capture([one.pid], str(directory / "root"), stop=True)
        with as_nobody():
            captured = capture([one.pid], str(directory / "nobody"), stop=True)
        table, root = read(directory / "nobody"), read(directory / "root")
        assert table.column("content").equals(root.column("content"))
    assert table.column("frame").null_count == table.column("node").null_count == captured.pages
    assert captured.pages == privileged.pages
    (note,) = captured.notes
    assert "CAP_SYS_ADMIN" in note


SECRET = """
fd = libc.syscall(447, 0)
if fd < 0:
    tell(error=os.strerror(ctypes.get_errno()))
else:
    os.ftruncate(fd, 4 * PAGE)
    at = map(4, SHARED, fd)
    fill(at, "s", range(4))
    tell(error="")
hear()
"""


def test_unreadable_pages_are_one_loss_for_each_mapping(tmp_path: Path) -> None:
    with child(SECRET) as one:
        if one.said["error"]:
            pytest.skip(f"memfd_secret: {one.said['error']}")
        one.hold()
        captured = capture([one.pid], str(tmp_path / "dump"))
        check_balance(one.pid, captured)
    assert captured.absent.unreadable == 4
    (loss,) = captured.losses
    assert loss.startswith(f"pid {one.pid}: 4 pages of /secretmem (deleted): ")


def test_reading_goes_on_after_a_page_that_fails() -> None:
    libc = ctypes.CDLL(None)
    with mmap.mmap(-1, 8 * PAGE) as memory:
        for number in range(8):
            memory[number * PAGE : (number + 1) * PAGE] = bytes([number + 1]) * PAGE
        anchor = ctypes.c_char.from_buffer(memory)
        at = ctypes.addressof(anchor)
        for hole in (2, 3, 7):
            assert libc.munmap(ctypes.c_void_p(at + hole * PAGE), PAGE) == 0
        fd = os.open("/proc/self/mem", os.O_RDONLY)
        out = np.zeros((8, PAGE), np.uint8)
        read, reason = process._read_pages(fd, at // PAGE + np.array([0, 1, 2, 3, 4, 6, 7]), out)
        os.close(fd)
        # Give the holes back, or the mapping's end would unmap what came there since.
        for hole in (2, 3, 7):
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap(ctypes.c_void_p(at + hole * PAGE), PAGE, 3, 0x32, -1, 0)
        del anchor
    assert read.tolist() == [True, True, False, False, True, True, False]
    assert out[:4, 0].tolist() == [1, 2, 5, 7]
    assert reason
