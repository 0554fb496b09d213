"""Exclusive access: its owner, the touches that revoke it, and callbacks that raise or hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpudedup.errors import BusyError, RevokedError, ThreadError, UsageError
from gpudedup.mm import grants
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

from .common import PAGE, page, pages, rows


@pytest.fixture
def mm() -> MemoryManager:
    return MemoryManager(PAGE, nodes=2)


@pytest.fixture
def heap(mm: MemoryManager) -> Mapping:
    mapping = mm.create("heap", pages=100)
    mm.write(mapping, range(8), pages(*range(1, 9)))
    return mapping


class Told:
    """An ``on_revoke`` callback that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Mapping, list[int]]] = []

    def __call__(self, mapping: Mapping, index: Any) -> None:
        self.calls.append((mapping, index.tolist()))


def test_the_owner_writes_and_adds(mm: MemoryManager, heap: Mapping) -> None:
    child = mm.fork(heap)
    held = mm.acquire_exclusive(heap, [0, 1, 1, 50])
    with pytest.raises(UsageError, match="word 64"):
        held.atomic_add(0, 64, 1)
    mm.check()
    assert mm.counters.frames == 8 + 3
    held.write(0, page(20))
    held.write([1], b"abc", offset=3)
    before = held.atomic_add([50, 50, 50], [0, 0, 1], [5, -1, 7])
    assert before.tolist() == [0, 5, 0]
    assert held.read(50).view(np.uint64)[0, :3].tolist() == [4, 7, 0]
    assert rows(mm.read(child, [0, 1, 50])) == rows(pages(1, 2, 0)), "no touch: another frame"
    assert mm.counters.revoked == 0
    held.release()
    held.release()
    assert rows(mm.read(heap, 0)) == rows([page(20)])
    with pytest.raises(RevokedError, match="page 0"):
        held.read([0])
    mm.check()


TOUCHES: dict[str, Callable[[MemoryManager, Mapping], Any]] = {
    "read": lambda mm, m: mm.read(m, [0, 1]),
    "write": lambda mm, m: mm.write(m, [1, 0, 1], page(30)),
    "pin": lambda mm, m: mm.pin(m, [0, 1]).unpin(),
    "splice": lambda mm, m: mm.splice(m, [0, 1]).close(),
    "punch": lambda mm, m: mm.punch(m, [0, 1]),
    "migrate": lambda mm, m: mm.migrate(m, [0, 1], node=1),
    "replicate": lambda mm, m: mm.replicate(m, [0, 1], node=1),
    "cache": lambda mm, m: mm.cache(m, [0, 1], node=1),
    "another": lambda mm, m: mm.acquire_exclusive(m, [1, 0]).release(),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_any_touch_by_others_ends_it_and_the_owner_is_told(
    mm: MemoryManager, heap: Mapping, touch: str
) -> None:
    told = Told()
    held = mm.acquire_exclusive(heap, [0, 1, 2], on_revoke=told)
    held.write([0, 1, 2], pages(11, 12, 13))
    TOUCHES[touch](mm, heap)
    assert told.calls == [(heap, [0, 1])]
    assert mm.counters.revoked == 2
    with pytest.raises(RevokedError):
        held.write([2, 0], pages(1, 1))
    assert rows(held.read(2)) == rows([page(13)])
    mm.check()
    expected = {"write": pages(30, 30, 13), "punch": pages(0, 0, 13)}.get(touch, pages(11, 12, 13))
    assert rows(mm.read(heap, [0, 1, 2])) == rows(expected)
    assert told.calls[1:] == [(heap, [2])]
    mm.check()


def test_fork_truncate_and_drop_end_it_too(mm: MemoryManager, heap: Mapping) -> None:
    told = Told()
    held = mm.acquire_exclusive(heap, [0, 3, 7], on_revoke=told)
    held.write(0, page(40))
    mm.truncate(heap, 5)
    assert told.calls == [(heap, [7])]
    child = mm.fork(heap)
    assert told.calls[1:] == [(heap, [0, 3])]
    assert rows(mm.read(child, 0)) == rows([page(40)])
    mm.acquire_exclusive(heap, [0], on_revoke=told)
    mm.check()
    mm.drop(heap)
    assert told.calls[2:] == [(heap, [0])]
    mm.check()


def test_a_fork_ends_a_grant_that_took_a_page_of_another(mm: MemoryManager, heap: Mapping) -> None:
    first, second = Told(), Told()
    mm.acquire_exclusive(heap, [0, 1], on_revoke=first)
    mm.acquire_exclusive(heap, [0], on_revoke=second)
    mm.fork(heap)
    assert first.calls == [(heap, [0]), (heap, [1])]
    assert second.calls == [(heap, [0])]
    assert not mm.grants._grants


def test_merging_is_no_touch(mm: MemoryManager, heap: Mapping) -> None:
    told = Told()
    mm.write(heap, [0, 1, 2], page(1))
    held = mm.acquire_exclusive(heap, 0, on_revoke=told)
    assert mm.merge().merged == 1
    held.write(0, page(5))
    assert not told.calls
    mm.check()


def test_a_callback_that_raises_or_hangs_blocks_nobody(
    mm: MemoryManager, heap: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "PATIENCE_S", 0.05)
    never = threading.Event()

    def hang(mapping: Mapping, index: Any) -> None:
        never.wait()

    def fail(mapping: Mapping, index: Any) -> None:
        raise ValueError("no")

    def call_back(mapping: Mapping, index: Any) -> None:
        mm.read(mapping, index)

    started = time.monotonic()
    for callback in (hang, fail, call_back):
        mm.acquire_exclusive(heap, [0, 1], on_revoke=callback)
        mm.write(heap, 0, page(9))
        assert rows(mm.read(heap, 0)) == rows([page(9)])
        mm.read(heap, 1)
    never.set()
    assert time.monotonic() - started < 5
    assert mm.counters.revoked == 6
    mm.check()


def test_the_owner_is_told_before_the_touch(mm: MemoryManager, heap: Mapping) -> None:
    seen = []

    def look(mapping: Mapping, index: Any) -> None:
        # Without the manager's lock, as a device reads: the bytes before the touch.
        found, _ = mm.memory.locate(mapping, index)
        out = np.empty((1, PAGE), np.uint8)
        mm.memory.read(mm.memory.state.frame[found], out)
        seen.append(out.tobytes())

    held = mm.acquire_exclusive(heap, 0, on_revoke=look)
    held.write(0, page(33))
    mm.write(heap, 0, page(34))
    assert seen == [page(33).tobytes()]


def test_an_owner_that_no_thread_can_tell_keeps_its_pages(
    mm: MemoryManager, heap: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    held = mm.acquire_exclusive(heap, [0, 1], on_revoke=told)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(ThreadError):
                mm.write(heap, [0], page(30))
    mm.check()
    assert mm.counters.revoked == 0
    assert rows(held.read([0, 1])) == rows(pages(1, 2))
    mm.write(heap, [0], page(30))
    assert told.calls == [(heap, [0])]
    assert rows(mm.read(heap, 0)) == rows([page(30)])


def test_pinned_pages_cannot_be_taken(mm: MemoryManager, heap: Mapping) -> None:
    with mm.pin(heap, 1, write=True), pytest.raises(BusyError, match="pinned"):
        mm.acquire_exclusive(heap, [0, 1])
    mm.acquire_exclusive(heap, [0, 1])
    mm.release_exclusive(heap, range(100))
    mm.read(heap, 0)
    assert mm.counters.revoked == 0
    mm.check()


def test_an_owner_flushes_when_it_is_told(mm: MemoryManager, heap: Mapping) -> None:
    """Its handle works until the callback returns; the toucher reads what it wrote."""
    seen: list[int] = []

    def flush(mapping: Mapping, index: Any) -> None:
        seen.extend(owner.read(index)[:, 0].tolist())
        owner.write(index, pages(*[20] * len(index)))
        seen.append(mm.counters.pages)

    owner = mm.acquire_exclusive(heap, range(4), on_revoke=flush)
    before = [page(i + 1)[0] for i in (1, 2)]
    assert rows(mm.read(heap, [1, 2])) == rows(pages(20, 20))
    assert seen == [*before, 8]
    assert owner.left == 2
    with pytest.raises(RevokedError):
        owner.write([1], page(9))
    mm.check()


def test_hung_owners_hold_nobody_up(
    mm: MemoryManager, heap: Mapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One touch of the pages of eight of them waits once; other pages are served meanwhile."""
    monkeypatch.setattr(grants, "PATIENCE_S", 1.0)
    end, told = threading.Event(), threading.Semaphore(0)

    def hang(mapping: Mapping, index: Any) -> None:
        told.release()
        end.wait()

    for i in range(8):
        mm.acquire_exclusive(heap, i, on_revoke=hang)
    other = mm.create("other", pages=2)
    toucher = threading.Thread(target=mm.read, args=(heap, range(8)))
    toucher.start()
    for _ in range(8):
        assert told.acquire(timeout=30)
    mm.write(other, [0, 1], pages(5, 6))
    served_first = toucher.is_alive()
    end.set()
    toucher.join()
    assert served_first
    assert mm.counters.revoked == 8
    mm.check()


def test_pages_that_go_while_their_owner_is_told(mm: MemoryManager, heap: Mapping) -> None:
    """The callback truncates the mapping that somebody waits to read."""
    mm.acquire_exclusive(heap, 0, on_revoke=lambda mapping, index: mm.truncate(heap, 2))
    with pytest.raises(UsageError, match="no page 3"):
        mm.read(heap, [0, 3])
    mm.check()
    assert rows(mm.read(heap, [0, 1])) == rows(pages(1, 2))


def test_a_file_write_that_fails_takes_nothing_from_who_wrote_meanwhile(mm: MemoryManager) -> None:
    """The owner, who is told of the write, appends to the file; then the write fails."""
    file = mm.create("/f", kind="file", pages=2)
    mm.write(file, range(2), pages(1, 2))

    def append(mapping: Mapping, index: Any) -> None:
        mm.file_write(file, range(3, 6), pages(13, 14, 15))

    def fail(*_: object) -> None:
        raise MemoryError

    mm.acquire_exclusive(file, 0, on_revoke=append)
    with pytest.MonkeyPatch.context() as patch:
        owner = threading.current_thread()
        overwriting = mm.memory.overwriting

        def failing(*arguments: Any) -> None:
            (fail if threading.current_thread() is owner else overwriting)(*arguments)

        patch.setattr(mm.memory, "overwriting", failing)
        with pytest.raises(MemoryError):
            mm.file_write(file, [0, 4], pages(9, 9))
    mm.check()
    assert file.pages == 6
    assert rows(mm.read(file, range(6))) == rows(pages(1, 2, 0, 13, 14, 15))


def test_two_who_drop_a_mapping_while_its_owner_is_told(mm: MemoryManager, heap: Mapping) -> None:
    """The second finds it gone, and not another one that has its number."""
    told, end = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def slow(mapping: Mapping, index: Any) -> None:
        told.set()
        end.wait()

    def drop() -> None:
        try:
            mm.drop(heap)
        except UsageError as error:
            errors.append(error)

    mm.acquire_exclusive(heap, range(4), on_revoke=slow)
    threads = [threading.Thread(target=drop) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert told.wait(30)
    end.set()
    for thread in threads:
        thread.join()
    assert [str(error) for error in errors] == ["mapping 'heap' was dropped"]
    assert mm.mappings == []
    mm.check()
