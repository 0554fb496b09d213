"""What is timed of the manager is right, and what is wrong is noticed."""

from __future__ import annotations

from typing import Any

import pytest

from gpudedup.errors import WrongResultError
from gpudedup.measuring.manager import Breaks, Merges, Single
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.policy import MergePolicy

SIZE = 1 << 20


def test_breaks_copy_every_page() -> None:
    work = Breaks(SIZE)
    work.check()
    before = work.mm.counters.new_frames
    found = work.compare(2)
    # Twice two kinds of breaks, and a round before, untimed.
    assert work.mm.counters.new_frames - before == 3 * 2 * work.n
    assert (work.other == work.whole).all()
    assert len(work.mm.mappings) == 1
    assert set(found.ratios) == {f"{name} / page copy" for name in list(found.seconds)[1:]}
    work.mm.check()


def test_operations_copy_nothing() -> None:
    work = Single(SIZE)
    work.check()
    before = work.mm.counters.new_frames
    for operation in work.candidates().values():
        operation()
    assert work.mm.counters.new_frames == before
    assert set(work.mm.read(work.heap, range(work.n), size=8, offset=16).ravel()) == {3}


def test_merges() -> None:
    # More zero pages than one frame may have aliases.
    work = Merges(8 << 20)
    assert (work.ids == 0).sum() > MergePolicy().max_page_sharing
    work.check()
    assert not work.reports
    found = work.compare(3)
    moved = work.reports[-1].merged
    assert found.case["moved"] == moved > 0
    assert found.seconds["apply"] == [report.seconds["apply_s"] for report in work.reports[1:]]
    assert {len(samples) for samples in found.seconds.values()} == {3}


@pytest.mark.parametrize("work", [Breaks, Single, Merges])
def test_a_wrong_byte_is_noticed(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    right = MemoryManager.read

    def wrong(self: MemoryManager, *given: Any, **named: Any) -> Any:
        found = right(self, *given, **named)
        found[-1, -1] ^= 1
        return found

    made = work(SIZE)
    monkeypatch.setattr(MemoryManager, "read", wrong)
    with pytest.raises(WrongResultError, match="the first 255"):
        made.check()


def test_a_merge_that_leaves_out_pages_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MemoryManager.merge

    def few(self: MemoryManager, *, engine: Any) -> Any:
        return right(self, MergePolicy(max_page_sharing=2), engine=engine)

    monkeypatch.setattr(MemoryManager, "merge", few)
    with pytest.raises(WrongResultError, match="a merge freed "):
        Merges(SIZE).check()
