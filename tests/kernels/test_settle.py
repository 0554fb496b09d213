"""``insert_words`` and ``settle`` against a dict: chunks, full tables, races, every class."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .checks import (
    CONTENT,
    FILLED,
    FOLLOWER,
    LEFT,
    ZERO,
    check_settle,
    settling,
    words_at_the_end,
)
from .common import Kernels, needs_compiler
from .shim.compile import SCHEDULES, Schedule

pytestmark = needs_compiler

CASES = {
    "one chunk": settling(1, 600, 40, 600, 901),
    "many chunks": settling(2, 700, 40, 123, 1051, offset=5000),
    "nothing left": settling(3, 400, 40, 90, 601, kinds=(CONTENT, ZERO, FILLED, FOLLOWER)),
    "no zeros": settling(4, 400, 40, 90, 601, kinds=(CONTENT, FILLED, LEFT)),
    "all zero": settling(5, 600, 1, 250, 601, kinds=(ZERO,)),
    "one word": settling(6, 600, 0, 250, 601, kinds=(FILLED,)),
    "all words differ": settling(7, 300, 1 << 16, 90, 301, kinds=(FILLED,)),
    "round the end of the table": words_at_the_end(140),
    "numbers beyond 32 bits": settling(8, 300, 20, 100, 451, offset=(1 << 40) + 3),
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_lowest_number_is_written(case: str, schedule: Schedule) -> None:
    check_settle(Kernels(schedule), CASES[case])


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_no_grid_shows(blocks: int) -> None:
    check_settle(Kernels(blocks=blocks), CASES["many chunks"])


@pytest.mark.parametrize("seed", range(12))
def test_blocks_race_for_a_word(seed: int) -> None:
    kernels = Kernels(Schedule("random", seed, resident=4), blocks=4)
    check_settle(kernels, settling(seed, 1000, 9, 1000, 1001))


@given(
    seed=st.integers(0, 1 << 20),
    count=st.integers(1, 300),
    words=st.integers(0, 300),
    chunk=st.integers(1, 300),
    spare=st.integers(1, 40),
    offset=st.sampled_from([0, 1, 1 << 33]),
    kinds=st.lists(st.sampled_from([CONTENT, ZERO, FILLED, FOLLOWER, LEFT]), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_any_stream(
    seed: int, count: int, words: int, chunk: int, spare: int, offset: int, kinds: list[int]
) -> None:
    # Chunks of one page would take two launches per page.
    chunk = max(chunk, count // 8)
    case = settling(seed, count, words, chunk, count + spare, offset, tuple(kinds))
    check_settle(Kernels(Schedule("random", seed, resident=2)), case)
