"""Columns cut and joined again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, PageColumns, regrouped

LENGTHS = (3, 0, 1, 5, 2, 0)


def pieces() -> Iterator[PageColumns]:
    """Yield pieces of rows with different optional columns."""
    row = 0
    for at, n in enumerate(LENGTHS):
        index = np.arange(row, row + n, dtype=np.uint64)
        yield PageColumns(
            row,
            np.full(n, at, np.int32),
            index,
            None if at == 2 else index + np.uint64(100),
            index.astype(np.int16) if at == 3 else None,
        )
        row += n


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 10, 11, 12, 1000])
def test_regrouped_rows_are_the_same(rows: int) -> None:
    groups = list(regrouped(pieces(), rows))
    assert [len(g) for g in groups] == [rows] * (11 // rows) + [11 % rows] * (11 % rows > 0)
    assert [g.row for g in groups] == list(range(0, 11, rows))
    assert [m for g in groups for m in g.mapping] == [0] * 3 + [2] + [3] * 5 + [4] * 2
    assert [i for g in groups for i in g.index] == list(range(11))
    frames = [f for g in groups for f in known(g.frame, len(g), UNKNOWN_FRAME)]
    assert frames == [100, 101, 102, UNKNOWN_FRAME, *range(104, 111)]
    nodes = [n for g in groups for n in known(g.node, len(g), UNKNOWN_NODE)]
    assert nodes == [-1] * 4 + [4, 5, 6, 7, 8] + [-1] * 2
    assert {g.flags for g in groups} == {None}
    for group in groups:
        assert group.mapping.dtype == np.int32
        assert group.index.dtype == np.uint64
        assert group.frame is None or group.frame.dtype == np.uint64
        assert group.node is None or group.node.dtype == np.int16


def known(values: npt.NDArray[Any] | None, n: int, unknown: np.generic) -> list[int]:
    return [int(unknown)] * n if values is None else values.tolist()


def test_nothing_regrouped_is_nothing() -> None:
    assert list(regrouped([], 5)) == []
    assert list(regrouped([next(pieces()).slice(0, 0)], 5)) == []


def test_rows_chosen_by_a_mask_are_numbered_anew() -> None:
    piece = next(pieces())
    kept = piece.where(np.array([True, False, True]), 7)
    assert (kept.row, kept.index.tolist(), kept.flags) == (7, [0, 2], None)
    assert kept.frame is not None
    assert kept.frame.tolist() == [100, 102]
