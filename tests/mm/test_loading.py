"""Managers made from images: the same bytes in the same frames, on the same nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

import gpudedup as gd
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import UNKNOWN_FRAME, Mapping, PageColumns
from gpudedup.mm.manager import MemoryManager
from gpudedup.schema import ALIASES, FRAMES, MANAGER_MAPPINGS, MANAGER_PAGES, PageFlag

from .common import PAGE, page, pages, rows


@pytest.fixture
def dump(tmp_path: Path) -> str:
    """Write a dump of three mappings: pages in no order, common frames, one distant index."""
    path = tmp_path / "dump.arrow"
    maps = [
        Mapping("a[1]", "uid:1", "anon", "[heap]", 0x1000, "rd wr mg"),
        Mapping("a[1]", "uid:1", "file", "/lib", 0x100000),
        Mapping("b[2]", "uid:2", "file", "/lib", 0x200000),
    ]
    unknown = int(UNKNOWN_FRAME)
    dirty, zero = int(PageFlag.DIRTY), int(PageFlag.ZERO_PAGE)
    table = [  # mapping, index, frame, node, flags, content
        (0, 5, unknown, 0, dirty, 1),
        (0, 1, unknown, 1, 0, 2),
        (1, 0, 77, 1, dirty, 3),
        (2, 0, 77, 1, dirty, 3),
        (1, 3, 78, 9, 0, 3),
        (0, 1 << 33, unknown, -1, 0, 4),
        (0, 2, 99, 0, zero, 0),
        (0, 3, 99, 0, zero, 0),
        (2, 1, 78, 0, 0, 3),
        (0, 4, unknown, 0, 0, 0),
    ]
    with DumpWriter(path, PAGE, maps, source="test", force=True) as writer:
        for first in (0, 7):
            part = table[first : first + 7]
            columns = PageColumns(
                first,
                np.array([r[0] for r in part], np.int32),
                np.array([r[1] for r in part], np.uint64),
                np.array([r[2] for r in part], np.uint64),
                np.array([r[3] for r in part], np.int16),
                np.array([r[4] for r in part], np.uint32),
            )
            writer.write(columns, pages(*(r[5] for r in part)))
    return str(path)


def test_the_same_bytes_in_the_same_frames(dump: str) -> None:
    mm = MemoryManager.from_image(dump, nodes=2)
    mm.check()
    heap, first, second = mm.mappings
    assert (heap.owner, heap.domain, heap.kind, heap.name) == ("a[1]", "uid:1", "anon", "[heap]")
    assert (heap.start, heap.source_flags, heap.pages) == (0x1000, "rd wr mg", (1 << 33) + 1)
    assert rows(mm.read(heap, [5, 1, 2, 3, 1 << 33, 100])) == rows(pages(1, 2, 0, 0, 4, 0))
    assert rows(mm.read(first, range(4))) == rows(pages(3, 0, 0, 3))
    assert rows(mm.read(second, range(2))) == rows(pages(3, 3))
    c = mm.counters
    assert (c.frames, c.pages, c.dirty) == (6, 8, 2)
    mm.write(second, 0, page(9))
    assert rows(mm.read(first, 0)) == rows(pages(3))
    mm.check()


def test_nodes_are_those_of_the_image(dump: str) -> None:
    mm = gd.MemoryManager.from_image(gd.open_image(dump))
    assert mm.nodes == 10
    table = mm.aliases().to_pylist()
    node = {(row["mapping"], row["index"]): row["node"] for row in table}
    assert node[1, 1] == 1
    assert node[2, 3] == 9
    assert node[1, 1 << 33] == 0
    mm.check()


def test_arrays() -> None:
    made = np.random.default_rng(1).integers(0, 3, 5000).astype(np.uint8)
    data = np.repeat(made[:, None], PAGE, axis=1)
    mm = MemoryManager.from_image(data)
    (mapping,) = mm.mappings
    assert np.array_equal(mm.read(mapping, range(5000)), data)
    mm.merge()
    assert np.array_equal(mm.read(mapping, range(5000)), data)
    assert mm.counters.frames == mm.counters.pages_shared


def test_an_empty_image() -> None:
    mm = MemoryManager.from_image(np.empty((0, PAGE), np.uint8))
    assert mm.counters.pages == 0
    assert mm.merge().pages == 0


def test_tables(dump: str) -> None:
    mm = MemoryManager.from_image(dump, nodes=2)
    frames, all_pages, aliases = mm.frames(), mm.pages(), mm.aliases()
    assert frames.schema.equals(FRAMES, check_metadata=True)
    assert all_pages.schema.equals(MANAGER_PAGES, check_metadata=True)
    assert aliases.schema.equals(ALIASES, check_metadata=True)
    assert mm.mappings_table().schema.equals(MANAGER_MAPPINGS, check_metadata=True)
    assert mm.mappings_table().column("populated").to_pylist() == [4, 2, 2]
    used = pc.sum(pc.not_equal(frames.column("protection"), 0)).as_py()
    assert used == mm.counters.frames + 1
    assert len(aliases) == mm.counters.pages
    held = all_pages.column("frame").to_numpy()
    assert held[aliases.column("page")].tolist() == aliases.column("frame").to_pylist()
    # Later operations do not change these tables.
    mm.punch(mm.mappings[1], 0)
    assert np.count_nonzero(all_pages.column("frame").to_numpy()) == len(aliases)
    assert np.count_nonzero(mm.pages().column("frame").to_numpy()) == len(aliases) - 1
