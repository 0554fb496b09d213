"""A reflink's hidden pages own the frames in common, and are no pages of anybody's."""

from __future__ import annotations

import pytest

from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.policy import MergePolicy

from .common import PAGE, page, rows

FILES = ("anon", "file")


def test_a_hidden_page_saves_nothing_and_is_no_page() -> None:
    mm = MemoryManager(PAGE)
    file, heap = mm.create("/a", kind="file", pages=1), mm.create("heap", pages=1)
    for mapping in (file, heap):
        mm.write(mapping, 0, page(1))
    copy = mm.reflink(file, name="/b")
    assert mm.counters.pages == 3
    mm.merge(MergePolicy(FILES))
    c = mm.counters
    assert (c.frames, c.pages, c.pages_shared, c.pages_sharing) == (1, 3, 1, 2)
    mm.check()
    mm.write(heap, 0, page(2))
    assert (mm.counters.pages_shared, mm.counters.pages_sharing) == (1, 1)
    mm.write(copy, 0, page(3))
    assert (mm.counters.pages_shared, mm.counters.pages_sharing) == (1, 0)
    mm.check()
    mm.drop(file)
    assert (mm.counters.pages, mm.counters.pages_shared, mm.counters.pages_sharing) == (2, 0, 0)
    mm.check()


def test_a_reflink_of_merged_pages_shares_one_more() -> None:
    mm = MemoryManager(PAGE)
    file = mm.create("/a", kind="file", pages=4)
    mm.write(file, range(4), page(1))
    mm.merge(MergePolicy(FILES))
    assert mm.counters.pages_sharing == 3
    copy = mm.reflink(file, name="/b")
    assert (mm.counters.pages, mm.counters.pages_sharing) == (8, 7)
    mm.check()
    assert not mm.unmerge(file, range(4)).any()
    assert mm.counters.pages_sharing == 3
    mm.check()
    mm.drop(copy)
    assert (mm.counters.pages, mm.counters.frames) == (4, 4)
    mm.check()


@pytest.mark.parametrize("cap", [2, 3, 4])
def test_a_hidden_page_does_not_fill_a_frame(cap: int) -> None:
    mm = MemoryManager(PAGE)
    files = [mm.create(f"/{i}", kind="file", pages=1) for i in range(6)]
    for file in files:
        mm.write(file, 0, page(1))
    mm.reflink(files[0], name="/copy")
    mm.merge(MergePolicy(FILES, max_page_sharing=cap))
    c = mm.counters
    assert (c.pages_shared, c.pages_sharing, c.pages_unshared) == {
        2: (3, 3, 1), 3: (2, 4, 1), 4: (2, 5, 0)
    }[cap]  # fmt: skip
    mm.check()


def test_a_frame_that_only_a_hidden_page_and_a_pin_hold_is_merged_no_longer() -> None:
    mm = MemoryManager(PAGE)
    file = mm.create("/a", kind="file", pages=2)
    mm.write(file, range(2), page(1))
    mm.merge(MergePolicy(FILES))
    copy = mm.reflink(file, name="/b")
    with mm.splice(file, 0) as buffer:
        mm.write(file, range(2), page(2))
        mm.write(copy, range(2), page(3))
        mm.check()
        assert (mm.counters.pages_shared, mm.counters.pages_sharing) == (0, 0)
        assert rows([page(1)]) == [buffer.bytes()]
    assert (mm.counters.frames, mm.counters.pages) == (4, 4)
    mm.check()
