"""Records of pages and frames: the places of their fields, and growing."""

from __future__ import annotations

import numpy as np
import pytest

from gpudedup.mm.state.arrays import LEAF_PAGES, PER_FRAME, PER_PAGE, empty, grown
from gpudedup.mm.state.numba_type import RECORDS


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_lies_in_one_cache_line_and_its_fields_apart(name: str) -> None:
    record = RECORDS[name]
    assert 64 % record.itemsize == 0
    taken: set[int] = set()
    for kind, offset, *_ in (record.fields or {}).values():
        places = set(range(offset, offset + kind.itemsize))
        assert offset % kind.itemsize == 0
        assert not taken & places
        taken |= places
    assert max(taken) < record.itemsize


@pytest.mark.parametrize("names", [PER_PAGE, PER_FRAME])
def test_growing_keeps_records_whole(names: tuple[str, ...]) -> None:
    state = grown(empty(512, 6, 1), names, 2 * LEAF_PAGES)
    fields = [field for name in names for field in RECORDS[name].names or ()]
    for number, field in enumerate(fields):
        getattr(state, field)[:] = np.arange(2 * LEAF_PAGES) + number
    longer = grown(state, names, 5 * LEAF_PAGES)
    for field in fields:
        before, after = getattr(state, field), getattr(longer, field)
        assert len(after) == 5 * LEAF_PAGES
        assert np.array_equal(after[: len(before)], before)
        assert not after[len(before) :].any()
