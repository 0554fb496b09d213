"""Captures of child processes, compared with what the children hold."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gpudedup.errors import UsageError
from gpudedup.processes import capture as process
from gpudedup.processes import pagemap
from gpudedup.processes.capture import capture
from gpudedup.schema import PageFlag

from .children import PAGE, by_address, check_balance, child, read

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


CAPTURE_ITSELF = """
import os, sys
from gpudedup.processes.capture import capture
captured = capture([os.getpid()], sys.argv[1])
assert captured.pages > 1000
assert any("itself" in note for note in captured.notes)
"""


def test_itself_can_be_captured_but_not_stopped(tmp_path: Path) -> None:
    """In a process of its own, which holds less than that of the tests."""
    words = [sys.executable, "-c", CAPTURE_ITSELF, str(tmp_path / "dump")]
    subprocess.run(words, check=True, timeout=120)
    pid = os.getpid()
    for number in (pid, threading.get_native_id()):
        with pytest.raises(UsageError, match="cannot stop"):
            capture([number], str(tmp_path / "other"), stop=True)
    with pytest.raises(UsageError, match="no process"):
        capture([], str(tmp_path / "other"))


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
        # Map the holes again: closing would unmap whatever was mapped there since.
        for hole in (2, 3, 7):
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap(ctypes.c_void_p(at + hole * PAGE), PAGE, 3, 0x32, -1, 0)
        del anchor
    assert read.tolist() == [True, True, False, False, True, True, False]
    assert out[:4, 0].tolist() == [1, 2, 5, 7]
    assert reason
