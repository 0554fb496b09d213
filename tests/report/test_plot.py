"""A replay as a picture: what is drawn, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpudedup.errors import OutputError, UsageError
from gpudedup.report.plot import SUFFIXES, draw, plot_file
from gpudedup.report.replay import replayed
from gpudedup.traces.replay import Replay

from .common import NOISE, replay

MIB = 1 << 20

BEGINS = {".svg": b"<?xml", ".png": b"\x89PNG", ".html": b"<!doctype html>"}

SAMPLES: list[dict[str, Any]] = [
    {"event": 0, "bytes": 2 * MIB, "unshared_bytes": 8 * MIB},
    {"event": 50, "bytes": 3 * MIB, "unshared_bytes": 8 * MIB, "breaks": 200, "fills": 1},
    {"event": 100, "bytes": 5 * MIB, "unshared_bytes": 9 * MIB, "breaks": 512, "fills": 1},
]


def timed(*times: int | None) -> list[dict[str, Any]]:
    return [row | {"time_ns": t} for row, t in zip(SAMPLES, times, strict=True)]


@pytest.fixture
def matplotlib() -> Any:
    return pytest.importorskip("matplotlib", reason="the extra plot is not installed")


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
    }


@pytest.mark.usefixtures("matplotlib")
def test_memory_above_and_what_happened_below() -> None:
    figure = draw(replay(samples=SAMPLES, trace="/somewhere/t.arrow", image="/else/i.core"))
    memory, events = figure.axes
    assert lines(memory) == {
        "if not shared": ([0, 50, 100], [8, 8, 9]),
        "in use": ([0, 50, 100], [2, 3, 5]),
    }
    assert lines(events) == {
        "breaks": ([0, 50, 100], [0, 200, 512]),
        "fills": ([0, 50, 100], [0, 1, 1]),
    }
    assert (memory.get_title(), memory.get_ylabel()) == ("t.arrow on i.core", "memory, MiB")
    assert (events.get_xlabel(), events.get_ylabel()) == ("events", "pages or entries so far")
    assert [axes.get_ylim()[0] for axes in (memory, events)] == [0, 0]
    assert events.yaxis.get_major_formatter()(12345.0) == "12,345"
    told = [text.get_text() for text in memory.get_legend().get_texts()]
    assert told == ["saved by sharing", "if not shared", "in use"]


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(
    ("times", "x", "label"),
    [
        ((None, 10**9, 3 * 10**9), [0, 0, 2], "seconds of the trace"),
        ((5, 10**9, 10**9 + 1), [0, 0, 1e-9], "seconds of the trace"),
        ((None, None, 3 * 10**9), [0, 50, 100], "events"),
        ((None, 10**9, None), [0, 50, 100], "events"),
        ((0, 7, 7), [0, 50, 100], "events"),
        ((0, 7, 6), [0, 50, 100], "events"),
    ],
)
def test_time_is_the_traces_own_if_it_tells_it(
    times: tuple[int | None, ...], x: list[float], label: str
) -> None:
    memory, events = draw(replay(samples=timed(*times))).axes
    assert events.get_xlabel() == label
    # Events are counted; seconds may be fractions.
    assert (events.xaxis.get_major_formatter()(12345.0) == "12,345") == (label == "events")
    for axes in (memory, events):
        assert all(found == x for found, _ in lines(axes).values())


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(
    ("most", "shown", "unit"),
    [
        (0, 0, "B"),
        (1023, 1023, "B"),
        (1024, 1, "KiB"),
        (3 << 19, 1.5, "MiB"),
        ((1 << 30) - 1, (2**30 - 1) / 2**20, "MiB"),
        (5 << 40, 5 << 10, "GiB"),
    ],
)
def test_memory_is_told_in_a_unit_that_suits_it(most: int, shown: float, unit: str) -> None:
    memory, events = draw(replay(samples=[{"unshared_bytes": most}, {}])).axes
    assert memory.get_ylabel() == f"memory, {unit}"
    assert lines(memory)["if not shared"][1] == [shown, 0]
    assert (lines(events), events.get_legend()) == ({}, None)


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_appears_whole(tmp_path: Path, suffix: str) -> None:
    """Also of a replay of nothing, and of names that no terminal should see."""
    path = tmp_path / f"p{suffix}"
    for samples, name in ((SAMPLES, "t.arrow"), (SAMPLES[:1], f"t{NOISE}"), ([{}], "-->")):
        with plot_file(path, force=path.exists()) as write:
            before = path.read_bytes() if path.exists() else b""
            write(replay(samples=samples, trace=name))
            assert (path.read_bytes() if path.exists() else b"") == before
        content = path.read_bytes()
        assert content.startswith(BEGINS[suffix])
        assert content != before
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    def write_and_fail(write: Callable[[Replay], None]) -> None:
        write(replay())
        raise ZeroDivisionError

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / f"p{suffix}"
    with pytest.raises(ZeroDivisionError), plot_file(path) as write:
        write_and_fail(write)
    assert list(tmp_path.iterdir()) == []
    path.write_text("first")
    with pytest.raises(OutputError, match="exists already"), plot_file(path):
        raise AssertionError("the work")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OutputError) as raised, plot_file(path, force=True) as write:
        write(replay())
    assert str(raised.value) == f"{path}: No space left on device"
    assert [found.read_text() for found in tmp_path.iterdir()] == ["first"]


@pytest.mark.usefixtures("matplotlib")
def test_a_page_has_the_report_beside_the_picture(tmp_path: Path) -> None:
    """Names are text in it, never tags."""
    name = "<script>&'\".arrow"
    done = replay(samples=SAMPLES, trace=f"/a/{name}", image="<b>", devices=("<i>",))
    with plot_file(path := tmp_path / "p.html") as write:
        write(done)
    page = path.read_text()
    escaped = "&lt;script&gt;&amp;&#x27;&quot;.arrow"
    assert f"<title>Replay of /a/{escaped}</title>" in page
    assert f"<h1>Replay of /a/{escaped}</h1>" in page
    assert not any(tag in page for tag in ("<script", "<b>", "<i>", "<?xml", "<!DOCTYPE svg"))
    assert page.count("<svg ") == page.count("</svg>") == page.count("</html>") == 1
    report = page[page.index("<pre>") + 5 : page.index("</pre>")]
    for entity, character in (("lt", "<"), ("gt", ">"), ("#x27", "'"), ("quot", '"'), ("amp", "&")):
        report = report.replace(f"&{entity};", character)
    assert report == replayed(done)


@pytest.mark.parametrize("name", ["p.pdf", "p", "p.SVG", "svg"])
def test_a_name_says_the_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as raised, plot_file(tmp_path / name):
        pass
    assert str(raised.value) == f"{tmp_path / name}: a plot is named *.svg or *.png or *.html"


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the work whose result it would show."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(OutputError) as raised, plot_file(tmp_path / "p.svg"):
        raise AssertionError("the work")
    hint = "a plot needs matplotlib: pip install 'gpudedup[plot]'"
    assert str(raised.value) == f"{tmp_path / 'p.svg'}: {hint}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("matplotlib")
@pytest.mark.parametrize(
    "name",
    [
        "$x_$",
        "\u65e5.arrow",
        "a\\frac b_^{",
    ],
)
def test_any_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    with plot_file(tmp_path / "p.svg") as write:
        write(replay(trace=name))


@pytest.mark.usefixtures("matplotlib")
def test_a_page_is_utf8_wherever_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "text_encoding", lambda encoding, level=2: encoding or "ascii")
    with plot_file(path := tmp_path / "p.html") as write:
        write(replay(trace="\xfc.arrow"))
    assert "Replay of \xfc.arrow" in path.read_text("utf-8")
