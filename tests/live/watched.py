"""A process that writes to its memory when it is asked to, and what a recorder leaves of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from gpudedup.errors import UnsupportedHereError
from gpudedup.processes.tracer import thread_states
from gpudedup.processes.write_watch import watch

from ..processes.children import may_trace

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


def usable(pid: int, method: str) -> None:
    if not may_trace():
        pytest.skip("Yama: ptrace_scope is not 0")
    try:
        watch(pid, method).close()
    except UnsupportedHereError as error:
        pytest.skip(str(error))


def descriptors(pid: int) -> set[str]:
    """Return what the descriptors of a process are of."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(path.readlink()))
    return found


def untraced(pid: int) -> bool:
    return "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()


def left_alone(pid: int) -> bool:
    """Return whether a process is untraced, without a userfaultfd and without stopped threads."""
    alive = not set(thread_states(pid).values()) & set("TtZX")
    return alive and untraced(pid) and not any("userfaultfd" in name for name in descriptors(pid))
