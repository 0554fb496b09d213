"""``copy_pages`` against NumPy's fancy indexing."""

from __future__ import annotations

import pytest

from .checks import PAGE_SIZES, check_copy
from .common import Kernels, needs_compiler
from .shim.compile import SCHEDULES, Schedule

pytestmark = needs_compiler

BOTH = pytest.mark.parametrize("scatter", [False, True], ids=["to a run", "scatter"])
EITHER = pytest.mark.parametrize("gather", [False, True], ids=["from a run", "gather"])


@BOTH
@EITHER
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_all_page_sizes(page_size: int, gather: bool, scatter: bool) -> None:
    count = 3 if page_size > 64 << 10 else 21
    check_copy(Kernels(), page_size, gather=gather, scatter=scatter, count=count)


@BOTH
@EITHER
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_no_schedule_shows(schedule: Schedule, gather: bool, scatter: bool) -> None:
    for seed, count in enumerate((1, 2, 7, 33, 100)):
        kernels = Kernels(schedule, blocks=1 + seed)
        check_copy(kernels, 512, gather=gather, scatter=scatter, count=count, seed=seed)
