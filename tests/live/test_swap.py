"""A capture reads pages in swap, and flags them as swapped."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from gpudedup.processes.capture import capture
from gpudedup.schema import PageFlag

pytestmark = pytest.mark.live

PAGES = 256

CHILD = """
import ctypes, mmap, os, signal, sys
PAGE = mmap.PAGESIZE
memory = mmap.mmap(-1, 256 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for number in range(256):
    memory[number * PAGE : (number + 1) * PAGE] = (b"swapped %d" % number).ljust(PAGE, b".")
memory.madvise(21)  # MADV_PAGEOUT, which leaves alone what a fork shares already
pid = os.fork()
if pid == 0:
    signal.pause()
print(pid, ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
sys.stdin.readline()
os.kill(pid, signal.SIGKILL)
"""


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    """Enable a swap file of the test; disable it afterwards."""
    if os.geteuid() or not shutil.which("mkswap"):
        pytest.skip("needs root and mkswap")
    libc = ctypes.CDLL(None, use_errno=True)
    file = tmp_path / "swap"
    file.touch(0o600)
    with file.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, 16 << 20)
    subprocess.run(["mkswap", file], check=True, capture_output=True)
    if libc.swapon(os.fsencode(file), 0):
        pytest.skip(f"swapon: {os.strerror(ctypes.get_errno())}")
    yield
    assert libc.swapoff(os.fsencode(file)) == 0


@pytest.mark.usefixtures("swap")
def test_swapped_pages_are_read_and_forks_share_their_frames(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdin
        assert one.stdout
        other, address = map(int, one.stdout.readline().split())
        smaps = Path(f"/proc/{one.pid}/smaps").read_text()
        swapped = sum(int(x.split()[1]) for x in smaps.splitlines() if x.startswith("Swap:"))
        captured = capture([one.pid, other], str(tmp_path / "dump"))
        one.stdin.close()
    if not swapped:
        pytest.skip("the kernel swapped nothing out")
    assert not captured.losses
    with pa.memory_map(str(tmp_path / "dump")) as source:
        rows = pa.ipc.open_file(source).read_all().to_pylist()
    found: dict[bytes, list[tuple[int | None, bool]]] = {}
    for row in rows:
        # A page of the heap may happen to hold what the child wrote here last.
        at = row["mapping"]["start"] + row["index"] * mmap.PAGESIZE
        if address <= at < address + PAGES * mmap.PAGESIZE:
            place = found.setdefault(row["content"], [])
            place.append((row["frame"], bool(row["flags"] & PageFlag.SWAP)))
    assert len(found) == PAGES
    assert {len(pages) for pages in found.values()} == {2}
    assert sum(flag for pages in found.values() for _, flag in pages) >= PAGES
    for (mine, _), (its, _) in found.values():
        assert mine == its
