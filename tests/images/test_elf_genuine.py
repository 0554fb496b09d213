"""Genuine ELF cores of gdb, the kernel and QEMU; ``fixtures/make_cores.sh`` made them.

Expected numbers are readelf's; expected bytes are those that the sources in that script write.
"""

from __future__ import annotations

import lzma
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gpudedup.images.elf import ElfImage, open_elf

from .common import all_pages
from .cores import addresses

PAGE = 4096
FIXTURES = Path(__file__).parent / "fixtures"


@contextmanager
def genuine(tmp_path: Path, name: str) -> Iterator[tuple[ElfImage, bytes]]:
    data = lzma.decompress((FIXTURES / f"{name}.core.xz").read_bytes())
    path = tmp_path / f"{name}.core"
    path.write_bytes(data)
    with open_elf(str(path), PAGE) as image:
        yield image, data


PAGED = [
    ("file", "/tmp/paged", 0x400000, "rd", 0x238, 1),
    ("file", "/tmp/paged", 0x403000, "rd wr", 0x1238, 1),
    ("anon", "", 0x10000000, "rd wr", 0x2238, 8),
    ("shmem", "/dev/zero (deleted)", 0x20000000, "rd wr", 0xA238, 2),
    ("file", "/tmp/paged", 0x30000000, "rd", 0xC238, 1),
    ("kernel", "[vdso]", 0x7FFFF7FFD000, "rd ex", 0xD238, 2),
    ("anon", "[stack]", 0x7FFFFFFDE000, "rd wr", 0xF238, 33),
    ("kernel", "[vsyscall]", 0xFFFFFFFFFF600000, "rd ex", 0x30238, 1),
]

PAGED_BY_KERNEL = [
    ("file", "/tmp/paged", 0x400000, "rd", 0x2000, 1),
    ("file", "/tmp/paged", 0x401000, "rd ex", 0x3000, 0),
    ("file", "/tmp/paged", 0x402000, "rd", 0x3000, 0),
    ("file", "/tmp/paged", 0x403000, "rd wr", 0x3000, 1),
    ("anon", "", 0x10000000, "rd wr", 0x4000, 8),
    ("shmem", "/dev/zero (deleted)", 0x20000000, "rd wr", 0xC000, 2),
    ("file", "/tmp/paged", 0x30000000, "rd", 0xE000, 1),
    ("kernel", "[vvar]", 0x7FFFF7FF7000, "rd", 0xF000, 4),
    ("kernel", "[vvar]", 0x7FFFF7FFB000, "rd", 0x13000, 2),
    ("kernel", "[vdso]", 0x7FFFF7FFD000, "rd ex", 0x15000, 2),
    ("anon", "[stack]", 0x7FFFFFFDE000, "rd wr", 0x17000, 33),
    ("kernel", "[vsyscall]", 0xFFFFFFFFFF600000, "ex", 0x38000, 1),
]


@pytest.mark.parametrize(
    ("name", "expected", "excluded"), [("gcore", PAGED, 0), ("kernel", PAGED_BY_KERNEL, 2)]
)
def test_genuine_process_core(
    tmp_path: Path,
    name: str,
    expected: list[tuple[str, str, int, str, int, int]],
    excluded: int,
) -> None:
    with genuine(tmp_path, name) as (image, data):
        found = [(m.kind, m.name, m.start, m.flags) for m in image.mappings]
        assert found == [e[:4] for e in expected]
        assert len({m.owner for m in image.mappings}) == 1
        assert image.mappings[0].owner.startswith("paged[")
        assert image.mappings[0].domain == "uid:0"
        assert [(e.offset, e.pages) for e in image.extents] == [e[4:] for e in expected if e[5]]
        assert image.absent.as_dict() == {"holes": 0, "excluded": excluded, "unreadable": 0}
        at = dict(zip(addresses(image), all_pages(image), strict=True))
        for n in range(8):
            assert (at[0x10000000 + n * PAGE] == (0 if n == 5 else n + 1)).all()
        for n in range(2):
            assert (at[0x20000000 + n * PAGE] == 0x51 + n).all()
            assert (at[0x7FFFF7FFD000 + n * PAGE] == 0x61 + n).all()
        assert (at[0x400000] == at[0x30000000]).all()
        assert at[0x400000][:4].tobytes() == b"\x7fELF"
        assert all_pages(image).tobytes() == b"".join(
            data[e[4] : e[4] + e[5] * PAGE] for e in expected
        )


@pytest.mark.parametrize(
    ("name", "expected", "excluded"),
    [
        (
            "qemu",
            [(0, 0x4D0, 240), (0xF0000, 0xF04D0, 16), (0xFFFF0000, 0x1004D0, 16)],
            0,
        ),
        ("qemu-paging", [(0, 0x498, 240), (0, 0x498, 240)], 32),
    ],
)
def test_genuine_machine_core(
    tmp_path: Path, name: str, expected: list[tuple[int, int, int]], excluded: int
) -> None:
    with genuine(tmp_path, name) as (image, _):
        assert {(m.owner, m.kind) for m in image.mappings} == {(name, "guest")}
        assert [m.start for m in image.mappings] == [e[0] for e in expected]
        assert [(e.offset, e.pages) for e in image.extents] == [e[1:] for e in expected]
        assert image.absent.as_dict() == {"holes": 0, "excluded": excluded, "unreadable": 0}
        pages = all_pages(image)
        frame = np.concatenate([c.frame for c in image.columns() if c.frame is not None])
        assert [f * PAGE for f in frame.tolist()] == addresses(image)
        for number in range(1, 16):
            held = pages[np.flatnonzero(frame == 0xF + number)]
            assert len(held) == (2 if name == "qemu-paging" else 1)
            assert (held == number).all()
        table = pages[np.flatnonzero(frame == 4)[0]].view("<u8")
        assert ((table[:256] & ~np.uint64(0xFFF)) == np.arange(256) * PAGE).all()


def gcore(pid: int, path: Path) -> None:
    """Make a core as the script gcore does, without libthread_db, which writes to the process."""
    commands = ["set pagination off", f"generate-core-file {path}", "detach"]
    made = subprocess.run(
        ["gdb", "--nx", "--batch", "-iex", "set auto-load libthread-db off", "-p", str(pid)]
        + [word for command in commands for word in ("-ex", command)],
        env={"PATH": os.environ["PATH"], "DEBUGINFOD_URLS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if not path.exists():
        pytest.skip(f"gdb may not trace here: {made.stderr.decode(errors='replace')[-300:]}")


@pytest.mark.skipif(shutil.which("gcore") is None, reason="needs gcore, which comes with gdb")
def test_gcore_of_a_live_process(tmp_path: Path) -> None:
    script = (
        "import mmap, os, time; m = mmap.mmap(-1, 1 << 20); m.write(os.urandom(1 << 19));"
        "print(flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        # Stopped before gdb attaches, which ends the sleep: the interpreter would run on.
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        path = tmp_path / "live.core"
        gcore(child.pid, path)
        maps = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        with (
            open_elf(str(path), PAGE) as image,
            Path(f"/proc/{child.pid}/mem").open("rb", buffering=0) as memory,
        ):
            assert image.mappings[0].owner.endswith(f"[{child.pid}]")
            compare_with_live(image, memory.fileno(), maps)
    finally:
        child.kill()
        child.communicate()


def compare_with_live(image: ElfImage, memory: int, maps: list[str]) -> None:
    """Compare every page with the process's own, and every writable mapping with its maps."""
    place = addresses(image)
    pages = all_pages(image)
    compared = 0
    for address, page in zip(place, pages, strict=True):
        if address >= 1 << 63:  # [vsyscall] lies above what /proc/PID/mem can seek to
            continue
        assert os.pread(memory, PAGE, address) == page.tobytes(), hex(address)
        compared += 1
    assert compared > 500
    known = {m.start: m for m in image.mappings}
    held = set(place)
    for line in maps:
        span, protection, _, _, inode, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        if not protection.startswith("rw"):
            continue
        assert held.issuperset(range(start, end, PAGE)), line
        mapping = known[start]
        assert mapping.flags == "rd wr"
        if inode != "0":
            assert mapping.name == name[0]
            assert mapping.kind in ("file", "shmem")
        elif name == ["[stack]"]:
            assert mapping.name == "[stack]"
        else:
            assert (mapping.kind, mapping.name) == ("anon", "")
