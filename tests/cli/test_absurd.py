"""Absurd numbers and hostile names: one clear line, the right code, nothing raw on the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..traces.common import event, trace_of, write_image, write_trace
from .conftest import Run

MANY = "9" * 19


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "image.arrow", [("anon", [1, 1, 2])])


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", "IMAGE", "--threads", MANY),
        ("scan", "IMAGE", "--threads", "1000000000"),
        ("merge", "IMAGE", "-o", "OUT", "--threads", MANY),
        ("generate", "-o", "OUT", "--size", f"{MANY}"),
        ("generate", "-o", "OUT", "--size", f"{MANY}E"),
        ("generate", "-o", "OUT", "--size", "8000P"),
    ],
    ids=" ".join,
)
def test_a_number_that_is_absurd(
    run: Run, tmp_path: Path, image: Path, arguments: tuple[str, ...]
) -> None:
    given = {"IMAGE": str(image), "OUT": str(tmp_path / "out")}
    done = run(*(given.get(word, word) for word in arguments))
    assert done.code == 2
    assert done.out == ""
    last = done.err.rstrip("\n").rsplit("\n", 1)[-1]
    assert any(char.isdigit() for char in last)
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_more_samples_than_events(run: Run, tmp_path: Path, image: Path) -> None:
    trace = write_trace(tmp_path / "trace", trace_of([event("write"), event("read", 0, 1)]))
    done = run("replay", image, trace, "--samples", MANY)
    assert (done.code, done.err) == (0, "")


def test_names_on_stderr(run: Run, tmp_path: Path) -> None:
    """An escape sequence in the name of a file must not reach the terminal."""
    bad = tmp_path / "a\x1b]0;owned\x07\x1b[31m\u202eb"
    for exists in (False, True):
        if exists:
            bad.write_bytes(b"ARROW1\0\0" + bytes(100))
        done = run("scan", bad)
        assert done.code == 1
        assert done.err.startswith("gpudedup: ")
        assert done.err.endswith("\n")
        assert done.err[:-1].isprintable()
        done = run("verify", bad)
        assert done.err[:-1].isprintable()
