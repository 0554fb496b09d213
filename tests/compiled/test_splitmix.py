"""SplitMix64 against the numbers of its reference implementation."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from gpudedup.compiled.splitmix import GAMMA, mix, mixed

WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20)
COMPILED = njit(mixed)


def test_the_first_numbers_from_seed_1234567() -> None:
    """Those that Vigna's splitmix64.c prints, as published with many ports of it."""
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(GAMMA)
    assert mix(states).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


@given(WORDS)
def test_in_place_compiled_and_plain_are_the_same(words: list[int]) -> None:
    x = np.array(words, np.uint64)
    expected = mixed(x).tolist()
    assert [int(COMPILED(word)) for word in x] == expected
    spare = np.empty_like(x)
    assert mix(x.copy(), spare).tolist() == expected
    assert mix(x) is x
    assert x.tolist() == expected
