"""Columns cut and joined again; rows of an image, walked once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.images.rows import (
    UNKNOWN_FRAME,
    UNKNOWN_NODE,
    PageColumns,
    Rows,
    of_one_mapping,
    regrouped,
)

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


def image_of(*pieces: PageColumns) -> tuple[Rows, list[int]]:
    """Return rows, and the number of walks over their columns."""
    walks: list[int] = []

    def columns() -> Iterator[PageColumns]:
        walks.append(1)
        yield from pieces

    return Rows(columns()), walks


def test_columns_are_walked_once_however_often_rows_are() -> None:
    rows, walks = image_of(*pieces())
    assert [len(piece) for piece in rows] == [len(piece) for piece in rows] == list(LENGTHS)
    assert (len(rows), walks) == (11, [1])
    assert [f.tolist() for f in rows.frames()] == [[100, 101, 102], [], [*range(104, 109)],
                                                   [109, 110], []]  # fmt: skip
    assert rows.nodes() == 9
    assert rows.sizes(6).tolist() == [3, 0, 4, 9, 11, 0]
    assert walks == [1]


def test_nothing_has_no_rows_and_one_node() -> None:
    rows, _ = image_of()
    assert (len(rows), rows.nodes(), rows.frame_of(), list(rows.frames())) == (0, 1, None, [])
    assert rows.sizes(2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("frames", "known"),
    [
        (([1, 2], [3]), False),
        (([1, 2], [2]), True),
        (([2, 1], [3]), True),
        ((None, [3]), False),
        ((None, None), False),
        (([5], None, [5]), True),
    ],
)
def test_frames_are_listed_only_if_two_may_be_equal(frames: Any, known: bool) -> None:
    row, made = 0, []
    for numbers in frames:
        n = 1 if numbers is None else len(numbers)
        frame = None if numbers is None else np.array(numbers, np.uint64)
        mapping = of_one_mapping(0, n)
        made.append(PageColumns(row, mapping, np.arange(n, dtype=np.uint64), frame))
        row += n
    found = image_of(*made)[0].frame_of()
    expected = [f for numbers in frames for f in (numbers or [UNKNOWN_FRAME])]
    assert (None if found is None else found.tolist()) == (expected if known else None)


def test_a_column_of_one_mapping_takes_no_memory() -> None:
    column = of_one_mapping(7, 1 << 40)
    assert column.dtype == np.int32
    assert (column.shape, column.strides) == ((1 << 40,), (0,))
    assert column[123456789] == 7
