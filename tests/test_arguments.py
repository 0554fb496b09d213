"""Indices, data and words as arrays; what does not fit is refused with the argument's name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpudedup.arguments import (
    as_data,
    as_index,
    as_number,
    as_words,
    check_part,
    distinct,
    last_of_equal,
)
from gpudedup.errors import UsageError

INTEGERS = st.lists(st.integers(0, 20), max_size=30)


@pytest.mark.parametrize("given", [3, [3], range(3, 4), np.uint64(3), np.array([3], np.uint8)])
def test_an_index_is_a_row_of_int64(given: Any) -> None:
    index = as_index(given)
    assert index.dtype == np.int64
    assert (index.tolist(), index.flags.c_contiguous) == ([3], True)
    assert len(as_index([])) == 0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (1.5, "index of type float64: not integers"),
        ([[1]], r"index of shape \(1, 1\): not one number or a row of them"),
        (np.uint64(1 << 63), "index 9223372036854775808: no mapping has so many pages"),
    ],
)
def test_what_is_no_index(given: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        as_index(given)


@pytest.mark.parametrize("given", [3, np.int8(3), np.uint64(3), np.int64(3)])
def test_numbers_are_integers_of_any_width(given: Any) -> None:
    number = as_number(given, "pages")
    assert (type(number), number) == (int, 3)
    assert check_part(given, None, 4096) == (3, 4093)
    assert as_data(b"ab", 1, 4096, given).shape == (1, 2)


NO_NUMBERS = [1.5, 1.0, math.nan, np.float64(1), True, np.True_, "1", None, [1], np.array([1])]


@pytest.mark.parametrize("given", NO_NUMBERS)
def test_what_is_no_number(given: Any) -> None:
    kind = type(given).__name__
    with pytest.raises(UsageError, match=f"^pages of type {kind}: not an integer$"):
        as_number(given, "pages")
    with pytest.raises(UsageError, match=f"^offset of type {kind}: not an integer$"):
        check_part(given, 1, 512)
    if given is not None:
        with pytest.raises(UsageError, match=f"^size of type {kind}: not an integer$"):
            check_part(1, given, 512)
        with pytest.raises(UsageError, match=f"^offset of type {kind}: not an integer$"):
            as_data(b"a", 1, 512, given)


@pytest.mark.parametrize("given", [1 << 64, -(1 << 63) - 1, 10**5000], ids=["2", "-2", "10"])
def test_numbers_that_no_machine_word_holds(given: int) -> None:
    with pytest.raises(UsageError, match=f"pages: an integer of {given.bit_length()} bits"):
        as_number(given, "pages")
    with pytest.raises(UsageError, match="index of type object: not integers"):
        as_index([given])


def test_rows_of_different_lengths_are_no_array() -> None:
    with pytest.raises(UsageError, match="index: no array"):
        as_index([[1], [1, 2]])
    with pytest.raises(UsageError, match="data: no array"):
        as_data([[1], [1, 2]], 2, 512, 0)
    with pytest.raises(UsageError, match="word: no array"):
        as_words(as_index([1, 2]), [[1], [1, 2]], 1, 512)


def test_every_second_byte_of_a_buffer_is_data_too() -> None:
    assert as_data(memoryview(b"a.b.")[::2], 1, 512, 0).tobytes() == b"ab"


def test_data_of_one_row_is_for_all_pages() -> None:
    assert as_data(b"ab", 3, 512, 5).tolist() == [[97, 98]] * 3
    assert as_data(np.zeros(512, np.uint8), 0, 512, None).shape == (0, 512)


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        (b"a" * 511, None, "511 bytes at 0 of pages of 512"),
        (b"a" * 512, 1, "512 bytes at 1 of pages of 512"),
        (b"a", -1, "1 bytes at -1 of pages of 512"),
        (np.zeros(512), None, "data of type float64: pages are uint8"),
        (np.zeros((3, 512), np.uint8), None, r"data of shape \(3, 512\) for 2 pages"),
    ],
)
def test_data_that_does_not_fit(data: Any, offset: int | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        as_data(data, 2, 512, offset)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (500, 13)])
def test_a_part_outside_of_a_page(offset: int, size: int) -> None:
    check_part(500, 12, 512)
    with pytest.raises(UsageError, match=f"{size} bytes at {offset} of pages of 512"):
        check_part(offset, size, 512)


def test_words_are_one_or_as_many_as_pages() -> None:
    words, values = as_words(as_index([4, 5]), 1, [-1, 2], 512)
    assert (words.tolist(), values.tolist()) == ([1, 1], [2**64 - 1, 2])
    for word, value, reason in ((64, 1, "word 64: not one of 64"), (0, 1.5, "value of type")):
        with pytest.raises(UsageError, match=reason):
            as_words(as_index([4, 5]), word, value, 512)


@given(INTEGERS)
def test_distinct_values_ascend(values: list[int]) -> None:
    assert distinct(np.array(values, np.int64)).tolist() == sorted(set(values))


@given(INTEGERS)
def test_the_last_of_equal_keys_counts(keys: list[int]) -> None:
    places = last_of_equal(np.array(keys, np.int64))
    assert sorted(places.tolist()) == sorted({key: at for at, key in enumerate(keys)}.values())
