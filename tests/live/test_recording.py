"""Watching a real process sees each page that it writes, and does not disturb the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

import gpudedup as gd
from gpudedup.errors import ImageError, UnsupportedHereError
from gpudedup.processes.procfs import read_vmas
from gpudedup.processes.userfaultfd import borrowed_userfaultfd
from gpudedup.processes.write_watch import WriteProtect, keeps_soft_dirty, watch
from gpudedup.traces.recording import Recording

from ..processes.children import PAGE, Child, child
from .watched import usable

pytestmark = pytest.mark.live

METHODS = ["write-protect", "soft-dirty"]


@pytest.mark.parametrize("method", METHODS)
def test_written_pages_are_seen_and_no_others(writer: Child, method: str) -> None:
    usable(writer.pid, method)
    first = writer.said["at"] // PAGE
    watched = watch(writer.pid, method)

    def seen() -> list[tuple[int, int]]:
        return [(at - first, count) for at, count in watched.written().tolist()]

    watched.begin([(first, first + 64)])
    assert seen() == []
    writer.ask("write 3 4 9")
    assert seen() == [(3, 2), (9, 1)]
    assert seen() == []
    writer.ask("read 5 40")
    assert seen() == []
    writer.ask("write 40 63 3")
    assert seen() == [(3, 1), (40, 1), (63, 1)]
    writer.ask("kernel 7")
    assert seen() == [(7, 1)]
    writer.ask("unmap")
    assert seen() == []
    watched.close()
    writer.kill()
    with pytest.raises(ImageError, match="no such process"):
        watch(writer.pid, method)


def test_the_process_is_left_as_it_was(writer: Child) -> None:
    usable(writer.pid, "write-protect")
    before = writer.ask("look")
    flags = {vma.first: vma.flags for vma in read_vmas(writer.pid, PAGE)}
    sent = 2000

    def signals() -> None:
        for _ in range(sent):
            os.kill(writer.pid, signal.SIGRTMIN)
            time.sleep(0.0005)

    # The process sleeps in read(2), which is restarted; all signals sent meanwhile arrive.
    thread = threading.Thread(target=signals)
    thread.start()
    while thread.is_alive():
        watched = WriteProtect(writer.pid)
        watched.begin([(vma.first, vma.first + vma.pages) for vma in read_vmas(writer.pid, PAGE)])
        watched.close()
    after = writer.ask("signals")
    assert after["descriptors"] == before["descriptors"]
    assert after["handled"] == sent
    status = Path(f"/proc/{writer.pid}/status").read_text()
    assert "TracerPid:\t0\n" in status
    assert "SigBlk:\t0000000000000000\n" in status
    now = {vma.first: vma.flags for vma in read_vmas(writer.pid, PAGE)}
    assert {first: words for first, words in now.items() if first in flags} == flags


BUSY = """
import time
stop = []
counts = [0, 0]
def count(which):
    while not stop:
        counts[which] += sum(range(100)) == 4950
threads = [threading.Thread(target=count, args=(n,)) for n in range(2)]
[t.start() for t in threads]
tell(ready=True)
hear()
stop.append(1)
[t.join() for t in threads]
tell(wrong=sum(range(1000)) != 499500, counts=counts)
"""


def test_a_busy_process_computes_on() -> None:
    with child(BUSY) as busy:
        usable(busy.pid, "write-protect")
        for _ in range(50):
            os.close(borrowed_userfaultfd(busy.pid))
        said = busy.ask("stop")
    assert not said["wrong"]
    assert min(said["counts"]) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_recording_is_replayed_on_its_capture(writer: Child, tmp_path: Path, method: str) -> None:
    usable(writer.pid, method)
    at = writer.said["at"]
    done: list[object] = []
    trace, image = tmp_path / "t.arrow", tmp_path / "t.image.arrow"

    def record() -> None:
        done.append(gd.record_trace(writer.pid, trace, interval=0.05, duration=1.5, method=method))

    thread = threading.Thread(target=record)
    thread.start()
    deadline = time.monotonic() + 10
    while not image.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    for question in ("write 3 4", "write 50", "shared", "write 3"):
        writer.ask(question)
        time.sleep(0.15)
    thread.join()
    (recording,) = done
    assert isinstance(recording, Recording)
    assert (recording.how, recording.image) == (method, str(image))
    with gd.open_image(image) as opened:
        mappings = opened.mappings
    with pa.memory_map(str(trace)) as source:
        rows = pa.ipc.open_file(source).read_all().to_pylist()
    assert len(rows) == recording.events
    written: Counter[int] = Counter()
    for row in rows:
        place = mappings[row["mapping"]].start + row["index"] * PAGE - at
        if row["operation"] == "write" and 0 <= place < 64 * PAGE:
            written.update(range(place // PAGE, place // PAGE + row["count"]))
    assert written == {3: 2, 4: 1, 50: 1}
    assert all(mappings[row["mapping"]].kind != "shmem" for row in rows)
    # Page 50 was a hole, beyond the last captured page of the mapping.
    grown = [row for row in rows if row["operation"] == "truncate"]
    assert any(mappings[row["mapping"]].start == at and row["index"] == 51 for row in grown)
    result = gd.replay(image, trace, verify=True)
    assert result.verified
    assert result.totals["pages"] == recording.pages
    assert result.totals["fills"] >= 1


def test_a_process_that_ends_ends_it(writer: Child, tmp_path: Path) -> None:
    usable(writer.pid, "auto")
    threading.Timer(0.6, writer.kill).start()
    done = gd.record_trace(writer.pid, tmp_path / "t.arrow", duration=20, interval=0.1)
    assert done.seconds < 10
    assert any("ended after" in note for note in done.notes)
    assert gd.replay(done.image, tmp_path / "t.arrow").events == done.events


def test_where_there_are_no_soft_dirty_bits_nothing_is_left(writer: Child, tmp_path: Path) -> None:
    if keeps_soft_dirty():
        pytest.skip("this kernel keeps soft-dirty bits")
    with pytest.raises(UnsupportedHereError, match="this kernel does not keep these bits"):
        gd.record_trace(writer.pid, tmp_path / "t.arrow", method="soft-dirty")
    assert list(tmp_path.iterdir()) == []
    writer.ask("look")


FILTERED = """
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 38, 22
class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte),
                ("k", ctypes.c_uint)]
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]
allow = Filter(0x06, 0, 0, 0x7FFF0000)
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
assert libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(Program(1, ctypes.pointer(allow))), 0, 0) == 0
tell(ready=True)
hear()
"""


def test_a_second_recorder_is_refused(writer: Child, tmp_path: Path) -> None:
    usable(writer.pid, "write-protect")
    first = WriteProtect(writer.pid)
    at = writer.said["at"] // PAGE
    vmas = read_vmas(writer.pid, PAGE)
    (one,) = [vma for vma in vmas if vma.first <= at < vma.first + vma.pages]
    assert first.begin([(one.first, one.first + one.pages)]) == one.pages
    done = gd.record_trace(writer.pid, tmp_path / "some.arrow", interval=0.1, duration=0.1)
    assert done.unwatched == one.pages
    assert any(f"{one.pages} pages of private memory are not watched" in n for n in done.notes)
    first.close()
    done = gd.record_trace(writer.pid, tmp_path / "all.arrow", interval=0.1, duration=0.1)
    assert done.unwatched == 0
    assert not any("not watched" in note for note in done.notes)
    first = WriteProtect(writer.pid)
    first.begin([(vma.first, vma.first + vma.pages) for vma in read_vmas(writer.pid, PAGE)])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UnsupportedHereError, match=r"none of its \d+ pages of private") as raised:
        gd.record_trace(writer.pid, tmp_path / "none.arrow")
    assert raised.value.exit_code == 4
    assert sorted(tmp_path.iterdir()) == before
    writer.ask("write 3")
    assert first.written().tolist()
    first.close()


def test_a_process_with_a_filter_is_left_alone() -> None:
    with child(FILTERED) as filtered, pytest.raises(UnsupportedHereError, match="seccomp"):
        WriteProtect(filtered.pid)
