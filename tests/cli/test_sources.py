"""``gpudedup generate``, ``import`` and ``capture``: commands that write dumps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpudedup as gd

from .conftest import Run


def test_generate_prints_what_a_scan_finds(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "g.arrow"
    done = run(
        "generate", "-o", path, "--size", "4MiB", "--zero", 0.3, "--duplicate", 0.3,
        "--group-size", 4, "--page-size", 4096, "--seed", 7,
    )  # fmt: skip
    assert done.code == 0
    assert json.loads(run("scan", path, "--json").out)["totals"] == json.loads(done.out)


def test_generate_raw_with_mixed_groups(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "g.mem"
    groups = ["--group-size", 2, "--group-size", 9]
    done = run(
        "generate", "-o", path, "--size", "1M", "--format", "raw", "--page-size", "1K", *groups
    )
    assert path.stat().st_size == 1 << 20
    scanned = run("scan", path, "--page-size", "1K", "--json")
    assert json.loads(scanned.out)["totals"] == json.loads(done.out)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--size", "4097"], "size 4097: not a multiple of the page size 4096"),
        (["--size", "0"], "pages 0: must be at least 1"),
        (["--size", "1M", "--zero", "0.8"], "more than 1"),
        (["--size", "1M", "--page-size", "1000"], "page size 1000: not a power of two"),
        (["--size", "1M", "--format", "zip"], "format 'zip': not one of arrow, raw"),
    ],
)
def test_generate_usage(run: Run, tmp_path: Path, arguments: list[str], reason: str) -> None:
    done = run("generate", "-o", tmp_path / "x", *arguments)
    assert done.code == 2
    assert reason in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/dev/null", "not a regular file"),
        ("stdout", "is a symbolic link"),
        ("pipe", "not a regular file"),
    ],
)
def test_devices_and_links_are_not_replaced(
    run: Run, tmp_path: Path, target: str, reason: str
) -> None:
    """As root, ``--force -o /dev/stdout`` would take the link from everybody."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / target
    before = path.lstat()
    done = run("generate", "--force", "-o", path, "--size", "1M")
    assert (done.code, done.err) == (1, f"gpudedup: {path}: {reason}\n")
    assert os.path.samestat(path.lstat(), before)


def test_import_makes_one_dump_of_several_images(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "1.arrow", tmp_path / "2.mem"
    recipe = gd.Recipe(pages=100, seed=1)
    gd.generate(recipe, first)
    gd.generate(recipe, second, format="raw")
    both = tmp_path / "both.arrow"
    done = run("import", first, second, "-o", both)
    assert (done.code, done.out) == (0, f"{both}: 200 pages in 2 mappings\n")
    assert gd.scan(both).totals == gd.scan([first, second]).totals


def test_import_counts_what_it_cannot_read(run: Run, tmp_path: Path) -> None:
    raw = tmp_path / "odd.mem"
    raw.write_bytes(b"x" * 5000)
    done = run("import", raw, "-o", tmp_path / "d.arrow")
    assert done.code == 3
    assert done.out.endswith("1 page in 1 mapping; not in it: 1 unreadable\n")


@pytest.fixture
def process() -> Iterator[int]:
    """Yield the pid of a process that lets every process trace it."""
    code = (
        "import ctypes; ctypes.CDLL(None).prctl(0x59616D61, -1)\n"
        "x = bytearray(b'gpudedup' * 100_000); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.kill()


def test_capture_then_scan(run: Run, tmp_path: Path, process: int) -> None:
    path = tmp_path / "p.arrow"
    done = run("capture", "--pid", process, "--stop", "-o", path)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{path}: ")
    result = gd.scan(path)
    fills = [row for row in result.contents.to_pylist() if row["frames"] >= 190]
    assert fills, "800,000 bytes of one word are some 195 pages of one content"
    assert all(owner.endswith(f"[{process}]") for owner in fills[0]["owners"])
    text = run("scan", path).out
    assert "(same-filled)" in text
    assert "gpudedupgpudedup" not in text


def test_capture_of_nobody(run: Run, tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = run("capture", "--pid", gone.pid, "-o", tmp_path / "p.arrow")
    assert done.code == 1
    assert done.err == f"gpudedup: pid {gone.pid}: no such process\n"
    assert not list(tmp_path.iterdir())
