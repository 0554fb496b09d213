"""``digest`` against the xxhash wheel and NumPy: all page sizes, layouts, grids, schedules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.compiled import xxh3
from gpudedup.kernels import LAYOUTS, SMALLEST_BLOCK_PAGE, layouts

from .checks import PAGE_SIZES, check_digest, digests_of, pages_of_all_kinds
from .common import Kernels, needs_compiler
from .shim.compile import SCHEDULES, Schedule

pytestmark = needs_compiler

LARGEST_OCTET_PAGE = 32 << 10
"""Largest page size tested in layout octet: beyond it, only the turns of one loop change."""

VARIANTS = [
    (page_size, layout)
    for page_size in PAGE_SIZES
    for layout in LAYOUTS
    if (layout != "block" or page_size >= SMALLEST_BLOCK_PAGE)
    and (layout != "octet" or page_size <= LARGEST_OCTET_PAGE)
]
FEW = [(512, "quad"), (4096, "quad"), (1024, "octet"), (4096, "octet"), (128 << 10, "block")]


@pytest.mark.parametrize(("page_size", "layout"), VARIANTS)
def test_all_page_sizes_and_layouts(page_size: int, layout: str) -> None:
    for count in (1, 2, 3, 5, 7, 33):
        if count * page_size > 16 << 20:
            break
        check_digest(Kernels(), page_size, layout, count=count, seed=count)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("page_size", "layout"), FEW)
def test_no_schedule_shows(page_size: int, layout: str, schedule: Schedule) -> None:
    check_digest(Kernels(schedule), page_size, layout, count=13)


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 40])
@pytest.mark.parametrize(("page_size", "layout"), FEW)
def test_no_grid_shows(page_size: int, layout: str, blocks: int) -> None:
    """Grids of up to many more blocks than the pages need."""
    check_digest(Kernels(blocks=blocks), page_size, layout, count=5 if layout == "block" else 75)


@pytest.mark.parametrize(("low_mask", "high_mask"), [(0xFF, 0), (0, 0), (3, (1 << 64) - 1)])
@pytest.mark.parametrize(("page_size", "layout"), FEW)
def test_digests_are_masked(page_size: int, layout: str, low_mask: int, high_mask: int) -> None:
    check_digest(Kernels(), page_size, layout, low_mask=low_mask, high_mask=high_mask, count=9)


@given(
    variant=st.sampled_from(FEW[:-1]),
    count=st.integers(1, 70),
    seed=st.integers(0, 1 << 20),
    blocks=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_any_population(variant: tuple[int, str], count: int, seed: int, blocks: int) -> None:
    check_digest(Kernels(Schedule("random", seed), blocks), *variant, count=count, seed=seed)


def test_every_lane_reads_its_own_bytes() -> None:
    """A bit anywhere in a page changes its digest as it should."""
    pages = np.zeros((513, 512), np.uint8)
    pages[np.arange(512), np.arange(512)] = 0x10
    for layout in ("quad", "octet"):
        kernels = Kernels()
        digests = kernels.unwritten((513, 2), np.uint64)
        outputs = (kernels.unwritten(513, np.uint8), kernels.unwritten(513, np.uint64))
        arguments = (kernels.buffer(pages), 513, digests, *outputs, (1 << 64) - 1, (1 << 64) - 1)
        kernels("digest", *arguments, page_size=512, layout=layout)
        np.testing.assert_array_equal(digests.array, digests_of(pages))


def test_every_layout_in_use_is_tested() -> None:
    assert {(size, layout) for size in PAGE_SIZES for layout in layouts(size)} <= set(VARIANTS)


def test_the_oracle_of_the_cpu_engine_agrees() -> None:
    """Both engines are checked against one oracle; here also against each other."""
    pages = pages_of_all_kinds(8, 4096)
    scratch = np.zeros(8, np.uint64)
    own = [xxh3.digest_page(page.ctypes.data, 4096, scratch) for page in pages]
    np.testing.assert_array_equal(np.array(own, np.uint64), digests_of(pages))
