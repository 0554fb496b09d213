"""Drive the kernel's KSM by hand, and start processes whose memory it may merge."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpudedup.processes.pagemap import Pagemap, hides_frames
from gpudedup.processes.procfs import read_vmas

from ..mm.closed_form import COUNTERS as COUNTERS

PAGE = os.sysconf("SC_PAGE_SIZE")
KSM = Path("/sys/kernel/mm/ksm")
SETTINGS = (
    "use_zero_pages",
    "max_page_sharing",
    "smart_scan",
    "sleep_millisecs",
    "pages_to_scan",
    "advisor_mode",
)
"""Settings in the order of restoring: an active advisor owns pages_to_scan."""

PATIENCE_S = 60

CHILD = """
import ctypes, json, mmap, os, random, signal, sys
PAGE = mmap.PAGESIZE
contents, forks, plain = json.loads(sys.stdin.readline())
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
untouched = 50
size = (len(contents) + untouched) * PAGE
at = libc.mmap(None, size, 3, 0x22, -1, 0)
assert libc.madvise(at, size, mmap.MADV_NOHUGEPAGE) == 0
assert libc.madvise(at, size, mmap.MADV_MERGEABLE) == 0
for first, count in plain:
    where = at + first * PAGE
    assert libc.madvise(where, count * PAGE, mmap.MADV_UNMERGEABLE) == 0

def put(place, content):
    page = random.Random(content).randbytes(PAGE) if content > 0 else bytes([-content]) * PAGE
    ctypes.memmove(at + place * PAGE, page, PAGE)

for place, content in enumerate(contents):
    put(place, content)
for place in range(20):  # only read: the kernel's zero page, which KSM passes over
    ctypes.string_at(at + (len(contents) + place) * PAGE, 1)
pids = [os.getpid()]
for changes in forks:
    there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.prctl(1, signal.SIGKILL)
        for place, content in changes:
            put(place, content)
        os.write(here, b"x")
        signal.pause()
    os.read(there, 1)
    pids.append(pid)
print(json.dumps([pids, at]), flush=True)
while line := sys.stdin.readline().strip():
    for place, content in json.loads(line):
        put(place, content)
    print("done", flush=True)
"""


def page_of(content: int) -> bytes:
    """Return the bytes that a child writes for a content."""
    return random.Random(content).randbytes(PAGE) if content > 0 else bytes([-content]) * PAGE


def read_ksm(name: str) -> int:
    return int((KSM / name).read_text())


def write_ksm(name: str, value: object) -> None:
    (KSM / name).write_text(str(value))


def frames_visible() -> bool:
    page = np.ones(2 * PAGE, np.uint8)
    own = Pagemap(os.getpid(), PAGE)
    entries = own.entries(page.ctypes.data // PAGE + 1, 1)
    own.close()
    return not hides_frames(entries)


def somebody_merges() -> str:
    """Return the name of a process with mergeable memory; empty if none exists."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                vmas = read_vmas(int(entry.name), PAGE)
            except OSError:
                continue
            if any("mg" in vma.flags.split() for vma in vmas):
                return f"pid {entry.name}"
    return ""


def let_ksm_run(cap: int, use_zero_pages: int) -> dict[str, int]:
    """Run full scans, more than KSM needs to finish; return the counters at rest."""
    write_ksm("advisor_mode", "none")
    write_ksm("smart_scan", 0)
    write_ksm("sleep_millisecs", 0)
    # More pages than exist: ksmd then stops between two scans, never within one.
    write_ksm("pages_to_scan", 1 << 24)
    write_ksm("max_page_sharing", cap)
    write_ksm("use_zero_pages", use_zero_pages)
    goal = read_ksm("full_scans") + 4
    deadline = time.monotonic() + PATIENCE_S
    write_ksm("run", 1)
    while read_ksm("full_scans") < goal:
        assert time.monotonic() < deadline, "ksmd does not get on"
        time.sleep(0.01)
    write_ksm("run", 0)
    return {name: read_ksm(name) for name in COUNTERS}


@dataclass(frozen=True)
class Population:
    """A process that holds given contents from address ``at`` on, and its forks."""

    pids: list[int]
    at: int
    running: subprocess.Popen[str]

    def put(self, changes: list[tuple[int, int]]) -> None:
        """Make the first process write: (place, content)."""
        assert self.running.stdin
        assert self.running.stdout
        print(json.dumps(changes), file=self.running.stdin, flush=True)
        assert self.running.stdout.readline() == "done\n"


@dataclass(frozen=True)
class Populations:
    """Starts children that hold given contents."""

    stack: ExitStack

    def start(
        self,
        contents: list[int],
        forks: tuple[list[tuple[int, int]], ...] = (),
        plain: tuple[tuple[int, int], ...] = (),
    ) -> Population:
        """Start a new process and its forks.

        :param contents: for each page a seed of random bytes, or minus the byte that fills it
        :param forks: writes of each fork: (place, content)
        :param plain: stretches that KSM must leave alone: (first page, pages)
        """
        running = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stack.enter_context(running)
        self.stack.callback(running.kill)
        assert running.stdin
        assert running.stdout
        print(json.dumps([contents, forks, plain]), file=running.stdin, flush=True)
        pids, at = json.loads(running.stdout.readline())
        return Population(pids, at, running)
