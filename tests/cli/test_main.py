"""Options before the command, ``info``, signals, pipes: what holds for all commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import gpudedup
from gpudedup.cli.common import byte_count

from .conftest import Run

COMMAND = [sys.executable, "-m", "gpudedup"]


def test_help_names_the_commands(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for command in (
        "scan", "capture", "import", "merge", "restore", "verify", "generate", "info",
    ):  # fmt: skip
        assert f"  {command} " in done.out
        assert run(command, "--help").code == 0


def test_version(run: Run) -> None:
    assert run("--version").out == f"gpudedup {gpudedup.__version__}\n"


def test_unknown_option_is_usage(run: Run) -> None:
    assert run("scan", "--colour").code == 2


def test_info_names_engines_and_versions(run: Run) -> None:
    text = run("info").out
    result = json.loads(run("info", "--json").out)
    engines = {engine["name"]: engine for engine in result["engines"]}
    assert engines["cpu"]["usable"]
    assert engines["cpu"]["threads"] == len(os.sched_getaffinity(0))
    assert engines["cuda"]["usable"] or engines["cuda"]["reason"] in text
    for package in ("gpudedup", "python", "numpy", "pyarrow", "numba"):
        assert f"{package} {result['versions'][package]}" in text


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from gpudedup.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'numpy', 'numba', 'pyarrow', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("4GiB", 4 << 30), ("4G", 4 << 30), ("512mb", 512 << 20), ("1.5K", 1536)],
)
def test_sizes(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "G", "4 elephants", "-1", "1.0001", "0x10"])
def test_not_sizes(run: Run, tmp_path: Path, text: str) -> None:
    done = run("generate", "-o", tmp_path / "x", f"--size={text}")
    assert done.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: int, code: int) -> None:
    pages = shutil.disk_usage(tmp_path).free // 2 // 4096
    command = subprocess.Popen(
        [*COMMAND, "generate", "-o", tmp_path / "big.arrow", "--size", str(pages * 4096)],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while largest_open_file(command.pid) <= 1 << 20:
        assert command.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.02)
    command.send_signal(number)
    _, err = command.communicate(timeout=60)
    assert command.returncode == code
    assert len(err.splitlines()) <= 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def largest_open_file(pid: int) -> int:
    """Return the bytes of a process's largest file; an output has no name while it is written."""
    largest = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if "(deleted)" in str(path.readlink()):
                largest = max(largest, path.stat().st_size)
    return largest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_command_line_is_understood(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def signature(*_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("typer.main.get_params_from_function", signature)
    outcome = run("info")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err == ("" if number == signal.SIGINT else "gpudedup: terminated\n")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_something_is_finalized_is_not_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """Python drops what is raised in a finalizer."""

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    def signature(*_: object) -> None:
        Finalized()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.001)
        raise AssertionError("nothing came")

    monkeypatch.setattr("typer.main.get_params_from_function", signature)
    outcome = run("info")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err == ("" if number == signal.SIGINT else "gpudedup: terminated\n")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_reader_that_goes_away_is_told_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "info"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1
