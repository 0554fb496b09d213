"""Child processes that report their memory, and dumps to compare with the report."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from gpudedup.images.dumps.writer import Written
from gpudedup.processes.procfs import read_vmas

PAGE = mmap.PAGESIZE

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
    """A Python process that prints the layout of its memory as a line of JSON, then waits."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._running = running
        self.pid = running.pid
        self.said = self.ask()

    def say(self, word: str) -> None:
        assert self._running.stdin
        self._running.stdin.write(word + "\n")
        self._running.stdin.flush()

    def ask(self, question: str = "") -> dict[str, Any]:
        assert self._running.stdout
        if question:
            self.say(question)
        answer: dict[str, Any] = json.loads(self._running.stdout.readline())
        return answer

    def hold(self) -> None:
        """Stop the process, so that two captures find the same memory."""
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


def may_trace() -> bool:
    """Return False where Yama lets a helper process not trace the child of its parent."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return not os.geteuid() or not scope.exists() or scope.read_text().strip() == "0"


def until(so: Callable[[], object]) -> None:
    """Wait until something is so; fail after a minute."""
    deadline = time.monotonic() + 60
    while not so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def by_address(table: pa.Table) -> dict[int, dict[str, Any]]:
    """Return the rows by the address of their page."""
    return {row["mapping"]["start"] + row["index"] * PAGE: row for row in table.to_pylist()}


def check_balance(pid: int, captured: Written) -> None:
    """Check that every page of the address space is a row, or absent for one reason."""
    absent = captured.absent
    total = sum(vma.pages for vma in read_vmas(pid, PAGE))
    assert captured.pages + absent.holes + absent.excluded + absent.unreadable == total
