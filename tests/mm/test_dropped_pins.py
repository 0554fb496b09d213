"""Pins and buffers that are dropped without being released: the garbage collector unpins."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

from .common import PAGE, Meanwhile, page, pages, rows

HOLD: dict[str, Callable[[MemoryManager, Mapping], Any]] = {
    "Pin": lambda mm, m: mm.pin(m, range(3)),
    "Pin for writing": lambda mm, m: mm.pin(m, range(3), write=True),
    "Buffer": lambda mm, m: mm.splice(m, range(3)),
}


@pytest.mark.parametrize("kind", HOLD)
def test_a_dropped_holder_unpins(kind: str) -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=4)
    mm.write(heap, range(4), page(1))
    held = HOLD[kind](mm, heap)
    assert mm.merge().pinned == 3
    with pytest.warns(ResourceWarning, match=f"3 pages of 'heap' .* {kind.split()[0]} was dropped"):
        del held
    assert mm.counters.pins == 0
    mm.check()
    assert mm.merge().merged == 3
    mm.check()


@pytest.mark.parametrize("kind", HOLD)
def test_a_frame_that_only_a_dropped_holder_had_is_freed(kind: str) -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=3)
    mm.write(heap, range(3), page(1))
    held = HOLD[kind](mm, heap)
    mm.punch(heap, range(3))
    assert mm.counters.frames == 3
    with pytest.warns(ResourceWarning):
        del held
    mm.read(heap, 0)
    assert mm.counters.frames == 0
    mm.check()


def test_what_was_pinned_for_writing_counts_as_written() -> None:
    mm = MemoryManager(PAGE)
    file = mm.create("/a", kind="file", pages=2)
    mm.write(file, range(2), pages(1, 2))
    pin = mm.pin(file, 0, write=True)
    assert mm.writeback(file) == 2
    pin.write(page(9))
    with pytest.warns(ResourceWarning):
        del pin
    assert mm.counters.dirty == 1
    assert mm.writeback(file) == 1
    assert rows(mm.read(file, 0)) == rows([page(9)])
    mm.check()


def test_what_was_released_warns_of_nothing() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=3)
    for hold in HOLD.values():
        with hold(mm, heap):
            pass
    mm.pin(heap, [])
    gc.collect()
    assert mm.counters.pins == 0


def test_a_cycle_collected_under_the_lock_waits_for_the_next_call() -> None:
    """The collector may run at any line of any thread, also of one that is in a pass."""
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=3)
    mm.write(heap, range(3), page(1))
    cycle: list[Any] = [mm.pin(heap, range(3))]
    cycle.append(cycle)
    del cycle
    with mm.lock:
        with pytest.warns(ResourceWarning):
            gc.collect()
        assert mm.memory.state.pins.sum() == 3, "nothing changes in the midst of a call"
    mm.read(heap, 0)
    assert mm.memory.state.pins.sum() == 0
    mm.check()


def test_a_holder_dropped_by_another_thread_does_not_wait_for_the_lock() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=3)
    mm.write(heap, range(3), page(1))
    held = [mm.pin(heap, range(3))]
    other = threading.Thread(target=held.clear)

    def dropped() -> None:
        other.start()
        other.join(60)

    with mm.lock:
        with pytest.warns(ResourceWarning):
            dropped()
        assert not other.is_alive()
    assert mm.counters.pins == 0
    mm.check()


def test_a_holder_dropped_during_a_merge() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=6)
    mm.write(heap, range(6), page(1))
    held: list[Any] = [mm.splice(heap, range(3))]
    with pytest.warns(ResourceWarning):
        report = mm.merge(engine=Meanwhile(held.clear))
    assert (report.pinned, report.merged) == (3, 2)
    assert mm.merge().merged == 3
    mm.check()


def test_a_dropped_holder_keeps_no_manager_alive() -> None:
    mm = MemoryManager(PAGE)
    heap = mm.create("heap", pages=3)
    mm.write(heap, range(3), page(1))
    held = mm.pin(heap, range(3))
    gone = weakref.ref(mm)
    gc.disable()
    try:
        del mm
        with pytest.warns(ResourceWarning) as told:
            del held
        told.list.clear()
        assert gone() is None
    finally:
        gc.enable()
