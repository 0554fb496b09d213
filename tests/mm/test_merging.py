"""Merging: truncation, KSM's closed form, changes during a merge, and unmerging."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.errors import UsageError
from gpudedup.mm import merging
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.passes import plan
from gpudedup.mm.policy import MergePolicy
from gpudedup.mm.state.arrays import Page

from .closed_form import COUNTERS, closed_form
from .common import PAGE, Meanwhile, page, pages, rows

FILES = MergePolicy(kinds=("anon", "file"))


def ksm(mm: MemoryManager) -> dict[str, int]:
    found = asdict(mm.counters)
    return {name: found[name] for name in COUNTERS}


def test_truncate_of_a_merged_file_page() -> None:
    """Wilcox's objection: truncate's look-up loop spins if ``page->mapping`` is not the file's."""
    mm = MemoryManager(PAGE)
    file, heap = mm.create("/a", kind="file"), mm.create("heap", pages=4)
    mm.file_write(file, range(6), pages(1, 2, 3, 1, 2, 3))
    mm.write(heap, range(4), pages(1, 2, 3, 4))
    report = mm.merge(FILES)
    assert (report.merged, report.written_back) == (6, 6)
    assert mm.counters.frames == 4
    mm.truncate(file, 4)
    mm.check()
    assert (mm.counters.pages_shared, mm.counters.pages_sharing) == (3, 4)
    mm.truncate(file, 0)
    mm.check()
    assert (mm.counters.pages_shared, mm.counters.pages_sharing) == (3, 0)
    assert rows(mm.read(heap, range(4))) == rows(pages(1, 2, 3, 4))
    with pytest.raises(UsageError, match="no page 0"):
        mm.read(file, 0)
    mm.truncate(file, 6)
    assert not mm.read(file, range(6)).any()
    mm.truncate(heap, 0)
    assert mm.counters.frames == 0
    mm.check()


def test_truncate_of_the_file_alone_keeps_what_others_share() -> None:
    mm = MemoryManager(PAGE)
    files = [mm.create(f"/{i}", kind="file") for i in range(3)]
    for file in files:
        mm.file_write(file, range(100), np.stack([page(i) for i in range(100)]))
    mm.merge(FILES)
    assert mm.counters.frames == 100
    mm.truncate(files[0], 50)
    mm.punch(files[1], range(25, 75))
    mm.drop(files[2])
    mm.check()
    assert rows(mm.read(files[0], range(50))) == [page(i).tobytes() for i in range(50)]
    assert rows(mm.read(files[1], [24, 25, 74, 75])) == rows(pages(24, 0, 0, 75))
    assert mm.counters.frames == 50 + 25


GOLDEN = {
    256: (1, 255, 0, 0, 0),
    257: (1, 255, 1, 0, 0),
    258: (2, 256, 0, 1, 2),
    513: (2, 510, 1, 1, 2),
    514: (3, 511, 0, 1, 3),
}
"""KSM's shared, sharing, unshared, chains and dups, by the number of equal pages."""


@pytest.mark.parametrize("copies", GOLDEN)
def test_golden_rows(copies: int) -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=copies)
    mm.write(heap, range(copies), page(1))
    report = mm.merge()
    c = mm.counters
    found = (
        c.pages_shared, c.pages_sharing, c.pages_unshared, c.stable_node_chains, c.stable_node_dups
    )  # fmt: skip
    assert found == GOLDEN[copies]
    assert c.frames == c.pages_shared + c.pages_unshared == copies - report.frames_freed
    mm.check()
    assert mm.merge().merged == 0, "a second merge finds nothing more"
    assert mm.counters == report.counters
    # Stores break COW for all pages of a frame but the last: chains dissolve with their frames.
    mm.write(heap, range(copies), page(2))
    c = mm.counters
    assert c.pages_shared == c.pages_sharing == c.stable_node_chains == c.stable_node_dups == 0
    mm.check()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 300),
    contents=st.integers(1, 60),
    cap=st.sampled_from([2, 3, 7, 256]),
    use_zero_pages=st.booleans(),
    within_domain=st.booleans(),
    across=st.booleans(),
)
def test_random_populations(
    seed: int,
    count: int,
    contents: int,
    cap: int,
    use_zero_pages: bool,
    within_domain: bool,
    across: bool,
) -> None:
    rng = np.random.default_rng(seed)
    mm = MemoryManager(PAGE, nodes=2)
    policy = MergePolicy(("anon",), within_domain, cap, across, use_zero_pages)
    told = []
    held = []
    for at in range(4):
        domain, node = "red" if at % 2 else "blue", at // 2
        mapping = mm.create("m", pages=count, domain=domain, node=node)
        made = rng.integers(0, contents, count)
        mm.write(mapping, range(count), pages(*made.tolist()))
        held.append((mapping, made))
        told += [
            ((c, domain if within_domain else "", 0 if across else node), (at, i), c == 0)
            for i, c in enumerate(made.tolist())
        ]
    mm.create("file", kind="file")
    report = mm.merge(policy)
    assert ksm(mm) == closed_form(told, cap, use_zero_pages)
    assert report.written == report.pinned == report.unequal == 0
    assert report.pages == report.frames == 4 * count
    c = mm.counters
    assert c.frames == 4 * count - report.frames_freed == c.pages_shared + c.pages_unshared
    mm.check()
    for mapping, made in held:
        assert rows(mm.read(mapping, range(count))) == [page(n).tobytes() for n in made]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), forks=st.integers(0, 4), use_zero_pages=st.booleans())
def test_forked_populations(seed: int, forks: int, use_zero_pages: bool) -> None:
    """KSM counts mappings; a content in one frame only is not merged, however often mapped."""
    rng = np.random.default_rng(seed)
    mm = MemoryManager(PAGE)
    first = mm.create("m", pages=150)
    mm.write(first, range(150), np.stack([page(c) for c in rng.integers(0, 80, 150)]))
    people = [first, *(mm.fork(first) for _ in range(forks))]
    for mapping in people:
        index = rng.permutation(150)[: rng.integers(0, 40)]
        mm.write(mapping, index, pages(*rng.integers(0, 99, len(index)).tolist()))
    before = [mm.read(mapping, range(150)) for mapping in people]
    numbers = mm.memory.state.frame
    told = []
    for mapping, held in zip(people, before, strict=True):
        found, _ = mm.memory.locate(mapping, np.arange(150))
        told += [
            (row.tobytes(), int(numbers[p]), not row.any())
            for p, row in zip(found, held, strict=True)
        ]
    mm.merge(MergePolicy(use_zero_pages=use_zero_pages))
    assert ksm(mm) == closed_form(told, 256, use_zero_pages)
    mm.check()
    for mapping, held in zip(people, before, strict=True):
        assert np.array_equal(mm.read(mapping, range(150)), held)


def test_later_pages_join_merged_frames_that_have_room() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=1000)
    at = 0
    for more in (3, 1, 5, 1, 1, 20, 9):
        mm.write(heap, range(at, at + more), page(1))
        at += more
        mm.merge(MergePolicy(max_page_sharing=8))
        expected = closed_form([(1, i, False) for i in range(at)], 8)
        assert ksm(mm) == expected
        mm.check()


def test_a_store_breaks_one_page_and_leaves_the_others() -> None:
    mm = MemoryManager(PAGE)
    a, b = mm.create("a", pages=3), mm.create("b", pages=3)
    for m in (a, b):
        mm.write(m, range(3), pages(1, 2, 2))
    mm.merge()
    assert mm.counters.frames == 2
    mm.write(a, 1, b"!", offset=0)
    mm.write(b, 0, page(9))
    mm.check()
    assert rows(mm.read(b, range(3))) == rows(pages(9, 2, 2))
    assert mm.read(a, 1)[0, 0] == ord("!")
    assert (mm.counters.pages_shared, mm.counters.pages_sharing) == (2, 2)
    mm.write(a, 0, page(8))
    assert (mm.counters.pages_shared, mm.counters.pages_sharing) == (1, 2)
    assert mm.counters.frames == 4
    mm.check()


def test_a_page_written_meanwhile_is_left_alone() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=6)
    mm.write(heap, range(6), page(1))

    def act() -> None:
        mm.write(heap, 0, page(2))
        mm.write(heap, 1, page(1))
        mm.punch(heap, 2)

    report = mm.merge(engine=Meanwhile(act))
    assert (report.written, report.merged) == (3, 2)
    assert rows(mm.read(heap, range(6))) == rows(pages(2, 1, 0, 1, 1, 1))
    assert mm.counters.pages_volatile == 2
    mm.check()
    assert mm.merge().merged == 1


def test_everything_may_happen_meanwhile() -> None:
    mm = MemoryManager(PAGE, nodes=2)
    heap, other = mm.create("heap", pages=9), mm.create("other", pages=9)
    for m in (heap, other):
        mm.write(m, range(9), page(1))
    holders: list[Any] = []

    def act() -> None:
        holders.append(mm.fork(heap))
        holders.append(mm.pin(heap, 0))
        holders.append(mm.pin(heap, 1, write=True))
        holders.append(mm.splice(heap, 2))
        mm.migrate(heap, 3, node=1)
        mm.drop(other)
        replaced = mm.create("new", pages=9)
        mm.write(replaced, range(9), page(3))

    report = mm.merge(engine=Meanwhile(act))
    mm.check()
    # Pages 0 and 2 are pinned; 1 was pinned for write; 3 migrated; ``other`` was dropped.
    assert (report.written, report.pinned, report.merged) == (9 + 2, 2, 4)
    assert rows(mm.read(heap, range(9))) == [page(1).tobytes()] * 9
    for held in holders:
        if not isinstance(held, Mapping):
            held.__exit__()


def test_digests_only_nominate() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=400)
    made = np.random.default_rng(5).integers(1, 100, 400)
    mm.write(heap, range(400), np.stack([page(c) for c in made]))
    report = mm.merge(engine=Meanwhile(digest_bits=4))
    assert report.unequal > 100
    assert rows(mm.read(heap, range(400))) == [page(c).tobytes() for c in made]
    mm.check()


def test_pinned_pages_never_merge() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=5)
    mm.write(heap, range(5), page(1))
    with mm.pin(heap, 0, write=True) as pin, mm.splice(heap, 1):
        report = mm.merge()
        assert (report.pinned, report.merged) == (2, 2)
        pin.write(page(2))
        assert rows(mm.read(heap, range(5))) == rows(pages(2, 1, 1, 1, 1))
        mm.check()
    assert mm.merge().merged == 1


def test_domains_stay_apart_even_where_an_earlier_merge_mixed_them() -> None:
    mm = MemoryManager(PAGE)
    red, blue = (mm.create(d, pages=8, domain=d) for d in ("red", "blue"))
    for m in (red, blue):
        mm.write(m, range(3), page(1))
    mm.merge()
    assert mm.counters.frames == 1
    for m in (red, blue):
        mm.write(m, range(3, 6), page(1))
    mm.merge(MergePolicy(within_domain=True))
    assert mm.counters.frames == 3, "the mixed one, and one of each"
    mm.check()
    for m in (red, blue):
        mm.write(m, range(6, 8), page(1))
    mm.merge(MergePolicy(within_domain=True))
    assert mm.counters.frames == 3
    assert mm.counters.stable_node_chains == 0
    mm.check()


def test_a_mapping_made_meanwhile_takes_no_part_though_it_has_an_old_number() -> None:
    """A file takes the numbers of a dropped heap, of the mapping and of its pages."""
    mm = MemoryManager(PAGE)
    heap, other = (mm.create(name, pages=4) for name in ("heap", "other"))
    mm.write(heap, range(4), pages(1, 2, 3, 4))
    mm.write(other, range(4), pages(1, 2, 3, 4))
    made: list[Mapping] = []

    def replaced() -> None:
        mm.drop(heap)
        made.append(mm.create("/a", kind="file"))
        mm.file_write(made[0], range(4), pages(1, 1, 3, 4))
        assert made[0].number == heap.number

    report = mm.merge(engine=Meanwhile(replaced))
    assert (report.merged, report.written_back) == (0, 0)
    flags = mm.memory.state.flags[mm.memory.locate(made[0], np.arange(4))[0]]
    assert not (flags & Page.UNSHARED.value).any()
    assert mm.counters.pages_volatile == 0, "a dropped page is none"
    mm.check()


def test_a_mapping_made_between_two_holds_of_the_lock_is_not_surveyed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is made as the survey asks for the lock a second time."""
    monkeypatch.setattr(merging, "SURVEY_FRAMES", 1)
    mm = MemoryManager(PAGE)
    keeper = mm.create("keeper", pages=2)
    heap = mm.create("heap", pages=70)
    mm.write(heap, range(70), pages(*range(2, 72)))
    mm.write(keeper, range(2), page(1))
    files: list[Mapping] = []
    survey = plan.survey

    def replace_after(*arguments: Any) -> Any:
        found = survey(*arguments)
        if not files:
            mm.drop(heap)
            files.append(mm.create("/a", kind="file"))
            mm.file_write(files[0], range(70), page(1))
        return found

    monkeypatch.setattr(plan, "survey", replace_after)
    mm.merge()
    assert files[0].number == heap.number
    assert len({r["frame"] for r in mm.aliases().to_pylist() if r["mapping"] == heap.number}) == 70
    mm.check()


def test_unmerge() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=100)
    mm.write(heap, range(100), np.stack([page(i % 5) for i in range(100)]))
    mm.merge(MergePolicy(max_page_sharing=8, use_zero_pages=True))
    assert mm.counters.ksm_zero_pages == 20
    assert not mm.unmerge(heap, range(10)).any()
    mm.check()
    assert mm.counters.ksm_zero_pages == 18
    with mm.pin(heap, 11):
        assert mm.unmerge(heap, [10, 11, 12]).tolist() == [False, True, False]
    mm.unmerge(heap, range(heap.pages))
    mm.check()
    assert mm.counters.frames == 100
    assert sum(ksm(mm).values()) == 0
    assert rows(mm.read(heap, range(100))) == [page(i % 5).tobytes() for i in range(100)]


def test_zero_pages_without_frames() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=50)
    mm.write(heap, range(20), page(0))
    mm.write(heap, 20, page(1))
    report = mm.merge(MergePolicy(use_zero_pages=True))
    assert (report.zeroed, report.frames_freed, mm.counters.frames) == (20, 20, 1)
    child = mm.fork(heap)
    assert mm.counters.ksm_zero_pages == 40
    mm.write(child, 3, b"x", offset=9)
    mm.punch(child, 4)
    mm.truncate(heap, 10)
    assert mm.counters.ksm_zero_pages == 10 + 18
    assert not mm.read(heap, range(10)).any()
    mm.check()


def test_what_a_policy_refuses() -> None:
    with pytest.raises(UsageError, match="max_page_sharing 1"):
        MergePolicy(max_page_sharing=1)
    with pytest.raises(UsageError, match="kind 'heap'"):
        MergePolicy(kinds=("anon", "heap"))


def test_nothing_to_merge() -> None:
    mm = MemoryManager(PAGE)
    assert mm.merge().pages == 0
    mapping: Mapping = mm.create("m", pages=10)
    mm.write(mapping, range(10), np.stack([page(i + 1) for i in range(10)]))
    report = mm.merge()
    assert (report.pages, report.frames, report.merged) == (10, 10, 0)
    assert mm.counters.pages_unshared == 10
    mm.write(mapping, [0, 1, 1], page(3))
    assert mm.counters.pages_unshared == 8
    mm.check()


def test_a_merged_frame_that_only_a_pin_keeps_is_no_merged_one() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=2)
    mm.write(heap, [0, 1], page(1))
    mm.merge()
    with mm.pin(heap, 0) as pin:
        mm.write(heap, [0, 1], page(2))
        mm.check()
        assert rows(pin.read()) == [page(1).tobytes()]
        assert (mm.counters.pages_shared, mm.counters.pages_sharing) == (0, 0)
    mm.check()
    assert mm.counters.frames == 2
