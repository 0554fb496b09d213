"""``insert`` and ``resolve`` against a dict: chunks, collisions, full tables, few kept anchors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .checks import Grouping, check_group, starting_at_the_end, stream
from .common import Kernels, needs_compiler
from .shim.compile import SCHEDULES, Schedule

pytestmark = needs_compiler


CASES = {
    "one chunk": Grouping(stream(1, 600, 250), 600, 2048),
    "many chunks": Grouping(stream(2, 700, 250), 123, 1024),
    "all different": Grouping(stream(3, 300, 5000), 100, 512),
    "all equal": Grouping(stream(4, 600, 1), 250, 601),
    "8 bits": Grouping(stream(5, 600, 500, bits=8), 130, 700),
    "0 bits": Grouping(stream(6, 600, 500, bits=0), 130, 700),
    "table nearly full": Grouping(stream(7, 300, 5000), 90, 301),
    "round the end of the table": Grouping(starting_at_the_end(280), 100, 281),
    "room for few": Grouping(stream(8, 500, 200), 120, 1024, room=37),
    "room for all": Grouping(stream(9, 500, 200), 120, 1024, room=500),
    "no room": Grouping(stream(10, 300, 100), 120, 1024, room=0),
    "other classes": Grouping(
        stream(11, 500, 100), 90, 501, 20,
        np.random.default_rng(11).choice([0, 0, 0, 1, 2], 500).astype(np.uint8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_lowest_page_is_the_anchor(case: str, schedule: Schedule) -> None:
    check_group(Kernels(schedule), CASES[case])


@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_no_grid_shows(blocks: int) -> None:
    check_group(Kernels(blocks=blocks), CASES["many chunks"])


@pytest.mark.parametrize("seed", range(12))
def test_blocks_race_for_a_slot(seed: int) -> None:
    """Pages of one digest in different blocks, which take turns at the atomic operations."""
    kernels = Kernels(Schedule("random", seed, resident=4), blocks=4)
    check_group(kernels, Grouping(stream(seed, 1000, 60), 1000, 1001, room=30))


@given(
    seed=st.integers(0, 1 << 20),
    count=st.integers(1, 300),
    contents=st.integers(1, 300),
    chunk=st.integers(1, 300),
    spare=st.integers(1, 40),
    bits=st.sampled_from([0, 3, 8, 64, 70, 128]),
    room=st.none() | st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_any_stream(
    seed: int, count: int, contents: int, chunk: int, spare: int, bits: int, room: int | None
) -> None:
    # Chunks of one page would take a launch per page.
    chunk = max(chunk, count // 8)
    case = Grouping(stream(seed, count, contents, bits), chunk, count + spare, room)
    check_group(Kernels(Schedule("random", seed, resident=2)), case)
