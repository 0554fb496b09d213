"""``replay`` and ``trace`` on the command line: what they print, write, refuse."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from gpudedup.errors import UnsupportedHereError
from gpudedup.processes import write_watch as written
from gpudedup.schema import SAMPLES
from gpudedup.traces.mixes import MIXES

from ..traces.common import event, trace_of, write_image, write_trace
from .conftest import Run

MAPPINGS = [("anon", [1, 1, 1, 2]), ("file", [3, 3])]
EVENTS = [event("write", 0, 0, 2, seed=4), event("read", 1), event("file_write", 1)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "image.arrow", MAPPINGS)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "trace.arrow", trace_of(EVENTS))


def test_text(run: Run, image: Path, trace: Path) -> None:
    done = run("replay", image, trace, "--verify")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"{trace}: 3 events on {image}, pages of 512 B in 2 mappings"
    assert lines[1] == (
        "Merged before the first event: 2 of 4 pages went to the frame of an equal one, which freed"
        " 1 KiB."
    )
    assert lines[2] == (
        "2 pages broke what was shared (50.0 % of the pages touched); 1 KiB were copied."
    )
    cells = {cells[0]: cells for line in lines if (cells := re.split(r"  +", line))}
    assert cells["before the first event"][1:] == ["2 KiB", "3 KiB", "33.3 %"]
    assert cells["after the last event"][1:] == ["3 KiB", "3 KiB", "0.0 %"]
    assert cells["cause"][1:-1] == ["events", "pages", "breaks", "copied"]
    assert cells["write"][1:-1] == ["1", "2", "2", "1 KiB"]
    assert cells["read"][1:-1] == ["1", "1", "0", "0 B"]
    assert any(line.startswith("Verified: the same events on memory") for line in lines)
    assert re.fullmatch(r"Contents at the end: [0-9a-f]{32}", lines[-1])
    unmerged = run("replay", image, trace, "--no-merge").out
    assert "Not merged before the first event." in unmerged
    assert "Verified" not in unmerged
    assert unmerged.splitlines()[-1] == lines[-1]


def test_json_and_policy(run: Run, image: Path, trace: Path) -> None:
    found = json.loads(run("replay", image, trace, "--json", "--samples", 3).out)
    assert found["schema_version"] == 1
    assert found["trace"] == {"path": str(trace), "events": 3}
    assert [row["event"] for row in found["samples"]] == [0, 1, 2, 3]
    assert found["causes"][1]["operation"] == "write"
    assert found["totals"]["breaks"] == found["causes"][1]["breaks"] == 2
    assert found["merged"]["frames_freed"] == 2
    assert found["verified"] is False
    more = json.loads(
        run("replay", image, trace, "--json", "--kinds", "anon,file", "--max-page-sharing", 2).out
    )
    # Of three equal pages two share a frame, and so do those of the file.
    assert more["merged"]["frames_freed"] == 2
    assert more["causes"][2]["breaks"] == 1
    assert run("replay", image, trace, "--kinds", "x").code == 2
    assert run("replay", image, trace, "--nodes", 65).code == 2
    assert run("replay", image, trace, "--samples", 0).code == 2


def test_samples_are_written_whole(run: Run, image: Path, trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "samples.arrow"
    assert run("replay", image, trace, "-o", path).code == 0
    with pa.memory_map(str(path)) as source:
        assert pa.ipc.open_file(source).read_all().schema.equals(SAMPLES)
    assert path.stat().st_mode & 0o777 == 0o600
    again = run("replay", image, trace, "-o", path)
    assert (again.code, again.out) == (1, "")
    assert again.err == f"gpudedup: {path}: exists already (--force replaces it)\n"
    assert run("replay", image, trace, "-o", path, "--force").code == 0
    assert run("replay", image, trace, "-o", tmp_path / "samples.parquet").code == 0
    assert run("replay", image, trace, "-o", tmp_path / "samples.csv").code == 2


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_plots(run: Run, image: Path, trace: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    path = tmp_path / f"plot.{suffix}"
    assert run("replay", image, trace, "--plot", path).code == 0
    content = path.read_bytes()
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "html": b"<!doctype html>"}
    assert content.startswith(begins[suffix])
    assert path.stat().st_mode & 0o777 == 0o600
    if suffix == "html":
        assert b"<svg " in content
        assert b"broke what was shared" in content
    assert run("replay", image, trace, "--plot", path).code == 1


def test_plots_that_cannot_be(
    run: Run, image: Path, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("replay", image, trace, "--plot", tmp_path / "plot.pdf").code == 2
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    path = tmp_path / "plot.svg"
    done = run("replay", image, trace, "--plot", path)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"gpudedup: {path}: a plot needs matplotlib: pip install 'gpudedup[plot]'\n"
    )
    assert not path.exists()


def test_bad_traces_are_one_line(run: Run, image: Path, tmp_path: Path) -> None:
    path = write_trace(tmp_path / "bad.arrow", trace_of([*EVENTS, event("write", 7)]))
    done = run("replay", image, path, "-o", tmp_path / "samples.arrow")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"gpudedup: {path}: row 3: write: no mapping 7, there are 2\n"
    assert not (tmp_path / "samples.arrow").exists()
    done = run("replay", image, image)
    assert done.err == f"gpudedup: {image}: not a trace: no column operation\n"
    assert run("replay", tmp_path / "none", path).code == 1
    assert run("replay", image).code == 2


def test_generate_and_info(run: Run, image: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.arrow"
    made = ("trace", "generate", "-o", path, "--image", image, "--mix")
    done = run(*made, "write-heavy", "--events", 1000, "--seed", 3)
    assert done.code == 0
    assert done.out.startswith(f"{path}: 1,000 events, 1,000 pages of 512 B\nFrom: mix write-heavy")
    assert run("trace", "info", path).out == done.out
    found = json.loads(run("trace", "info", path, "--json").out)
    assert (found["events"], found["mappings"], found["source"]) == (
        1000, 1, "mix write-heavy, seed 3",
    )  # fmt: skip
    assert sum(events for _, events, _ in found["operations"]) == 1000
    assert run("replay", image, path, "--verify").code == 0
    assert run(*made, "write-heavy", "--events", 1000).code == 1
    wrong = run(*made, "x", "--events", 1, "--force")
    assert (wrong.code, wrong.out) == (2, "")
    assert "mix 'x': not one of write-heavy, " in wrong.err
    told = " ".join(run("trace", "generate", "--help").out.split())
    for name, mix in MIXES.items():
        assert f"{name}, on " in told
        assert mix.about in told


def test_record_where_it_does_not_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise UnsupportedHereError("no")

    monkeypatch.setattr(written, "keeps_soft_dirty", lambda: False)
    monkeypatch.setattr(written, "borrowed_userfaultfd", refuse)
    path = tmp_path / "t.arrow"
    done = run("trace", "record", "--pid", os.getppid(), "-o", path)
    assert (done.code, done.out) == (4, "")
    assert done.err == (
        f"gpudedup: pid {os.getppid()}: its writes cannot be watched: write-protect: no;"
        " soft-dirty: this kernel does not keep these bits\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert run("trace", "record", "--pid", os.getpid(), "-o", path).code == 2
