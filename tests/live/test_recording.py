"""Watching a real process sees each page that it writes, and does not disturb the process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

import gpudedup as gd
from gpudedup.errors import ImageError, UnsupportedHereError
from gpudedup.processes import helper
from gpudedup.processes.procfs import read_vmas
from gpudedup.processes.stopped import stopped
from gpudedup.processes.tracer import thread_states
from gpudedup.processes.userfaultfd import borrowed_userfaultfd
from gpudedup.processes.write_watch import WriteProtect, keeps_soft_dirty, watch
from gpudedup.traces.recording import Recording

from ..processes.children import ANSWERING, PAGE, Child, child, may_trace, until

pytestmark = pytest.mark.live

METHODS = ["write-protect", "soft-dirty"]

WRITER = """
at = map(64)
other = map(8, SHARED | ANONYMOUS)
fill(at, "a", range(32))
signal.signal(signal.SIGRTMIN, lambda *_: None)
arrived, tells = os.pipe()
os.set_blocking(arrived, False)
os.set_blocking(tells, False)
signal.set_wakeup_fd(tells)
read_end, write_end = os.pipe()
handled = 0
tell(at=at, other=other)
while question := hear():
    word, *numbers = question.split()
    if word == "write":
        fill(at, "b", map_ints(numbers))
    if word == "read":
        [ctypes.string_at(at + int(n) * PAGE, 1) for n in numbers]
    if word == "kernel":
        os.write(write_end, b"k" * PAGE)
        got = os.readv(read_end, [(ctypes.c_char * PAGE).from_address(at + int(numbers[0]) * PAGE)])
        assert got == PAGE
    if word == "shared":
        ctypes.memset(other, 1, PAGE)
    if word == "unmap":
        libc.munmap(ctypes.c_void_p(at), 64 * PAGE)
    if word == "signals":
        handled += len(os.read(arrived, 1 << 16))
    tell(handled=handled, descriptors=len(os.listdir("/proc/self/fd")))
""".replace("map_ints(numbers)", "[int(n) for n in numbers]")


@pytest.fixture
def writer() -> Iterator[Child]:
    if os.geteuid():
        pytest.skip("needs root")
    with child(WRITER) as running:
        yield running


def usable(pid: int, method: str) -> None:
    if not may_trace():
        pytest.skip("Yama: ptrace_scope is not 0")
    try:
        watch(pid, method).close()
    except UnsupportedHereError as error:
        pytest.skip(str(error))


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


def test_a_stopped_process_stays_stopped(writer: Child) -> None:
    usable(writer.pid, "write-protect")
    writer.hold()
    os.close(borrowed_userfaultfd(writer.pid))
    time.sleep(0.05)
    assert "\nState:\tT" in Path(f"/proc/{writer.pid}/status").read_text()
    os.kill(writer.pid, signal.SIGCONT)
    writer.ask("look")


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


RECORDERS = """
import os, signal, sys
from gpudedup.processes.userfaultfd import borrowed_userfaultfd
for line in sys.stdin:
    if child := os.fork():
        print(child, flush=True)
        os.waitpid(child, 0)
    else:
        borrowed_userfaultfd(int(line))
        signal.pause()
"""


def has_open(pid: int, folder: str) -> bool:
    return any(name.startswith(folder) for name in descriptors(pid))


def descriptors(pid: int) -> set[str]:
    """Return what the descriptors of a process are of."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(path.readlink()))
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_a_recorder_killed_at_any_moment_leaves_nothing(threads: int) -> None:
    """It is killed before, while and after the other process opens a userfaultfd for it."""
    start = "threading.Thread(target=signal.pause, daemon=True).start()"
    more = f"for _ in range({threads - 1}): {start}\n"
    rng = random.Random(threads)
    command = [sys.executable, "-c", RECORDERS]
    with (
        child(more + ANSWERING) as one,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as recorders,
    ):
        usable(one.pid, "write-protect")
        assert recorders.stdin
        assert recorders.stdout
        for turn in range(60):
            print(one.pid, file=recorders.stdin, flush=True)
            recorder = int(recorders.stdout.readline())
            # Many early: some ms after its start it has what it wants.
            time.sleep(rng.uniform(0, rng.choice([0.003, 0.03, 0.06])))
            os.kill(recorder, [signal.SIGKILL, signal.SIGTERM][turn % 2])
            # A helper that just starts may not know yet that its parent is gone.
            until(partial(left_alone, one.pid))
            assert one.ask("?") == {"awake": True}
        assert "SigBlk:\t0000000000000000\n" in Path(f"/proc/{one.pid}/status").read_text()
        recorders.stdin.close()


def left_alone(pid: int) -> bool:
    """Return whether a process is untraced, without a userfaultfd and without stopped threads."""
    alive = not set(thread_states(pid).values()) & set("TtZX")
    return alive and untraced(pid) and not any("userfaultfd" in name for name in descriptors(pid))


def untraced(pid: int) -> bool:
    return "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()


VFORK = """
libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
stack = map(64)
def start():
    # CLONE_VM | CLONE_VFORK: this process waits, until the other one ends, as in vfork(2).
    libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), stack + 64 * PAGE, 0x4100 | 17, None)
tell(ready=True)
hear()
start()
while True:
    tell(awake=True)
    hear()
"""


def test_a_parent_in_vfork_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with child(VFORK) as parent:
        usable(parent.pid, "write-protect")
        monkeypatch.setattr(helper, "PATIENCE_S", 0.3)
        parent.say("go")
        until(lambda: "D" in thread_states(parent.pid).values())
        for hold in (lambda: borrowed_userfaultfd(parent.pid), lambda: stop_once(parent.pid)):
            with pytest.raises(ImageError) as raised:
                hold()
            reason = rf"thread {parent.pid} did not stop within 0.3 s (state D)"
            assert str(raised.value) == f"pid {parent.pid}: {reason}"
            assert untraced(parent.pid)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert parent.ask() == {"awake": True}
        assert parent.ask("?") == {"awake": True}


def stop_once(pid: int) -> None:
    with stopped([pid]):
        pass


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


def test_a_recording_of_a_held_process_is_refused(writer: Child, tmp_path: Path) -> None:
    usable(writer.pid, "write-protect")
    with stopped([writer.pid]), pytest.raises(ImageError, match=r"held by pid \d+"):
        gd.record_trace(writer.pid, tmp_path / "t.arrow")
    assert list(tmp_path.iterdir()) == []
    writer.ask("look")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_a_recording_that_a_signal_ends(writer: Child, tmp_path: Path, number: int) -> None:
    usable(writer.pid, "write-protect")
    rng = random.Random(number)
    words = ["trace", "record", "-p", str(writer.pid), "-o", str(tmp_path / "t.arrow")]
    for _ in range(4):
        command = subprocess.Popen(
            [sys.executable, "-m", "gpudedup", *words, "--duration", "60", "--force"],
            stderr=subprocess.DEVNULL,
        )
        # The trace has no name yet, but the recorder has it open.
        until(partial(has_open, command.pid, str(tmp_path)))
        time.sleep(rng.uniform(0, 0.2))
        command.send_signal(number)
        assert command.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        until(partial(untraced, writer.pid))
        writer.ask("write 3")
        assert not any("userfaultfd" in name for name in descriptors(writer.pid))
        assert not (tmp_path / "t.arrow").exists()


def test_a_process_with_a_filter_is_left_alone() -> None:
    with child(FILTERED) as filtered, pytest.raises(UnsupportedHereError, match="seccomp"):
        WriteProtect(filtered.pid)
