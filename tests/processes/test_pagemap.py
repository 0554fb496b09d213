"""Entries of the kernel's page map, word by word."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from gpudedup.errors import ImageError
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


def test_entries_that_come_in_parts_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.ones(64 * mmap.PAGESIZE, np.uint8)
    first = memory.ctypes.data // mmap.PAGESIZE + 1
    pages = pagemap.Pagemap(os.getpid(), mmap.PAGESIZE)
    pread = os.pread
    try:
        whole = pages.entries(first, 60)
        assert len(pagemap.populated(whole)) == 60
        monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, -(-size // 16) * 8, at))
        assert pages.entries(first, 60).tolist() == whole.tolist()

        def fail(fd: int, size: int, at: int) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "pread", fail)
        for call in (pages.alive, lambda: pages.entries(first, 60)):
            with pytest.raises(ImageError) as caught:
                call()
            path = f"/proc/{os.getpid()}/pagemap"
            assert str(caught.value) == f"{path}: {os.strerror(errno.EIO)}"
    finally:
        pages.close()
