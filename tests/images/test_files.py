"""Files that give a part at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpudedup.images.files import FileBytes, read_all


def test_what_a_call_leaves_is_read_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(bytes(range(100)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, -(-size // 2), at))
    with (tmp_path / "f").open("rb") as file:
        assert read_all(file.fileno(), 50, 10) == bytes(range(10, 60))
        assert read_all(file.fileno(), 50, 70) == bytes(range(70, 100))
        assert read_all(file.fileno(), 50, 100) == b""
        assert bytes(FileBytes("f", file.fileno(), 100)[3:99]) == bytes(range(3, 99))
