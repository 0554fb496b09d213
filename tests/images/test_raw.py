"""Raw images: holes, tails, and files that are refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from gpudedup.errors import ImageError
from gpudedup.images import raw
from gpudedup.images.raw import open_raw

from .common import open_files


def test_holes_are_absent_and_the_tail_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "guest.mem"
    data = np.random.default_rng(0).integers(0, 256, (3, 4096), dtype=np.uint8)
    with path.open("wb") as file:
        file.write(data[:2].tobytes())
        file.seek(64 * 4096)
        file.write(data[2].tobytes() + b"tail")
    with open_raw(str(path), 4096) as image:
        assert image.absent.unreadable == 1
        assert image.pages + image.absent.holes == 65
        assert "offset 266240" in str(image.losses[0])
        index = np.concatenate([c.index for c in image.columns()])
        pages = np.empty((image.pages, 4096), np.uint8)
        image.read_pages(0, pages)
        for place, expected in ((0, data[0]), (1, data[1]), (64, data[2])):
            assert (pages[np.flatnonzero(index == place)[0]] == expected).all()
        batches = list(image.batches())
        assert sum(len(b) for b in batches) == image.pages
        content = b"".join(page for b in batches for page in b.column("content").to_pylist())
        assert content == pages.tobytes()


def test_every_row_once_for_any_page_size(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for place in (0, 5, 6, 300):
            file.seek(place * 4096)
            file.write(b"x" * 4096)
    for page_size in (512, 4096, 16384, 65536):
        with open_raw(str(path), page_size) as image:
            row = 0
            for extent in image.extents:
                assert extent.row == row
                row += extent.pages
            assert row == image.pages
            assert image.pages + image.absent.holes == 301 * 4096 // page_size


@pytest.mark.parametrize(("name", "reason"), [("no", "No such file"), ("dir", "directory")])
def test_what_is_no_file_is_one_line(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "dir").mkdir()
    with pytest.raises(ImageError, match=reason) as caught:
        open_raw(str(tmp_path / name), 4096)
    assert str(tmp_path / name) in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="offset 0: empty file"):
        open_raw(str(tmp_path / "empty"), 4096)


def test_columns_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "COLUMN_ROWS", 3)
    path = tmp_path / "guest.mem"
    path.write_bytes(bytes(8 * 4096))
    with open_raw(str(path), 4096) as image:
        assert [(c.row, c.index.tolist()) for c in image.columns()] == [
            (0, [0, 1, 2]),
            (3, [3, 4, 5]),
            (6, [6, 7]),
        ]


def test_a_file_system_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "guest.mem"
    path.write_bytes(bytes(4096))
    before = open_files()

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "lseek", fail)
    with pytest.raises(ImageError) as caught:
        open_raw(str(path), 4096)
    assert str(caught.value) == f"{path}: {os.strerror(errno.EIO)}"
    assert open_files() == before
