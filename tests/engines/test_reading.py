"""Rows in any order, from files and from memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gpudedup.engines.base import HOST_MEMORY, PageSource
from gpudedup.engines.reading import gather


@pytest.mark.parametrize("page_size", [512, 4096])
def test_any_rows(tmp_path: Path, page_size: int) -> None:
    pages = np.random.default_rng(0).integers(0, 256, (60, page_size), dtype=np.uint8)
    (tmp_path / "f").write_bytes(b"head" + pages[:40].tobytes())
    with (tmp_path / "f").open("rb") as file:
        source = PageSource(
            page_size,
            np.array([0, 10, 40, 60], np.int64),
            np.array([file.fileno(), file.fileno(), HOST_MEMORY], np.int32),
            np.array([4, 4 + 10 * page_size, pages[40:].ctypes.data], np.uint64),
            keep=(pages,),
        )
        rng = np.random.default_rng(1)
        for rows in (
            np.arange(60),
            np.arange(59, -1, -1),
            np.array([9, 10, 11, 39, 40, 41, 3, 3, 3, 4, 59]),
            rng.integers(0, 60, 500),
            np.empty(0, np.int64),
        ):
            out = np.zeros((len(rows), page_size), np.uint8)
            assert gather(source, rows, out) == len(rows)
            assert (out == pages[rows]).all()
        # The file ends in the middle of row 20.
        os.truncate(tmp_path / "f", 4 + 20 * page_size + 9)
        for wanted, read in (([1, 19, 20, 21], 2), ([20], 0), ([18, 19, 50, 22], 3)):
            out = np.zeros((len(wanted), page_size), np.uint8)
            assert gather(source, np.array(wanted), out) == read
            assert (out[:read] == pages[wanted[:read]]).all()
