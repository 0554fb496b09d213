"""Access through a device's copy of a page table against dicts and NumPy's indexing."""

from __future__ import annotations

import pytest

from .checks import PAGE_SIZES
from .common import Kernels, needs_compiler
from .shim.compile import SCHEDULES, Schedule
from .table_checks import (
    Part,
    check_add,
    check_load,
    check_page_table,
    check_set,
    check_store,
    parts,
)

pytestmark = needs_compiler

BOTH = pytest.mark.parametrize("physical", [False, True], ids=["mapped", "physical"])


@BOTH
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_all_page_sizes(page_size: int, physical: bool) -> None:
    kernels = Kernels()
    count = 6 if page_size > 64 << 10 else 21
    half = page_size // 2
    for part in (Part(0, page_size), Part(half, half, stride=0), Part(page_size - 13, 13, 1)):
        check_load(kernels, page_size, part, count=count, physical=physical)
        check_store(kernels, page_size, part, count=count, physical=physical)
    check_add(kernels, min(page_size, 64 << 10), physical=physical)


@BOTH
@pytest.mark.parametrize("part", parts(1024), ids=str)
def test_all_parts_of_a_page(part: Part, physical: bool) -> None:
    for seed, count in enumerate((1, 2, 9, 40)):
        kernels = Kernels(blocks=1 + seed)
        check_load(kernels, 1024, part, count=count, seed=seed, physical=physical)
        check_store(kernels, 1024, part, count=count, seed=seed, physical=physical)


@BOTH
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_no_schedule_shows(schedule: Schedule, physical: bool) -> None:
    check_page_table(Kernels(schedule, blocks=3), 512, physical=physical)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 2000])
def test_words_are_set_and_added_once(count: int, schedule: Schedule) -> None:
    for blocks in (1, 3):
        check_set(Kernels(schedule, blocks), count, seed=count)
        check_add(Kernels(schedule, blocks), 512, count=count, seed=count)
