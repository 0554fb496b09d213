"""``gpudedup bench``: text, JSON, files, and what it says when it cannot measure."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gpudedup.errors import UnsupportedHereError, WrongResultError
from gpudedup.measuring import benchmark, host

from .conftest import Run

SMALL = ("bench", "--size", "1M", "--rounds", "2", "--threads", "1")
NUMBER = (int, float)
SPREAD = {"median": NUMBER, "lowest": NUMBER, "highest": NUMBER}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise UnsupportedHereError("there is no NVIDIA driver")

    monkeypatch.setattr(benchmark, "_open", none)


def check(value: Any, schema: Any) -> None:
    """Compare JSON with a schema: a type, exact keys, or a list of one schema."""
    if isinstance(schema, dict):
        assert list(value) == list(schema)
        for key, each in schema.items():
            check(value[key], each)
    elif isinstance(schema, list):
        assert value
        for each in value:
            check(each, schema[0])
    else:
        assert isinstance(value, schema), value


LINE = {
    "name": str, "unit": str, "amount": int, "seconds": [float], "ratios": dict, "rate": SPREAD,
}  # fmt: skip
RECORD = {
    "schema_version": int,
    "machine": {
        "cpu": str, "cores": int, "memory_gib": float, "kernel": str, "gpu": type(None),
    },
    "options": {"size": int, "rounds": int, "threads": int, "page_size": int},
    "sections": [{"part": str, "what": str, "lines": [LINE]}],
    "not_measured": [{"what": str, "reason": str}],
    "versions": dict,
}  # fmt: skip


def test_json(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    done = run(*SMALL, "--json", "-o", target)
    assert (done.code, done.err) == (0, "")
    record = json.loads(done.out)
    check(record, RECORD)
    assert record == json.loads(target.read_text())
    assert target.stat().st_mode & 0o777 == 0o600
    assert record["options"] == {"size": 1 << 20, "rounds": 2, "threads": 1, "page_size": 4096}
    assert [each["part"] for each in record["sections"]] == ["cpu"] * 2 + ["manager"] * 3
    assert record["not_measured"] == [{"what": "GPU", "reason": "there is no NVIDIA driver"}]
    scan = record["sections"][0]["lines"][-1]
    check(list(scan["ratios"].values()), [SPREAD])
    # From the seconds, as the file has them.
    read = record["sections"][0]["lines"][0]
    ratios = [a / b for a, b in zip(read["seconds"], scan["seconds"], strict=True)]
    assert scan["ratios"]["read"]["lowest"] == pytest.approx(min(ratios))
    assert str(tmp_path) not in done.out


def test_text_fits_a_terminal(run: Run) -> None:
    done = run(*SMALL)
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 90
    assert done.out.splitlines()[-1] == "Not measured: GPU: there is no NVIDIA driver"
    for title in (
        "CPU: scan of random; 1 MiB",
        "CPU: scan of mix; 1 MiB",
        "Memory manager: merging of mix; 256 pages",
    ):
        assert f"\n{title}\n" in done.out


def test_one_part(run: Run) -> None:
    done = run(*SMALL, "--cpu")
    assert (done.code, done.out.splitlines()[-1]) == (0, "Not measured: GPU: not asked for")


@pytest.mark.parametrize("parts", [["--gpu"], ["--cpu", "--gpu"]])
def test_a_gpu_that_is_asked_for_is_needed(run: Run, parts: list[str], tmp_path: Path) -> None:
    done = run(*SMALL, *parts, "-o", tmp_path / "r.json")
    assert (done.code, done.out) == (4, "")
    assert done.err == "gpudedup: no GPU to measure: there is no NVIDIA driver\n"
    assert not list(tmp_path.iterdir())


def test_a_wrong_result_ends_with_code_1(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(*_: object) -> None:
        raise WrongResultError("scan of random on the CPU: wrong")

    monkeypatch.setattr(host.HostWork, "check", wrong)
    done = run(*SMALL, "-o", tmp_path / "r.json")
    assert (done.code, done.out) == (1, "")
    assert done.err == "gpudedup: scan of random on the CPU: wrong\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--size", "1P"], "size 1125899906842624: takes 2251799813685248 bytes, "),
        (["--size", "5000"], "size 5000: must be a multiple of 4096, at least 1048576"),
        (["--rounds", "0"], "rounds 0: not from 1 to 10000"),
        (["--threads", "0"], "threads 0: must be at least 1"),
        (["-o", "result.arrow"], "result.arrow: a result is named *.json"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], reason: str) -> None:
    done = run("bench", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"gpudedup: {reason}")
    assert done.err.count("\n") == 1


def test_a_file_that_is_there_costs_no_work(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    target.write_text("mine")
    done = run("bench", "-o", target)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"gpudedup: {target}: exists already (--force replaces it)\n"
    assert target.read_text() == "mine"
    assert run(*SMALL, "--cpu", "-o", target, "--force").code == 0
    assert json.loads(target.read_text())["schema_version"] == 1


def test_other_commands_do_not_import_it() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['gpudedup', 'info']\n"
        "from gpudedup.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('gpudedup.measuring')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_ctrl_c(tmp_path: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "gpudedup", "bench", "--rounds", "10000", "-o", tmp_path / "r.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    files = Path(f"/proc/{command.pid}/fd")
    deadline = time.monotonic() + 60
    # The output has no name while it is measured.
    while not any(_leads_to(file, tmp_path) for file in files.iterdir()):
        assert command.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it does not begin"
        time.sleep(0.02)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=120)
    assert (command.returncode, out) == (130, "")
    assert len(err.splitlines()) <= 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def _leads_to(file: Path, folder: Path) -> bool:
    with suppress(FileNotFoundError):
        return str(folder) in str(file.readlink())
    return False
