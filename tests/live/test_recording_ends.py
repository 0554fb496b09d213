"""A recorder that is killed, refused or held up leaves the other process as it was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import gpudedup as gd
from gpudedup.errors import ImageError
from gpudedup.processes import helper
from gpudedup.processes.stopped import stopped
from gpudedup.processes.tracer import thread_states
from gpudedup.processes.userfaultfd import borrowed_userfaultfd

from ..processes.children import ANSWERING, Child, child, until
from .watched import descriptors, left_alone, untraced, usable

pytestmark = pytest.mark.live


def test_a_stopped_process_stays_stopped(writer: Child) -> None:
    usable(writer.pid, "write-protect")
    writer.hold()
    os.close(borrowed_userfaultfd(writer.pid))
    time.sleep(0.05)
    assert "\nState:\tT" in Path(f"/proc/{writer.pid}/status").read_text()
    os.kill(writer.pid, signal.SIGCONT)
    writer.ask("look")


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


def test_a_recording_of_a_held_process_is_refused(writer: Child, tmp_path: Path) -> None:
    usable(writer.pid, "write-protect")
    with stopped([writer.pid]), pytest.raises(ImageError, match=r"held by pid \d+"):
        gd.record_trace(writer.pid, tmp_path / "t.arrow")
    assert list(tmp_path.iterdir()) == []
    writer.ask("look")


def has_open(pid: int, folder: str) -> bool:
    return any(name.startswith(folder) for name in descriptors(pid))


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
