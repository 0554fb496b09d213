"""Writeback of dirty file pages: by call, before a merge, and where it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpudedup.errors import UsageError
from gpudedup.mm import writeback
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.policy import MergePolicy

from .common import PAGE, page, pages, rows

FILES = MergePolicy(kinds=("anon", "file"))


def test_a_call_takes_little_memory_and_names_each_page_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mm = MemoryManager(PAGE)
    calls: list[list[int]] = []
    file = mm.create("/a", kind="file", writeback=lambda index, data: calls.append(index.tolist()))
    mm.file_write(file, range(8), page(1))
    monkeypatch.setattr(writeback, "WRITEBACK_BYTES", 3 * PAGE + 1)
    assert mm.writeback(file, [7, 2, 7, 5, 2, 0]) == 4
    assert calls == [[7, 2, 5], [0]]
    assert mm.writeback(file) == 4
    assert calls[2:] == [[1, 3, 4], [6]]
    assert (mm.counters.dirty, mm.counters.written_back) == (0, 8)
    mm.check()


def test_a_writeback_cannot_call_its_manager() -> None:
    """It would see pages of which some are clean and not yet written."""
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=1)
    calls: list[Callable[[], object]] = [
        lambda: mm.read(heap, 0), lambda: mm.write(heap, 0, page(1)), lambda: mm.fork(heap),
        lambda: mm.create("new"), lambda: mm.writeback(file), lambda: mm.drop(heap),
    ]  # fmt: skip

    def back(index: Any, data: Any) -> None:
        calls.pop()()

    file = mm.create("/a", kind="file", writeback=back)
    mm.file_write(file, range(2), page(1))
    while calls:
        with pytest.raises(UsageError, match=r"^a writeback cannot call its manager$"):
            mm.writeback(file)
        assert mm.counters.dirty == 2
    assert mm.mappings == [heap, file]
    mm.check()


def test_a_writeback_that_fails_leaves_pages_dirty() -> None:
    mm = MemoryManager(PAGE)

    def full(index: Any, data: Any) -> None:
        raise OSError("disk full")

    file = mm.create("/a", kind="file", writeback=full)
    mm.file_write(file, [0, 1], pages(1, 2))
    with pytest.raises(OSError, match="disk full"):
        mm.writeback(file)
    assert mm.counters.dirty == 2
    assert mm.counters.written_back == 0
    mm.check()


def test_dirty_file_pages_are_written_back_first() -> None:
    disk: dict[int, bytes] = {}
    mm = MemoryManager(PAGE)

    def keep(index: Any, data: Any) -> None:
        disk.update(zip(index.tolist(), rows(data), strict=True))

    file = mm.create("/a", kind="file", writeback=keep)
    mm.file_write(file, range(4), pages(1, 2, 1, 3))
    assert mm.merge().pages == 0, "files take part only if the policy says so"
    report = mm.merge(FILES)
    assert report.written_back == 2
    assert disk == {0: page(1).tobytes(), 2: page(1).tobytes()}
    assert mm.counters.dirty == 2
    mm.check()
    mm.file_write(file, 0, b"?", offset=0)
    assert mm.counters.dirty == 3
    assert rows(mm.read(file, 2)) == rows([page(1)])


def test_a_writeback_that_is_interrupted_ends_the_merge_before_it_shares_anything() -> None:
    mm = MemoryManager(PAGE)

    def interrupted(index: Any, data: Any) -> None:
        raise KeyboardInterrupt

    file = mm.create("/a", kind="file", writeback=interrupted)
    mm.file_write(file, range(4), page(1))
    with pytest.raises(KeyboardInterrupt):
        mm.merge(FILES)
    assert mm.counters.dirty == mm.counters.frames == 4
    mm.check()


def test_a_file_that_cannot_be_written_back_is_left_alone() -> None:
    """Its pages stay dirty, and stay its own; those of all others merge."""
    mm = MemoryManager(PAGE)
    written: list[int] = []

    def full(index: Any, data: Any) -> None:
        raise OSError("no space")

    def keep(index: Any, data: Any) -> None:
        written.extend(index.tolist())

    bad, good = (
        mm.create(name, kind="file", pages=4, writeback=writeback)
        for name, writeback in (("/bad", full), ("/good", keep))
    )
    for mapping in (bad, good):
        mm.write(mapping, range(4), pages(1, 1, 2, 3))
    heap = mm.create("heap", pages=3)
    mm.write(heap, range(3), pages(1, 2, 4))
    report = mm.merge(MergePolicy(kinds=("anon", "file")))
    mm.check()
    assert report.errors == ["/bad: OSError: no space"]
    assert (report.unwritten, report.written_back, sorted(written)) == (4, 4, [0, 1, 2, 3])
    assert report.counters.dirty == 4
    assert report.counters.pages_sharing == 3
    assert rows(mm.read(bad, range(4))) == rows(pages(1, 1, 2, 3))
