"""Entries of the kernel's page map, word by word."""

from __future__ import annotations

import numpy as np

from gpudedup.images.rows import UNKNOWN_FRAME
from gpudedup.processes import pagemap
from gpudedup.schema import PageFlag


def test_entries_of_the_page_map() -> None:
    present, swap, guard, file = 1 << 63, 1 << 62, 1 << 58, 1 << 61
    before = np.array(
        [0, present | 5, swap | 99, swap | guard, present | 6, present | 7, present, swap | 98],
        np.uint64,
    )
    after = before.copy()
    after[2], after[4], after[5] = present | 8, present | 9, 0
    assert pagemap.populated(before).tolist() == [1, 2, 4, 5, 6, 7]
    unknown = int(UNKNOWN_FRAME)
    expected = [unknown, 5, 8, unknown, unknown, unknown, unknown, unknown]
    assert pagemap.frames(before, after).tolist() == expected
    assert not pagemap.hides_frames(before)
    assert not pagemap.hides_frames(before[:1])
    assert pagemap.hides_frames(before[6:])
    flags = pagemap.pagemap_flags(np.array([swap | file, 3 << 55], np.uint64))
    assert flags.tolist() == [
        PageFlag.SWAP | PageFlag.FILE,
        PageFlag.SOFT_DIRTY | PageFlag.MMAP_EXCLUSIVE,
    ]


def test_runs() -> None:
    assert pagemap.runs(np.array([3, 4, 5, 9, 11, 12])) == [(0, 3), (3, 4), (4, 6)]
    assert pagemap.runs(np.array([], np.int64)) == []
