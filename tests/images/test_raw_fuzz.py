"""Raw images of any shape: every byte written is in a row, and all other bytes are zeros."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpudedup.errors import ImageError
from gpudedup.images.raw import RawImage, open_raw

from .common import holds_together, joined

UNIT = 512
MOST = 1 << 21

STRETCHES = st.lists(st.tuples(st.integers(0, MOST // UNIT), st.integers(1, 300)), max_size=6)
"""Stretches (first, count) to write, in units of :data:`UNIT`: blocks between them are holes."""

PAGE_SIZES = st.sampled_from([512, 1024, 4096, 16384, 65536, 1 << 20, 2 << 20])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "a.mem"


def write(path: Path, stretches: list[tuple[int, int]], size: int) -> None:
    """Make a file of ``size`` bytes with holes; written bytes are never zero."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        for first, count in stretches:
            file.seek(first * UNIT)
            file.write(bytes([first % 255 + 1]) * count * UNIT)
        file.truncate(size)


@given(stretches=STRETCHES, size=st.integers(1, MOST), page_size=PAGE_SIZES)
@example(stretches=[], size=1 << 20, page_size=4096)
@example(stretches=[(0, 1)], size=1, page_size=512)
@example(stretches=[(8, 8), (40, 8)], size=30000, page_size=65536)
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_and_nothing_invented(
    scratch: Path, stretches: list[tuple[int, int]], size: int, page_size: int
) -> None:
    write(scratch, stretches, size)
    whole = size // page_size
    data = np.frombuffer(scratch.read_bytes()[: whole * page_size], np.uint8)
    with open_raw(str(scratch), page_size) as image:
        holds_together(image, size)
        assert image.pages + image.absent.holes == whole
        assert image.absent.unreadable == len(image.losses) == (size % page_size > 0)
        columns = rows_of(image)
        found = np.zeros((whole, page_size), np.uint8)
        for row, index in enumerate(columns):
            image.read_pages(row, found[index : index + 1])
    # Pages without a row were never written: they read as zeros.
    assert found.tobytes() == data.tobytes()
    assert sorted(set(columns)) == columns


def rows_of(image: RawImage) -> list[int]:
    if not image.pages:
        return []
    columns = joined(image)
    assert columns.frame is not None
    assert (columns.frame == columns.index).all()
    return [int(index) for index in columns.index]


@given(
    size=st.integers(1, 1 << 18),
    left=st.integers(0, 1 << 18),
    page_size=st.sampled_from([512, 4096]),
)
@settings(max_examples=100, deadline=None)
def test_a_file_that_becomes_shorter(scratch: Path, size: int, left: int, page_size: int) -> None:
    write(scratch, [(0, size // UNIT + 1)], size)
    with open_raw(str(scratch), page_size) as image:
        os.truncate(scratch, min(left, size))
        out = np.empty((1, page_size), np.uint8)
        for row in range(image.pages):
            if (row + 1) * page_size <= left:
                image.read_pages(row, out)
                assert (out == 1).all()
            else:
                with pytest.raises(ImageError, match="became shorter") as caught:
                    image.read_pages(row, out)
                assert caught.value.offset == max(min(left, size), row * page_size)
