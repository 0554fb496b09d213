"""The access paths one by one: what is copied, what stays shared, what is refused."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from gpudedup.errors import UsageError
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

from .common import PAGE, page, pages, rows


@pytest.fixture
def mm() -> MemoryManager:
    return MemoryManager(PAGE, nodes=2)


@pytest.fixture
def heap(mm: MemoryManager) -> Mapping:
    mapping = mm.create("heap", pages=200, owner="p1")
    mm.write(mapping, range(8), pages(*range(1, 9)))
    return mapping


def test_never_written_pages_are_zero_and_take_no_frame(mm: MemoryManager) -> None:
    heap = mm.create("heap", pages=1 << 30)
    assert not mm.read(heap, [0, 5, (1 << 30) - 1]).any()
    assert mm.counters.frames == mm.counters.pages == 0
    mm.write(heap, (1 << 30) - 1, page(3))
    assert rows(mm.read(heap, [(1 << 30) - 1, 0])) == rows(pages(3, 0))
    assert mm.counters.frames == 1
    mm.check()


def test_parts_of_pages(mm: MemoryManager, heap: Mapping) -> None:
    expected = page(1).copy()
    expected[100:103] = (1, 2, 3)
    mm.write(heap, 0, bytes([1, 2, 3]), offset=100)
    assert rows(mm.read(heap, 0)) == rows([expected])
    assert mm.read(heap, 0, offset=99, size=4).tolist() == [expected[99:103].tolist()]
    mm.write(heap, [150, 151], np.array([[1], [2]], np.uint8), offset=PAGE - 1)
    assert mm.read(heap, [150, 151])[:, -2:].tolist() == [[0, 1], [0, 2]]
    out = np.empty((2, PAGE), np.uint8)
    assert mm.read(heap, [0, 1], out=out) is out
    assert rows(out) == rows([expected, page(2)])
    mm.check()


def test_an_index_that_comes_twice_is_two_calls(mm: MemoryManager, heap: Mapping) -> None:
    child = mm.fork(heap)
    mm.write(heap, [5, 5, 100, 100, 5], pages(1, 2, 3, 4, 5))
    assert rows(mm.read(heap, [5, 100])) == rows(pages(5, 4))
    assert rows(mm.read(child, [5, 100])) == rows(pages(6, 0))
    assert mm.counters.frames == 8 + 2
    mm.write(child, [1, 1], np.array([[1], [2]], np.uint8), offset=0)
    assert mm.read(child, 1)[0, 0] == 2
    assert rows(mm.read(child, 1, offset=1)) == rows([page(2)[1:]])
    mm.punch(heap, [5, 5, 7])
    mm.check()


def test_fork_copies_nothing_until_a_write(mm: MemoryManager, heap: Mapping) -> None:
    child = mm.fork(heap, "p2")
    assert (child.owner, child.pages, child.kind) == ("p2", 200, "anon")
    assert mm.counters.frames == 8
    assert mm.counters.pages == 16
    mm.write(child, 0, page(77))
    assert mm.counters.frames == 9
    mm.write(heap, 0, page(78))
    assert mm.counters.frames == 9, "nobody else was left"
    assert mm.counters.reuses == 1
    assert rows(mm.read(heap, [0, 1])) == rows(pages(78, 2))
    assert rows(mm.read(child, [0, 1])) == rows(pages(77, 2))
    mm.check()
    mm.drop(heap)
    assert rows(mm.read(child, range(3))) == rows(pages(77, 2, 3))
    mm.drop(child)
    assert mm.counters.frames == mm.counters.pages == 0
    mm.check()


def test_truncate_and_grow(mm: MemoryManager, heap: Mapping) -> None:
    child = mm.fork(heap)
    mm.truncate(heap, 3)
    assert mm.counters.pages == 3 + 8
    mm.truncate(heap, 500)
    assert rows(mm.read(heap, [2, 3, 499])) == rows(pages(3, 0, 0))
    assert rows(mm.read(child, range(8))) == rows(pages(*range(1, 9)))
    mm.check()
    mm.truncate(child, 0)
    assert mm.counters.frames == 3
    with pytest.raises(UsageError, match="no page 0, it has 0"):
        mm.read(child, 0)


def test_punch(mm: MemoryManager, heap: Mapping) -> None:
    child = mm.fork(heap)
    mm.punch(heap, [0, 199])
    assert rows(mm.read(heap, [0, 1])) == rows(pages(0, 2))
    assert rows(mm.read(child, [0])) == rows(pages(1))
    mm.punch(child, 0)
    assert mm.counters.frames == 7
    mm.write(heap, 0, b"x", offset=3)
    assert mm.read(heap, 0).tobytes() == b"\0\0\0x" + bytes(PAGE - 4)
    mm.check()


def test_a_file_grows_by_writes_and_is_dirty_until_written_back(mm: MemoryManager) -> None:
    disk: dict[int, bytes] = {}

    def keep(index: Any, data: Any) -> None:
        disk.update(zip(index.tolist(), rows(data), strict=True))

    file = mm.create("/a", kind="file", writeback=keep)
    mm.file_write(file, [4, 1], pages(1, 2))
    assert file.pages == 5
    assert mm.counters.dirty == 2
    assert mm.writeback(file, [0, 1, 1]) == 1
    assert disk == {1: page(2).tobytes()}
    assert mm.writeback(file) == 1
    assert mm.counters.dirty == 0
    assert mm.counters.written_back == 2
    mm.write(file, 1, b"a", offset=0)
    assert mm.counters.dirty == 1
    mm.punch(file, 1)
    assert mm.counters.dirty == 0
    mm.check()


def test_what_was_spliced_does_not_change(mm: MemoryManager, heap: Mapping) -> None:
    buffer = mm.splice(heap, [0, 1, 0, 150])
    assert mm.counters.frames == 8, "nothing is copied"
    mm.write(heap, 0, page(50))
    mm.write(heap, 1, b"z", offset=0)
    mm.write(heap, 150, b"z", offset=0)
    mm.write(heap, 0, page(51))
    mm.check()
    assert buffer.bytes() == pages(1, 2, 1, 0).tobytes()
    mm.drop(heap)
    assert buffer.bytes() == pages(1, 2, 1, 0).tobytes()
    assert mm.counters.frames == 2
    buffer.close()
    buffer.close()
    assert mm.counters.frames == mm.counters.pins == 0
    with pytest.raises(UsageError, match="let go"):
        buffer.bytes()
    mm.check()


def test_a_splice_of_what_a_device_may_write_is_a_copy(mm: MemoryManager, heap: Mapping) -> None:
    with mm.pin(heap, 0, write=True) as pin, mm.splice(heap, 0) as buffer:
        pin.write(page(9))
        assert buffer.bytes() == page(1).tobytes()
        assert rows(mm.read(heap, 0)) == rows([page(9)])
        mm.check()
    assert mm.counters.frames == 8


def test_a_pin_for_writing_breaks_first_and_stays_with_its_page(
    mm: MemoryManager, heap: Mapping
) -> None:
    child = mm.fork(heap)
    pin = mm.pin(heap, [0, 1], write=True)
    assert mm.counters.frames == 10
    pin.write(pages(60, 61))
    assert rows(mm.read(heap, [0, 1])) == rows(pages(60, 61))
    assert rows(mm.read(child, [0, 1])) == rows(pages(1, 2))
    second = mm.fork(heap)
    assert mm.counters.frames == 12, "fork copies pinned pages"
    mm.write(heap, 0, page(62))
    pin.write(b"q", offset=5)
    assert rows(pin.read()) == rows(mm.read(heap, [0, 1]))
    assert rows(mm.read(second, [0, 1])) == rows(pages(60, 61))
    mm.check()
    pin.unpin()
    pin.unpin()
    for mapping in (heap, child, second):
        mm.drop(mapping)
    assert mm.counters.frames == 0
    mm.check()


def test_a_pin_for_reading_keeps_what_is_shared_shared(mm: MemoryManager, heap: Mapping) -> None:
    child = mm.fork(heap)
    pin = mm.pin(heap, 0)
    assert mm.counters.frames == 8
    mm.write(heap, 0, page(70))
    mm.write(child, 0, page(71))
    assert rows(pin.read()) == rows([page(1)]), "not what the other owner wrote"
    assert mm.counters.frames == 10
    mm.check()
    pin.unpin()
    assert mm.counters.frames == 9


def test_a_pin_for_reading_sees_its_owners_stores(mm: MemoryManager, heap: Mapping) -> None:
    with mm.pin(heap, 0) as pin:
        mm.write(heap, 0, page(70))
        assert rows(pin.read()) == rows([page(70)])
        with pytest.raises(UsageError, match="for reading"):
            pin.write(page(1))
    with pytest.raises(UsageError, match="let go"):
        pin.read()


def test_a_pin_outlives_its_mapping(mm: MemoryManager, heap: Mapping) -> None:
    pin = mm.pin(heap, [0, 1], write=True)
    mm.drop(heap)
    other = mm.create("other", pages=500)
    mm.write(other, range(500), page(9))
    assert rows(pin.read()) == rows(pages(1, 2))
    pin.write(page(5))
    assert rows(mm.read(other, range(500))) == rows([page(9)] * 500)
    pin.unpin()
    assert mm.counters.frames == 500
    mm.check()


def test_writing_through_a_pin_makes_a_file_dirty(mm: MemoryManager) -> None:
    file = mm.create("/a", kind="file", pages=4)
    pin = mm.pin(file, [0, 1], write=True)
    mm.writeback(file)
    pin.write(page(1))
    pin.unpin()
    assert mm.counters.dirty == 2
    mm.check()


def test_migrate_takes_all_aliases_along(mm: MemoryManager, heap: Mapping) -> None:
    child = mm.fork(heap)
    with mm.pin(heap, 3):
        moved = mm.migrate(child, [0, 1, 1, 3, 100], node=1)
    assert moved.tolist() == [True, True, True, False, True]
    assert mm.counters.frames == 8
    assert rows(mm.read(heap, range(8))) == rows(pages(*range(1, 9)))
    assert rows(mm.read(child, range(8))) == rows(pages(*range(1, 9)))
    mm.check()


def test_mappings_of_one_number_after_another(mm: MemoryManager) -> None:
    for round in range(5):
        mapping = mm.create("m", pages=130)
        assert not mm.read(mapping, range(130)).any()
        mm.write(mapping, range(130), page(round + 1))
        mm.drop(mapping)
        with pytest.raises(UsageError, match="was dropped"):
            mm.read(mapping, 0)
    assert mm.counters.frames == 0
    mm.check()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda mm, m: mm.read(m, 200), "no page 200, it has 200"),
        (lambda mm, m: mm.read(m, [0, -1]), "no page -1"),
        (lambda mm, m: mm.read(m, [2**63], node=0), "no mapping has so many"),
        (lambda mm, m: mm.read(m, 0.5), "not integers"),
        (lambda mm, m: mm.read(m, [[1]]), "shape"),
        (lambda mm, m: mm.read(m, 0, node=2), "node 2"),
        (lambda mm, m: mm.read(m, 0, offset=500, size=13), "13 bytes at 500"),
        (lambda mm, m: mm.read(m, 0, out=np.empty((2, PAGE), np.uint8)), "out"),
        (lambda mm, m: mm.write(m, 0, b"abc"), "3 bytes at 0"),
        (lambda mm, m: mm.write(m, 0, b"abc", offset=510), "3 bytes at 510"),
        (lambda mm, m: mm.write(m, [0, 1], pages(1, 2, 3)), "shape"),
        (lambda mm, m: mm.write(m, 0, [1.5] * PAGE), "float64"),
        (lambda mm, m: mm.file_write(m, 0, page(1)), "no file"),
        (lambda mm, m: mm.migrate(m, 0, node=9), "node 9"),
        (lambda mm, m: mm.truncate(m, -1), "-1 pages"),
        (lambda mm, m: mm.punch(m, 200), "no page 200"),
        (lambda mm, m: mm.pin(m, 200), "no page 200"),
        (lambda mm, m: mm.splice(m, 200), "no page 200"),
        (lambda mm, m: mm.create("x", kind="heap"), "kind 'heap'"),
        (lambda mm, m: mm.create("x", node=2), "node 2"),
        (lambda mm, m: mm.fork(mm.create("x", kind="file")), "is a file"),
        (lambda mm, m: MemoryManager(PAGE).read(m, 0), "another manager"),
        (lambda mm, m: MemoryManager(PAGE, nodes=0), "0 nodes"),
        (lambda mm, m: MemoryManager(1000), "page size 1000"),
    ],
)  # fmt: skip
def test_what_is_refused(mm: MemoryManager, heap: Mapping, call: Any, reason: str) -> None:
    before = mm.counters
    with pytest.raises(UsageError, match=reason):
        call(mm, heap)
    mm.check()
    assert mm.counters == before
    assert rows(mm.read(heap, range(8))) == rows(pages(*range(1, 9)))


def test_many_frames_grow_the_pools(mm: MemoryManager) -> None:
    big = mm.create("big", pages=300_000, node=1)
    mm.write(big, range(300_000), np.zeros(PAGE, np.uint8))
    mm.write(big, [0, 299_999], pages(1, 2))
    assert mm.counters.frames == 300_000
    assert rows(mm.read(big, [0, 1, 299_999])) == rows(pages(1, 0, 2))
    mm.check()


def test_a_manager_goes_with_the_last_name_of_it() -> None:
    """Dropping the last reference frees its memory, without the collector of cycles."""
    mm = MemoryManager(PAGE, devices=1, device_engine="cpu")
    heap = mm.create("heap", pages=8)
    mm.write(heap, range(8), page(1))
    mm.device(0).atomic_add(heap, [1], 0, 1)
    held = mm.acquire_exclusive(heap, [3])
    held.write([3], page(2))
    mm.merge()
    gone = weakref.ref(mm)
    gc.disable()
    try:
        del mm, held
        assert gone() is None
    finally:
        gc.enable()
