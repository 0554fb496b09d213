"""``read_words`` against NumPy's sum."""

from __future__ import annotations

import pytest

from .checks import check_read
from .common import Kernels, needs_compiler
from .shim.compile import SCHEDULES, Schedule

pytestmark = needs_compiler

CHUNK = 256 * 8
"""Loads per block and turn."""


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("pairs", [0, 1, 255, CHUNK - 1, CHUNK, 5 * CHUNK, 7 * CHUNK + 300])
def test_every_word_is_read_once(pairs: int, schedule: Schedule) -> None:
    for blocks in (1, 3, 9):
        check_read(Kernels(schedule, blocks), pairs)
