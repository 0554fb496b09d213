"""Dumps whose rows contradict one another: what they mean is defined, and the books agree."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpudedup as gd
from gpudedup.arguments import MAX_PAGES
from gpudedup.errors import ImageError
from gpudedup.images import base
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, Mapping, PageColumns
from gpudedup.mm.manager import MemoryManager
from gpudedup.schema import PageFlag

from .common import PAGE, pages, rows

MAPS = [
    Mapping("a[1]", "uid:1", "anon", "[heap]", 0),
    Mapping("a[1]", "uid:1", "file", "/lib", 1 << 20),
    Mapping("b[2]", "uid:2", "shmem", "/lib", 2 << 20),
]
FRAMES = 4
DIRTY, ZERO, KSM = int(PageFlag.DIRTY), int(PageFlag.ZERO_PAGE), int(PageFlag.KSM)
UNKNOWN = int(UNKNOWN_FRAME)

Row = tuple[int, int, int, int, int, int]
"""Mapping, index, frame, node, flags, content."""


def write(path: Path, table: list[Row]) -> Path:
    columns = PageColumns(
        0,
        np.array([r[0] for r in table], np.int32),
        np.array([r[1] for r in table], np.uint64),
        np.array([r[2] for r in table], np.uint64),
        np.array([r[3] for r in table], np.int16),
        np.array([r[4] for r in table], np.uint32),
    )
    with DumpWriter(path, PAGE, MAPS, source="test", force=True) as writer:
        writer.write(columns, pages(*(r[5] for r in table)))
    return path


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Return rows of few mappings, indices and frames; a frame mostly has one content."""
    number = st.integers(0, FRAMES)
    table = []
    for _ in range(draw(st.integers(1, 24))):
        frame = draw(number)
        content = draw(number) if frame == FRAMES or draw(st.integers(0, 4)) == 0 else frame
        node = draw(st.sampled_from([0, 0, 1, 9, int(UNKNOWN_NODE)]))
        flags = draw(st.sampled_from([0, 0, DIRTY, ZERO, DIRTY | ZERO, KSM]))
        where = draw(st.integers(0, len(MAPS) - 1)), draw(st.sampled_from([0, 1, 2, 70]))
        named = UNKNOWN if frame == FRAMES else frame
        table.append((*where, named, node, flags, content))
    return table


def meaning(table: list[Row]) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], object]]:
    """Return the content, and the frame, of each page that has one, as docs/dump-format.md says."""
    last = {row[:2]: at for at, row in enumerate(table)}
    content: dict[tuple[int, int], int] = {}
    frame_of: dict[tuple[int, int], object] = {}
    first: dict[object, int] = {}
    for at, (mapping, index, frame, _, flags, held) in enumerate(table):
        if last[mapping, index] != at or (flags & ZERO and not held):
            continue
        frame_key: object = ("own", at) if frame == UNKNOWN or flags & ZERO else frame
        frame_of[mapping, index] = frame_key
        content[mapping, index] = first.setdefault(frame_key, held)
    return content, frame_of


@settings(deadline=None)
@given(tables(), st.integers(1, 5), st.booleans())
def test_random_dumps(table: list[Row], together: int, merged: bool) -> None:
    """However rows collide: the books agree, and every page reads as its last row says."""
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        path = write(Path(folder) / "dump.arrow", table)
        if merged:
            gd.merge_images([path], Path(folder) / "merged.arrow")
            path = Path(folder) / "merged.arrow"
        patch.setattr(base, "BATCH_BYTES", together * PAGE)
        mm = MemoryManager.from_image(path, nodes=2)
    mm.check()
    content, frame_of = meaning(table)
    dirty = {row[:2] for row in table if row[0]} & {
        row[:2]
        for at, row in enumerate(table)
        if row[4] & DIRTY and row[:2] not in {later[:2] for later in table[at + 1 :]}
    }
    assert mm.counters.dirty == len(dirty & content.keys())
    assert mm.counters.pages == len(content)
    found: dict[object, int] = {}
    for row in mm.aliases().to_pylist():
        key = frame_of[row["mapping"] - 1, row["index"]]
        assert found.setdefault(key, row["frame"]) == row["frame"]
    assert len(set(found.values())) == len(found) == mm.counters.frames
    for number, mapping in enumerate(mm.mappings):
        for index in range(mapping.pages):
            said = pages(content.get((number, index), 0))
            assert rows(mm.read(mapping, index)) == rows(said)
    # A store to each page goes to that page alone.
    for number, mapping in enumerate(mm.mappings):
        for index in sorted({row[1] for row in table if row[0] == number}):
            mm.write(mapping, index, pages(7)[0])
            content[number, index] = 7
            mm.check()
    for (number, index), held in content.items():
        assert rows(mm.read(mm.mappings[number], index)) == rows(pages(held))


CASES: dict[str, tuple[list[Row], list[int]]] = {
    "one page and one frame in two rows": ([(0, 0, 7, 0, 0, 1), (0, 0, 7, 0, 0, 1)], [1]),
    "a frame that is zero in its first row only": (
        [(0, 0, 7, 0, ZERO, 0), (0, 1, 7, 0, 0, 1), (0, 2, 7, 0, 0, 1)],
        [0, 1, 1],
    ),
    "a file page dirty twice": ([(1, 0, 7, 0, DIRTY, 1), (1, 0, 8, 0, DIRTY, 2)], [2]),
    "a file page dirty, then clean": ([(1, 0, 7, 0, DIRTY, 1), (1, 0, 8, 0, 0, 2)], [2]),
    "a page, then the page of zeros": ([(0, 0, 7, 0, 0, 1), (0, 0, 9, 0, ZERO, 0)], [0]),
    "a page of zeros with other bytes": ([(0, 0, 9, 0, ZERO, 3), (0, 1, 9, 0, ZERO, 4)], [3, 4]),
    "a frame whose first page comes again": (
        [(0, 0, 7, 0, 0, 1), (0, 0, 8, 0, 0, 2), (0, 1, 7, 0, 0, 1), (0, 2, 7, 0, 0, 1)],
        [2, 1, 1],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_named_cases(tmp_path: Path, case: str) -> None:
    table, contents = CASES[case]
    mm = MemoryManager.from_image(write(tmp_path / "dump.arrow", table))
    mm.check()
    mapping = mm.mappings[table[0][0]]
    assert rows(mm.read(mapping, range(mapping.pages))) == rows(pages(*contents))
    assert mm.counters.dirty == (case == "a file page dirty twice")


@pytest.mark.parametrize("index", [MAX_PAGES, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_page_beyond_all_mappings(tmp_path: Path, index: int) -> None:
    table: list[Row] = [(0, 0, 1, 0, 0, 1), (0, index, 2, 0, 0, 2)]
    path = write(tmp_path / "dump.arrow", table)
    with pytest.raises(ImageError) as caught:
        MemoryManager.from_image(path)
    assert str(caught.value).startswith(f"{path}: row 1: page {index} of a mapping")
