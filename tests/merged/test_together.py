"""Several files of a folder appear together or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gpudedup as gd
from gpudedup.errors import OutputError
from gpudedup.merged.together import together

from .common import write_dump
from .test_damage import everything

NAMES = ["a", "b", "c"]
LETTERS = [1, 2, 0, 1, 3, 0, 4, 2, 5, 1, 6, 0, 7, 3, 3]


def write(folder: Path, *, force: bool = False, last: Callable[[], object] = lambda: None) -> None:
    """Write three files with their names as content; then call ``last``."""
    with together(folder, NAMES, force=force) as files:
        for name in NAMES:
            with files.create(name) as out:
                out.write(name.encode())
            assert force or not (folder / name).exists()
        last()


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() if p.is_file() else "" for p in sorted(folder.iterdir())}


def test_all_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write(folder)
    assert contents(folder) == {"a": "a", "b": "b", "c": "c"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}
    assert {p.stat().st_nlink for p in folder.iterdir()} == {1}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "b").write_text("old")
    (folder / "mine").write_text("mine")
    (folder / "c").unlink()
    write(folder, force=True)
    assert contents(folder) == {"a": "a", "b": "b", "c": "c", "mine": "mine"}


@pytest.mark.parametrize("which", NAMES)
def test_a_file_that_appears_meanwhile(tmp_path: Path, which: str) -> None:
    folder = tmp_path / "f"
    with pytest.raises(OutputError, match=rf"f/{which}: exists already"):
        write(folder, last=lambda: (folder / which).write_text("theirs"))
    assert contents(folder) == {which: "theirs"}


@pytest.mark.parametrize("which", NAMES)
def test_a_folder_that_appears_meanwhile(tmp_path: Path, which: str) -> None:
    """Files that were replaced already are put back."""
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "b").write_text("old")
    (folder / "c").symlink_to("b")
    before = {p.name: os.lstat(p).st_ino for p in folder.iterdir()}

    def appear() -> None:
        (folder / which).unlink(missing_ok=True)
        (folder / which).mkdir()

    with pytest.raises(OutputError, match=rf"f/{which}: not a regular file"):
        write(folder, force=True, last=appear)
    after = {p.name: os.lstat(p).st_ino for p in folder.iterdir() if p.name != which}
    assert after == {name: inode for name, inode in before.items() if name != which}
    assert (folder / which).is_dir()
    if which != "b":
        assert (folder / "b").read_text() == "old"


def test_the_caller_fails(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "f", last=interrupt)
    assert everything(tmp_path) == {}
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "f", force=True, last=interrupt)
    assert contents(tmp_path / "f") == {"a": "old"}


def test_a_file_that_was_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"f/b: No such file"),
        together(tmp_path / "f", NAMES) as files,
        files.create("a") as out,
    ):
        out.write(b"a")
    assert everything(tmp_path) == {}


def test_what_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "c").write_text("old")
    with pytest.raises(OutputError, match="f/c: exists already"):
        write(folder)
    (folder / "b").mkdir()
    with pytest.raises(OutputError, match="f/b: not a regular file"):
        write(folder, force=True)
    with pytest.raises(OutputError, match="c: not a directory"):
        write(folder / "c")
    with pytest.raises(OutputError, match="No such file"):
        write(tmp_path / "none" / "f")
    assert contents(folder) == {"b": "", "c": "old"}


def test_raw_images_appear_together(tmp_path: Path) -> None:
    """Another program makes the last of the files while the first are written."""
    gd.merge_images(write_dump(tmp_path / "d", LETTERS), tmp_path / "m")
    out = tmp_path / "out"

    def meddle(done: int, total: int) -> None:
        (out / "c[3].raw").write_text("theirs")

    with pytest.raises(OutputError, match=r"c\[3\].raw: exists already"):
        gd.restore_raw(tmp_path / "m", out, progress=meddle)
    assert contents(out) == {"c[3].raw": "theirs"}
    (out / "c[3].raw").unlink()
    for name in ("a[1].raw", "b[2].raw.maps"):
        (out / name).write_text("old")

    def block(done: int, total: int) -> None:
        if not (out / "c[3].raw").is_dir():
            (out / "c[3].raw").mkdir()

    with pytest.raises(OutputError, match=r"c\[3\].raw: not a regular file"):
        gd.restore_raw(tmp_path / "m", out, force=True, progress=block)
    assert contents(out) == {"a[1].raw": "old", "b[2].raw.maps": "old", "c[3].raw": ""}


def test_a_terminated_command_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM at any moment while files are written and renamed; it is sent to the real command."""
    owners = write_dump(tmp_path / "d", range(3000))
    gd.merge_images([owners] * 20, tmp_path / "m")
    done = gd.restore_raw(tmp_path / "m", tmp_path / "whole")
    whole = {p.name for p in (tmp_path / "whole").iterdir()}
    assert len(whole) == len(done) + 40
    out = tmp_path / "out"
    command = ["restore", str(tmp_path / "m"), "--raw", "-o", str(out)]
    cut = 0
    for delay in (0, 0.01, 0.03):
        with subprocess.Popen(
            [sys.executable, "-m", "gpudedup", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            while process.poll() is None and not (out.exists() and any(out.iterdir())):
                time.sleep(0.0005)
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate()
        if out.exists():
            assert {p.name for p in out.iterdir()} == whole
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
        else:
            assert (process.returncode, told) == (128 + signal.SIGTERM, b"gpudedup: terminated\n")
            cut += 1
    assert cut
