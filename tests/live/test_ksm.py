"""The kernel's own same-page merging as the oracle: what a capture foretells, KSM's counters read.

Children fill mergeable regions, a capture is taken and split into equal pages, and KSM's counters
are computed from it in closed form. Then KSM runs over the same memory, and every counter must be
equal. Nothing here knows what the children wrote but the children.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from gpudedup.engines.base import PageClass, PageStore, Partition
from gpudedup.engines.cpu import CpuEngine
from gpudedup.images.pagemap import Pagemap, hides_frames
from gpudedup.images.process import capture
from gpudedup.images.procfs import read_vmas
from gpudedup.schema import PageFlag

pytestmark = pytest.mark.live

PAGE = os.sysconf("SC_PAGE_SIZE")
KSM = Path("/sys/kernel/mm/ksm")
COUNTERS = (
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "ksm_zero_pages",
    "stable_node_chains",
    "stable_node_dups",
)
SETTINGS = (
    "use_zero_pages",
    "max_page_sharing",
    "smart_scan",
    "sleep_millisecs",
    "pages_to_scan",
    "advisor_mode",
)
"""In the order in which they are restored: an active advisor owns pages_to_scan."""

PATIENCE_S = 60

CHILD = """
import ctypes, json, mmap, os, random, signal, sys
PAGE = mmap.PAGESIZE
contents, forks = json.loads(sys.stdin.readline())
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
untouched = 50
size = (len(contents) + untouched) * PAGE
at = libc.mmap(None, size, 3, 0x22, -1, 0)
assert libc.madvise(at, size, mmap.MADV_NOHUGEPAGE) == 0
assert libc.madvise(at, size, mmap.MADV_MERGEABLE) == 0

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
print(json.dumps(pids), flush=True)
sys.stdin.readline()
"""


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
    """Return a process with mergeable memory, or nothing."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                vmas = read_vmas(int(entry.name), PAGE)
            except OSError:
                continue
            if any("mg" in vma.flags.split() for vma in vmas):
                return f"pid {entry.name}"
    return ""


@pytest.fixture
def ksm() -> Iterator[None]:
    """KSM at rest with nothing merged, and left as it was found."""
    if not os.access(KSM / "run", os.W_OK):
        pytest.skip("needs root and a kernel with KSM")
    missing = [name for name in (*COUNTERS, *SETTINGS) if not (KSM / name).exists()]
    if missing:
        pytest.skip(f"this kernel's KSM has no {', '.join(missing)}")
    if not frames_visible():
        pytest.skip("frame numbers need CAP_SYS_ADMIN")
    if any(read_ksm(name) for name in COUNTERS):
        pytest.skip("KSM has merged pages of others")
    if other := somebody_merges():
        pytest.skip(f"{other} has mergeable memory")
    run = (KSM / "run").read_text().strip()
    before = {name: (KSM / name).read_text().strip() for name in SETTINGS}
    advisor = before["advisor_mode"]
    before["advisor_mode"] = advisor[advisor.index("[") + 1 : advisor.index("]")]
    try:
        write_ksm("run", 2)
        yield
    finally:
        write_ksm("run", 2)
        write_ksm("advisor_mode", "none")
        for name, value in before.items():
            write_ksm(name, value)
        write_ksm("run", run)


def let_ksm_run(cap: int, use_zero_pages: int) -> dict[str, int]:
    """Run full scans until nothing changes any more; return the counters at rest."""
    write_ksm("advisor_mode", "none")
    write_ksm("smart_scan", 0)
    write_ksm("sleep_millisecs", 0)
    # More than there is: ksmd is then stopped between two scans, never within one.
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
class Populations:
    """Starts children that hold given contents."""

    stack: ExitStack

    def start(
        self, contents: list[int], forks: tuple[list[tuple[int, int]], ...] = ()
    ) -> list[int]:
        """Return the pids of a new process and of its forks.

        :param contents: of each page: a seed of random bytes, or minus the byte that fills it
        :param forks: what each fork writes: (place, content)
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
        print(json.dumps([contents, forks]), file=running.stdin, flush=True)
        pids: list[int] = json.loads(running.stdout.readline())
        return pids


@pytest.fixture
def populations() -> Iterator[Populations]:
    with ExitStack() as stack:
        yield Populations(stack)


def look(pids: list[int], path: Path) -> tuple[pa.Table, Partition]:
    """Capture the processes; return the rows of their mergeable memory and their contents."""
    captured = capture(pids, str(path), stop=True)
    assert not captured.losses
    assert not captured.notes
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        mergeable = ["mg" in m["flags"].split() for m in table.column("mapping").to_pylist()]
        table = table.filter(pa.array(mergeable))
    assert not table.column("frame").null_count
    pages = np.frombuffer(b"".join(table.column("content").to_pylist()), np.uint8)
    return table, CpuEngine().partition(PageStore.of_array(pages.reshape(-1, PAGE)))


def foretell(table: pa.Table, found: Partition, cap: int, use_zero_pages: int) -> dict[str, int]:
    """Return what KSM's counters will be.

    KSM counts mappings: those of a content that lies in one frame only stay as they are, one of
    them unshared and the others volatile.
    """
    frames: dict[tuple[int, int], list[int]] = defaultdict(list)
    by_node = not read_ksm("merge_across_nodes")
    kernel_zero = flagged(table, PageFlag.ZERO_PAGE)
    columns = zip(
        found.representative.tolist(),
        table.column("node").to_pylist(),
        table.column("frame").to_pylist(),
        strict=True,
    )
    for row, (content, node, frame) in enumerate(columns):
        if not kernel_zero[row]:
            frames[content, node if by_node else 0].append(frame)
    counters = dict.fromkeys(COUNTERS, 0)
    for (content, _), of_content in frames.items():
        n = len(of_content)
        if use_zero_pages and found.classes[content] == PageClass.ZERO:
            counters["ksm_zero_pages"] += n
        elif len(set(of_content)) == 1:
            counters["pages_unshared"] += 1
            counters["pages_volatile"] += n - 1
        else:
            nodes, left = n // cap + (n % cap >= 2), int(n % cap == 1)
            counters["pages_shared"] += nodes
            counters["pages_sharing"] += n - left - nodes
            counters["pages_unshared"] += left
            counters["stable_node_chains"] += nodes >= 2
            counters["stable_node_dups"] += nodes if nodes >= 2 else 0
    return counters


def flagged(table: pa.Table, flag: PageFlag) -> npt.NDArray[np.bool_]:
    return np.asarray(table.column("flags").to_numpy() & int(flag) != 0)


def check(pids: list[int], directory: Path, cap: int, use_zero_pages: int) -> dict[str, int]:
    """Foretell, let KSM run, compare; then compare what is left of the frames."""
    before, found = look(pids, directory / "before")
    expected = foretell(before, found, cap, use_zero_pages)
    assert let_ksm_run(cap, use_zero_pages) == expected
    after, again = look(pids, directory / "after")
    assert after.column("content").equals(before.column("content"))
    assert np.array_equal(again.representative, found.representative)
    merged, zero = flagged(after, PageFlag.KSM), flagged(after, PageFlag.ZERO_PAGE)
    frame = after.column("frame").to_numpy()
    shared, sharing = expected["pages_shared"], expected["pages_sharing"]
    assert merged.sum() == shared + sharing
    assert len(np.unique(frame[merged])) == shared
    assert len(np.unique(frame[~zero])) == shared + expected["pages_unshared"]
    assert zero.sum() - flagged(before, PageFlag.ZERO_PAGE).sum() == expected["ksm_zero_pages"]
    assert len(np.unique(frame[zero])) == 1
    assert not flagged(before, PageFlag.KSM).any()
    return expected


COPIES = (1,) * 100 + (2,) * 20 + (3, 4, 5, 6, 10, 17, 100, 255, 256, 257, 258, 513, 514)


@pytest.mark.usefixtures("ksm")
@pytest.mark.parametrize("use_zero_pages", [0, 1])
@pytest.mark.parametrize("cap", [256, 17, 2])
def test_counters_of_two_processes(
    tmp_path: Path, populations: Populations, cap: int, use_zero_pages: int
) -> None:
    contents = [seed for seed, copies in enumerate(COPIES, 1) for _ in range(copies)]
    contents += [0] * 300 + [-0xAA] * 40
    random.Random(cap).shuffle(contents)
    half = len(contents) // 2
    pids = populations.start(contents[:half]) + populations.start(contents[half:])
    expected = check(pids, tmp_path, cap, use_zero_pages)
    if cap == 256 and use_zero_pages:
        # The same, written down: 20 pairs, 7 small groups, 255 to 514 copies, the filled pages.
        assert expected == {
            "pages_shared": 20 + 7 + 1 + 1 + 1 + 2 + 2 + 3 + 1,
            "pages_sharing": 20 + 138 + 254 + 255 + 255 + 256 + 510 + 511 + 39,
            "pages_unshared": 100 + 1 + 1,
            "pages_volatile": 0,
            "ksm_zero_pages": 300,
            "stable_node_chains": 3,
            "stable_node_dups": 2 + 2 + 3,
        }


@pytest.mark.usefixtures("ksm")
@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_counters_of_forks(tmp_path: Path, populations: Populations, use_zero_pages: int) -> None:
    """Forked pages are already one frame; KSM counts their mappings all the same."""
    rng = random.Random(7)
    contents = [rng.choice([0, -3, *range(1, 200)]) for _ in range(400)]
    forks = tuple(
        [
            (place, rng.choice([0, 500 + place, *range(1, 200)]))
            for place in rng.sample(range(400), n)
        ]
        for n in (0, 10, 200)
    )
    pids = populations.start(contents, forks)
    pids += populations.start([rng.choice([0, *range(150, 250)]) for _ in range(100)])
    expected = check(pids, tmp_path, 256, use_zero_pages)
    assert expected["pages_volatile"] > 0
