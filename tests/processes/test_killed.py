"""Whatever ends a capture or a recording: the process goes on, and no hidden file is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from gpudedup.errors import ImageError
from gpudedup.processes.capture import capture
from gpudedup.processes.stopped import stopped
from gpudedup.processes.tracer import thread_states

from .children import ANSWERING, PAGE, Child, child, may_trace, until
from .test_capture_end import as_nobody

TRACING = pytest.mark.skipif(not may_trace(), reason="Yama: ptrace_scope is not 0")

COMMAND = [sys.executable, "-m", "gpudedup"]

FULL = """
at = map((192 << 20) // PAGE)
ctypes.memset(at, 7, 192 << 20)
"""
THREADS = "[threading.Thread(target=signal.pause, daemon=True).start() for _ in range(3)]\n"
ONE, MANY = FULL + ANSWERING, FULL + THREADS + ANSWERING

UNWINDING = [
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1,
    signal.SIGUSR2, signal.SIGXCPU, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
    signal.SIGRTMIN, signal.SIGRTMAX,
]  # fmt: skip
AT_ONCE = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT]


def held(one: Child) -> bool:
    return bool(set(thread_states(one.pid).values()) & set("Tt"))


def goes_on(one: Child) -> bool:
    return not held(one)


def check_left_alone(children: list[Child], directory: Path) -> None:
    """Check that nothing of a command is left, whose helper may be at work for a moment yet."""
    for one in children:
        until(partial(goes_on, one))
        assert one.ask("?") == {"awake": True}
        assert "TracerPid:\t0\n" in Path(f"/proc/{one.pid}/status").read_text()
    until(lambda: not [path for path in directory.iterdir() if path.name.startswith(".")])


@pytest.mark.parametrize("number", [*UNWINDING, *AT_ONCE])
def test_a_capture_that_a_signal_ends(tmp_path: Path, number: int) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(child(code)) for code in (ONE, MANY)]
        pids = [word for one in children for word in ("-p", str(one.pid))]
        command = subprocess.Popen(
            [*COMMAND, "capture", "--stop", *pids, "-o", tmp_path / "dump"],
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: all(map(held, children)))
        time.sleep(random.Random(number).uniform(0, 0.05))
        command.send_signal(number)
        _, err = command.communicate(timeout=60)
        check_left_alone(children, tmp_path)
    assert command.returncode == (-number if number in AT_ONCE else 128 + number)
    assert len(err.splitlines()) <= 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_second_signal_does_not_disturb_the_first(tmp_path: Path) -> None:
    with child(ONE) as one:
        command = subprocess.Popen(
            [*COMMAND, "capture", "--stop", "-p", str(one.pid), "-o", tmp_path / "dump"],
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: held(one))
        command.send_signal(signal.SIGHUP)
        while command.poll() is None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                command.send_signal(number)
            time.sleep(0.001)
        _, err = command.communicate(timeout=60)
        check_left_alone([one], tmp_path)
    assert (command.returncode, err) == (129, "gpudedup: hangup\n")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ])
def test_an_ignored_signal_ends_nothing(tmp_path: Path, number: int) -> None:
    with child(ONE) as one:
        command = subprocess.Popen(
            ["nohup", *COMMAND, "capture", "--stop", "-p", str(one.pid), "-o", tmp_path / "dump"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: held(one))
        command.send_signal(number)
        assert command.wait(60) == 0
        check_left_alone([one], tmp_path)
    assert (tmp_path / "dump").exists()


def test_a_lost_terminal_is_not_written_to(tmp_path: Path) -> None:
    read, write = os.pipe()
    with child(ONE) as one:
        command = subprocess.Popen(
            [*COMMAND, "capture", "--stop", "-p", str(one.pid), "-o", tmp_path / "dump"],
            stderr=write,
        )
        until(lambda: held(one))
        os.close(write)
        os.close(read)
        command.send_signal(signal.SIGHUP)
        assert command.wait(60) == 129
        check_left_alone([one], tmp_path)


LIBRARY = """
import sys
from gpudedup import capture
capture([int(sys.argv[1])], sys.argv[2], stop=True)
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_program_that_captures_has_its_own_signals(tmp_path: Path, number: int) -> None:
    for seed in range(4):
        with child(MANY if seed % 2 else ONE) as one:
            program = subprocess.Popen(
                [sys.executable, "-c", LIBRARY, str(one.pid), tmp_path / "dump"]
            )
            until(partial(held, one))
            time.sleep(random.Random(seed).uniform(0, 0.05))
            program.send_signal(number)
            assert program.wait(60) == -number
            check_left_alone([one], tmp_path)


@TRACING
def test_a_hold_that_is_lost_is_told(tmp_path: Path) -> None:
    def lose(done: int, total: int) -> None:
        tracer = next(
            line.split()[1]
            for line in Path(f"/proc/{one.pid}/status").read_text().splitlines()
            if line.startswith("TracerPid:")
        )
        if tracer != "0":
            os.kill(int(tracer), signal.SIGKILL)

    with child(ANSWERING) as one:
        with pytest.raises(ImageError, match="did not stay stopped"):
            capture([one.pid], str(tmp_path / "dump"), stop=True, progress=lose)
        check_left_alone([one], tmp_path)
    assert list(tmp_path.iterdir()) == []


@TRACING
def test_a_hold_is_ones_own(tmp_path: Path) -> None:
    with child(THREADS + ANSWERING) as one:
        with stopped([one.pid]):
            with pytest.raises(
                ImageError, match=rf"^pid {one.pid}: held by pid \d+, a debugger or"
            ):
                capture([one.pid], str(tmp_path / "dump"), stop=True)
            os.kill(one.pid, signal.SIGCONT)
            assert set(thread_states(one.pid).values()) == {"t"}
            capture([one.pid], str(tmp_path / "running"))
        check_left_alone([one], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["running"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_may_signal_but_not_trace_stops_by_signal() -> None:
    # Who changes the user cannot be traced by that user.
    with child("os.setuid(65534)\n" + THREADS + ANSWERING) as one:
        with as_nobody(), stopped([one.pid]):
            assert set(thread_states(one.pid).values()) == {"T"}
        until(lambda: not held(one))
        assert one.ask("?") == {"awake": True}
        one.hold()
        with as_nobody(), stopped([one.pid]):
            pass
        assert held(one)


def test_new_threads_are_stopped_too(tmp_path: Path) -> None:
    code = """
def spawn():
    while True:
        threads = [threading.Thread(target=sum, args=(range(2000),)) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
threading.Thread(target=spawn, daemon=True).start()
"""
    with child(code + ANSWERING) as one:
        for _ in range(20):
            with stopped([one.pid]):
                threads = thread_states(one.pid)
                assert set(threads.values()) <= set("TtZX")
                time.sleep(0.01)
                assert thread_states(one.pid) == threads
        check_left_alone([one], tmp_path)


@TRACING
def test_a_process_killed_while_it_is_held_is_gone() -> None:
    with child(THREADS + ANSWERING) as one, stopped([one.pid]):
        one.kill()
        assert thread_states(one.pid) == {}


def test_pages_are_those_of_the_stop() -> None:
    """A process that counts without pause does not go on during the block."""
    code = """
at = map(1)
tell(at=at)
count = ctypes.c_uint64.from_address(at)
while True: count.value += 1
"""
    with child(code) as one, Path(f"/proc/{one.pid}/mem").open("rb", buffering=0) as memory:
        for _ in range(5):
            with stopped([one.pid]):
                memory.seek(one.said["at"])
                before = memory.read(PAGE)
                time.sleep(0.02)
                memory.seek(one.said["at"])
                assert memory.read(PAGE) == before
