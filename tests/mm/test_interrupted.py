"""An exception at any line of the manager's Python leaves no page wrong, and nothing behind.

Each operation is run again and again, with an exception raised at the first, second, third, ... of
its lines. Afterwards every page holds what it held before, or what the operation writes; the
invariants hold; and the same operation, run again, does what it would have done.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import gpudedup as gd
from gpudedup.devices.host import HostDevice
from gpudedup.mm.exclusive import Exclusive
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping

from .common import PAGE

ROOM = str(Path(gd.__file__).parent / "mm")
ALL = range(70)
FILES = gd.MergePolicy(kinds=("anon", "file"))

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
"""An exception drops pins that nobody unpinned: the manager does it."""

LONG = bool(os.environ.get("GPUDEDUP_LONG"))
"""Whether all lines are tried, not one in so many."""


class Raising:
    """Raises an exception at one line, of those that the manager's modules run in the block."""

    def __init__(self, at: int, exception: type[BaseException]) -> None:
        self.left, self.exception, self.raised = at, exception, False
        self._entered: set[tuple[FrameType, int]] = set()

    def __enter__(self) -> Raising:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        self._entered.clear()

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        # Python drops what is raised in a finalizer.
        its = frame.f_code.co_filename.startswith(ROOM) and frame.f_code.co_name != "__del__"
        return self._line if its else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and not self.raised and not self._leaves(frame):
            self.left -= 1
            if self.left < 0:
                self.raised = True
                raise self.exception
        return self._line

    def _leaves(self, frame: FrameType) -> bool:
        """Return whether no signal comes here: a ``with`` is about to release its lock, or at
        ``try``, which is no instruction that could fail, and which no enclosing ``with`` covers."""
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if line == "try:":
            return True
        if not line.startswith("with "):
            return False
        here = (frame, frame.f_lineno)
        self._entered ^= {here}
        return here not in self._entered


class Small:
    """A manager with shared, merged, cached, replicated, spliced and device pages.

    :param written: what the file's writeback got, by index
    """

    def __init__(self) -> None:
        self.written: dict[int, bytes] = {}
        self.mm = MemoryManager(PAGE, nodes=2, device_engine=[HostDevice(0)])
        mm = self.mm
        self.heap = mm.create("heap", pages=len(ALL), owner="a")
        self.file = mm.create("/f", kind="file", pages=len(ALL), writeback=keeping(self.written))
        for mapping, first in ((self.heap, 1), (self.file, 3)):
            mm.write(mapping, ALL, filled([(first + i) % 9 for i in ALL]))
        self.child = mm.fork(self.heap, "b")
        mm.merge(FILES)
        mm.write(self.heap, range(0, 70, 7), filled([50] * 10))
        mm.write(self.file, range(0, 70, 5), filled([60] * 14))
        mm.migrate(self.file, range(10, 14), node=1)
        mm.replicate(self.heap, range(20, 24), node=1)
        mm.cache(self.heap, [0, 7, 14], node=1)
        mm.write(self.heap, [7], filled([51]))
        mm.device(0).write(self.heap, [28, 35], filled([52, 53]))
        mm.device(0).read(self.child, range(40, 50))
        self.pin = mm.pin(self.heap, [42], write=True)

    def held(self) -> dict[str, list[bytes]]:
        """Return what every page of every mapping holds."""
        return {
            f"{at} {m.name} of {m.owner}": [
                row.tobytes() for row in self.mm.read(m, range(m.pages))
            ]
            for at, m in enumerate(self.mm.mappings)
        }


def is_locked(mm: MemoryManager) -> bool:
    """Return whether this thread holds the manager's lock."""
    lock: Any = mm.lock
    # As threading.Condition asks.
    return bool(lock._is_owned())


def keeping(written: dict[int, bytes]) -> Callable[[Any, Any], None]:
    """Return a writeback that refers to no manager: worlds go with their last name."""

    def keep(index: Any, data: Any) -> None:
        written.update(zip(index.tolist(), (row.tobytes() for row in data), strict=True))

    return keep


def filled(values: list[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.repeat(np.array(values, np.uint8)[:, None], PAGE, axis=1)


def _exclusive(world: Small) -> None:
    world.mm.acquire_exclusive(world.heap, [1, 2, 7, 20, 41]).write([1], filled([71]))


def _pinned(world: Small) -> None:
    world.mm.pin(world.heap, [3, 4, 21], write=True).unpin()


def _spliced(world: Small) -> None:
    world.mm.splice(world.heap, [0, 3, 7, 42]).close()


OPERATIONS: dict[str, Callable[[Small], object]] = {
    "create": lambda w: w.mm.create("new", pages=300),
    "store": lambda w: w.mm.write(w.heap, [1, 2, 7, 20, 69], filled([80, 81, 82, 83, 84])),
    "store a part": lambda w: w.mm.write(
        w.child, [1, 2, 20, 40], filled([90] * 4)[:, :8], offset=3
    ),
    "file write": lambda w: w.mm.file_write(w.file, [5, 6, 12, 90], filled([85, 86, 87, 88])),
    "file write far beyond": lambda w: w.mm.file_write(w.file, [5, 400], filled([85, 86])),
    "grow": lambda w: w.mm.truncate(w.heap, 300),
    "fork": lambda w: w.mm.fork(w.heap, "c"),
    "reflink": lambda w: w.mm.reflink(w.file, name="/g"),
    "truncate": lambda w: w.mm.truncate(w.file, 9),
    "punch": lambda w: w.mm.punch(w.heap, [1, 7, 21, 28]),
    "drop": lambda w: w.mm.drop(w.child),
    "pin": _pinned,
    "splice": _spliced,
    "writeback": lambda w: w.mm.writeback(w.file),
    "migrate": lambda w: w.mm.migrate(w.heap, ALL, node=1),
    "migrate to a device": lambda w: w.mm.migrate(w.child, ALL, device=0),
    "replicate": lambda w: w.mm.replicate(w.child, ALL, node=1),
    "cache": lambda w: w.mm.cache(w.heap, ALL, node=1),
    "flush": lambda w: w.mm.flush(w.heap, ALL),
    "evict": lambda w: w.mm.evict(w.heap, ALL),
    "collapse": lambda w: w.mm.collapse(w.heap, ALL),
    "merge": lambda w: w.mm.merge(FILES),
    "unmerge": lambda w: w.mm.unmerge(w.child, ALL),
    "exclusive": _exclusive,
    "device load": lambda w: w.mm.device(0).read(w.file, range(3, 30)),
    "device store": lambda w: w.mm.device(0).write(w.child, [1, 9], filled([91, 92])),
    "device addition": lambda w: w.mm.device(0).atomic_add(w.child, [3, 4, 5], 0, 1),
}

HALF_DONE = {"truncate", "drop"}
"""Operations that may leave pages zero in a mapping that has its size still."""


def lines_of(operation: Callable[[Small], object]) -> int:
    """Return how many lines an operation runs."""
    world, count = Small(), 1 << 30
    with Raising(count, KeyboardInterrupt) as raising:
        operation(world)
    return count - raising.left


@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_exception_at_any_line(name: str, exception: type[BaseException]) -> None:
    operation, expected = OPERATIONS[name], Small()
    before = expected.held()
    operation(expected)
    after = expected.held()
    lines = lines_of(operation)
    step = 1 if LONG else max(1, lines // 12)
    for at in range(1 if exception is MemoryError else 0, lines, step):
        world = Small()
        with Raising(at, exception) as raising, suppress(exception):
            operation(world)
        assert raising.raised
        where = f"{name}, line {at} of {lines}"
        assert not is_locked(world.mm), where
        world.mm.check()
        assert world.mm.counters.pins == 1, where
        held = world.held()
        for title, rows in held.items():
            for i, row in enumerate(rows):
                known = {s[title][i] for s in (before, after) if i < len(s.get(title, []))}
                if name in HALF_DONE or i >= len(before.get(title, [])):
                    known.add(bytes(PAGE))
                assert row in known, f"{where}: {title}, page {i}"
        if held.keys() == before.keys():
            operation(world)
            world.mm.check()
            assert world.held() == after or name == "device addition", where
        world.mm.writeback(world.file)
        for i, row in enumerate(world.mm.read(world.file, range(world.file.pages))):
            assert row.tobytes() == world.written.get(i, bytes(PAGE)), f"{where}: page {i} is lost"


def test_mappings_that_an_exception_unmakes_leave_no_number() -> None:
    world = Small()
    known = {m.number for m in world.mm.mappings}
    with Raising(30, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        world.mm.fork(world.heap, "c")
    assert {m.number for m in world.mm.mappings} == known
    new: Mapping = world.mm.fork(world.heap, "c")
    assert new.number not in known


def test_a_mapping_whose_drop_was_interrupted_is_there_or_gone() -> None:
    for at in range(1, 1000):
        world = Small()
        with Raising(at, KeyboardInterrupt) as raising, suppress(KeyboardInterrupt):
            world.mm.drop(world.child)
        assert world.child.dropped == (world.child not in world.mm.mappings), f"line {at}"
        world.mm.check()
        if not world.child.dropped:
            world.mm.drop(world.child)
        world.mm.drop(world.heap)
        assert list(world.mm._mappings.values()) == [world.file], f"line {at}"
        assert len(world.mm._numbers_free) == 2, f"line {at}"
        if not raising.raised:
            return
    pytest.fail("never without an exception")


def test_a_store_to_all_pages_of_a_frame() -> None:
    """The first page gets a new frame, the last keeps the old one, whose bytes are overwritten."""
    for at in range(1, 1000):
        world = Small()
        twins = world.mm.create("twins", pages=70)
        world.mm.write(twins, ALL, filled([100 + i // 2 for i in ALL]))
        world.mm.merge()
        world.mm.device(0).write(twins, range(60, 70), filled([100 + i // 2 for i in ALL[60:]]))
        with Raising(at, KeyboardInterrupt) as raising, suppress(KeyboardInterrupt):
            world.mm.write(twins, ALL, filled([180 + i for i in ALL]))
        for i, row in enumerate(world.mm.read(twins, ALL)):
            known = (filled([100 + i // 2]).tobytes(), filled([180 + i]).tobytes())
            assert row.tobytes() in known, f"line {at}: page {i}: {row[0]}"
        world.mm.check()
        if not raising.raised:
            return
    pytest.fail("never without an exception")


def _acquire(world: Small, held: list[Exclusive]) -> None:
    held.append(world.mm.acquire_exclusive(world.heap, [1, 2, 41]))


def _release(world: Small, held: list[Exclusive]) -> None:
    held[0].release()


def _touch(world: Small, held: list[Exclusive]) -> None:
    world.mm.read(world.heap, [1, 2, 41])


@pytest.mark.parametrize("operation", [_acquire, _release, _touch])
def test_exclusive_access_that_was_interrupted_ends_with_the_next_touch(
    operation: Callable[[Small, list[Exclusive]], None],
) -> None:
    for at in range(1, 1000):
        world, held = Small(), list[Exclusive]()
        if operation is not _acquire:
            _acquire(world, held)
        with Raising(at, KeyboardInterrupt) as raising, suppress(KeyboardInterrupt):
            operation(world, held)
        _touch(world, held)
        assert [one.left for one in held] == [0] * len(held), f"line {at}"
        world.mm.drop(world.heap)
        assert not world.mm.grants._grants, f"line {at}"
        if not raising.raised:
            return
    pytest.fail("never without an exception")


def test_an_owner_is_told_once_though_a_touch_was_interrupted() -> None:
    for at in range(1, 1000):
        world, told = Small(), list[int]()
        held = world.mm.acquire_exclusive(world.heap, [1, 2, 41], on_revoke=noting(told))
        with Raising(at, MemoryError) as raising, suppress(MemoryError):
            world.mm.read(world.heap, [1, 2, 41])
        world.mm.read(world.heap, [1, 2, 41])
        assert held.left == 0
        assert told == [1, 2, 41], f"line {at}"
        if not raising.raised:
            return
    pytest.fail("never without an exception")


def noting(told: list[int]) -> Callable[[Mapping, Any], None]:
    """Return an ``on_revoke`` that notes which pages it is told of."""

    def note(_: Mapping, index: Any) -> None:
        told.extend(index.tolist())

    return note
