"""``compare`` against NumPy: pages that differ in one bit, anchors here, elsewhere and nowhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .checks import PAGE_SIZES, check_compare
from .common import Kernels, needs_compiler
from .shim.compile import SCHEDULES, Schedule

pytestmark = needs_compiler


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_any_bit_tells_pages_apart(page_size: int) -> None:
    large = page_size > 128 << 10
    check_compare(Kernels(), page_size, groups=1 if large else 3, first=2 if large else 37)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("page_size", [512, 4096])
def test_no_schedule_shows(page_size: int, schedule: Schedule) -> None:
    check_compare(Kernels(schedule), page_size)


@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_no_grid_shows(blocks: int) -> None:
    check_compare(Kernels(blocks=blocks), 1024, groups=12)


@given(st.integers(0, 1 << 20), st.integers(0, 70), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_chunk(seed: int, first: int, groups: int) -> None:
    kernels = Kernels(Schedule("random", seed))
    check_compare(kernels, 512, first=first, seed=seed, groups=groups + 1)
