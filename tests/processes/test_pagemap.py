"""Entries of the kernel's page map, word by word."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE
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


def test_a_block_of_several_nodes_tells_no_node(tmp_path: Path) -> None:
    for node, block in ((0, 0), (0, 1), (1, 1), (2, 1), (2, 2), (1, 3), (2, 3)):
        (tmp_path / f"node/node{node}/memory{block}").mkdir(parents=True)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/block_size_bytes").write_text("8000000\n")
    nodes, frames = pagemap.memory_blocks(4096, tmp_path)
    assert nodes.tolist() == [0, UNKNOWN_NODE, 2, UNKNOWN_NODE, UNKNOWN_NODE]
    assert frames == (128 << 20) // 4096
