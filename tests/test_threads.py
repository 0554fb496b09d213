"""A system that starts no more threads: one error, which is no RuntimeError, and nothing left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import gpudedup as gd
from gpudedup.errors import ThreadError

from .merged.common import write_dump

CALLS: dict[str, Callable[[Path], object]] = {
    "scan": lambda folder: gd.scan(folder / "a", backend="cpu", threads=3),
    "verify": lambda folder: gd.verify(folder / "m", threads=3),
    "merge": lambda folder: gd.merge_images(folder / "a", folder / "new", backend="cpu", threads=3),
    "restore": lambda folder: gd.restore(folder / "m", folder / "new"),
    "restore raw": lambda folder: gd.restore_raw(folder / "m", folder / "new"),
}


@pytest.mark.parametrize("name", CALLS)
def test_any_thread_that_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_dump(tmp_path / "a", range(300))
    gd.merge_images(tmp_path / "a", tmp_path / "m", backend="cpu")
    before = {path.name for path in tmp_path.iterdir()}
    start, started, most = threading.Thread.start, 0, 0
    running = threading.active_count()

    def start_some(thread: threading.Thread) -> None:
        nonlocal started
        if started == most:
            raise RuntimeError("can't start new thread")
        started += 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    while True:
        started = 0
        try:
            CALLS[name](tmp_path)
        except ThreadError:
            assert {path.name for path in tmp_path.iterdir()} == before
            assert threading.active_count() == running
        else:
            break
        most += 1
    assert most >= 1
