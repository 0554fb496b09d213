"""Host operations on pages that devices map: no device reads or keeps a stale entry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from gpudedup.errors import UsageError
from gpudedup.mm.policy import MergePolicy

from .common import PAGE, page, pages, rows
from .conftest import Devices
from .world import PLACES, WRITTEN, World

pytestmark = pytest.mark.usefixtures("small_chunks")

ALL = range(PLACES)
FILES = MergePolicy(kinds=("anon", "file"), use_zero_pages=True)


@pytest.mark.parametrize("how", ["truncate", "punch", "drop"])
def test_a_page_that_goes_while_it_is_merged_replicated_and_mirrored(
    engine: Devices, how: str
) -> None:
    world = World(engine(2))
    mm, heap = world.mm, world.heap
    mm.merge(FILES)
    frames = mm.counters.frames
    assert mm.replicate(heap, 70, device=0).all()
    world.agree_on(0)
    world.agree_on(1)
    assert world.mirrored(heap, 0) == world.mirrored(heap, 1) == list(ALL)
    if how == "truncate":
        mm.truncate(heap, 70)
        with pytest.raises(UsageError, match="no page 70"):
            mm.device(0).read(heap, 70)
        assert max(world.mirrored(heap, 0)) == 69
        mm.truncate(heap, PLACES)
        world.model.truncate(heap, 70)
    elif how == "punch":
        mm.punch(heap, [70, 71])
        assert max(world.mirrored(heap, 0)) == 79
        assert not {70, 71} & set(world.mirrored(heap, 0))
        world.model.truncate(heap, 70)
    else:
        mm.drop(heap)
        del world.model.held[heap]
        with pytest.raises(UsageError, match="dropped"):
            mm.device(0).read(heap, 0)
    mm.collapse(world.file, ALL)
    gone = {"truncate": 2, "punch": 2, "drop": 4}[how]
    world.agree()
    mm.collapse(world.file, ALL)
    if how != "drop":
        mm.collapse(heap, ALL)
    assert mm.counters.frames == frames - gone
    world.drop_all()


def _host_store(world: World) -> None:
    world.store(world.heap, [0, 0, 5, 6, 71], pages(20, 21, 22, 23, 24))
    world.mm.write(world.file, [1, 70], b"xyz", offset=7)
    for i in (1, 70):
        world.model.write(world.file, i, b"xyz", 7)


def _file_write(world: World) -> None:
    world.mm.file_write(world.file, [0, 1, PLACES + 60], page(30))
    world.know(world.file, [0, 1, PLACES + 60], page(30))


def _pinned_write(world: World) -> None:
    for mapping in (world.heap, world.file):
        with world.mm.pin(mapping, [0, 1, 5, 9], write=True) as pin:
            pin.write(page(31))
            world.know(mapping, [0, 1, 5, 9], page(31))
            world.agree()
            pin.write(page(32))
            world.know(mapping, [0, 1, 5, 9], page(32))
            world.agree_on(1)
            world.store(mapping, [0, 1], pages(33, 34), by=0)
            assert rows(pin.read()) == rows(pages(33, 34, 32, 32)), "it is its owner's own"


def _read_pin(world: World) -> None:
    with world.mm.pin(world.heap, [0, 1, 9]) as pin:
        before = rows(pin.read())
        world.agree()
        assert rows(pin.read()) == before
        world.mm.pin(world.file, [0]).unpin()


def _fork(world: World) -> None:
    child = world.mm.fork(world.heap)
    world.model.fork(world.heap, child)
    world.agree()
    world.store(child, [0, 70], page(35))
    world.store(world.heap, [0, 71], page(36))


def _splice(world: World) -> None:
    for mapping in (world.heap, world.file):
        with world.mm.splice(mapping, WRITTEN) as buffer:
            before = b"".join(world.model.read(mapping, i) for i in WRITTEN)
            world.store(mapping, [0, 1], page(37))
            world.store(mapping, [2, 70], page(38), by=0)
            world.store(mapping, [3, 71], page(39), by=1)
            world.agree()
            assert buffer.bytes() == before


def _reflink(world: World) -> None:
    copy = world.mm.reflink(world.file, name="/b")
    world.model.fork(world.file, copy)
    world.agree()
    world.store(copy, [0, 70], page(40))
    world.store(world.file, [1, 71], page(41))


def _migrate(world: World) -> None:
    assert world.mm.migrate(world.heap, ALL, node=1).all()
    world.agree()
    assert world.mm.migrate(world.file, ALL, device=1).all()
    world.agree()
    assert world.mm.migrate(world.file, ALL, device=0).all()


def _replicate(world: World) -> None:
    assert world.mm.replicate(world.heap, ALL, node=1).all()
    assert world.mm.replicate(world.file, ALL, device=1).all()
    world.agree()


def _collapse(world: World) -> None:
    for mapping in (world.heap, world.file):
        world.mm.collapse(mapping, ALL)


def _cache(world: World) -> None:
    world.mm.migrate(world.file, [0], device=0)
    assert not world.mm.cache(world.file, ALL, node=1)[0], "it is on a device"
    world.mm.migrate(world.file, ALL, node=0)
    world.mm.cache(world.file, ALL, node=1)
    world.mm.check()
    world.mm.write(world.file, [0, 1, 9], page(42))
    world.know(world.file, [0, 1, 9], page(42))
    world.agree()
    with world.mm.pin(world.file, 0, write=True) as pin:
        world.mm.cache(world.file, [0, 70], node=1)
        pin.write(page(43))
        world.know(world.file, [0], page(43))
        world.agree()
    world.mm.cache(world.file, 70, node=1)
    world.store(world.file, [70], page(44))
    world.mm.evict(world.file, ALL)


def _merge(world: World) -> None:
    policy = MergePolicy(kinds=("anon", "file"), use_zero_pages=False)
    world.mm.merge(policy)
    world.agree()
    world.mm.merge(FILES)


def _unmerge(world: World) -> None:
    for mapping in (world.heap, world.file):
        world.mm.migrate(mapping, ALL, node=0)
    world.mm.merge(FILES)
    assert world.mm.counters.pages_sharing
    world.agree()
    for mapping in (world.heap, world.file):
        world.mm.unmerge(mapping, ALL)


def _writeback(world: World) -> None:
    for i in WRITTEN:
        world.disk.pop(i, None)
    dirty = world.mm.counters.dirty
    assert world.mm.writeback(world.file) == dirty > 0
    assert {i: world.disk[i] for i in world.disk} == {
        i: world.model.read(world.file, i) for i in world.disk
    }
    world.mm.writeback(world.file, WRITTEN)


def _punch(world: World) -> None:
    world.mm.punch(world.heap, [0, 9, 70])
    world.mm.punch(world.file, [1, 9, 71])
    for mapping, index in ((world.heap, (0, 70)), (world.file, (1, 71))):
        for i in index:
            world.model.held[mapping].pop(i)


def _truncate(world: World) -> None:
    for mapping, size in ((world.heap, 3), (world.file, 70)):
        world.mm.truncate(mapping, size)
        world.model.truncate(mapping, size)
        world.agree()
        world.mm.truncate(mapping, PLACES)


def _take(world: World) -> None:
    for device in (None, 0, 1):
        held = world.mm.acquire_exclusive(world.heap, [0, 2, 9], device=device)
        held.write([0, 9], page(45))
        world.know(world.heap, [0, 9], page(45))
        world.agree()
        assert not held.left


OPERATIONS: dict[str, Callable[[World], None]] = {
    f.__name__[1:]: f
    for f in (
        _host_store, _file_write, _pinned_write, _read_pin, _fork, _splice, _reflink, _migrate,
        _replicate, _collapse, _cache, _merge, _unmerge, _writeback, _punch, _truncate, _take,
    )
}  # fmt: skip


def _fill_by_loads(world: World) -> None:
    world.agree_on(0)
    world.agree_on(1)


def _fill_by_stores(world: World) -> None:
    for mapping in (world.heap, world.file):
        world.store(mapping, WRITTEN, pages(11, 11, 12, 13, 14, 0, 15, 16), by=0)
        world.store(mapping, [3, 4, 9, 71], pages(12, 17, 0, 15), by=1)


def _fill_by_both(world: World) -> None:
    world.mm.merge(FILES)
    _fill_by_loads(world)
    world.store(world.heap, [0, 2, 70], pages(11, 11, 12), by=0)
    world.store(world.file, [0, 2, 70], pages(11, 11, 12), by=1)
    world.mm.device(1).read(world.heap, [0, 1, 2])
    world.mm.device(0).atomic_add(world.heap, 8, 0, 0)


FILLS = {
    "loads": _fill_by_loads,
    "stores": _fill_by_stores,
    "both": _fill_by_both,
}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_after_anything_else_devices_see_what_is(
    engine: Devices, operation: str, fill: str
) -> None:
    world = World(engine(2))
    FILLS[fill](world)
    world.mm.check()
    OPERATIONS[operation](world)
    world.agree()
    for mapping in world.mm.mappings:
        world.store(mapping, [0, 1, 5, 9, 70], pages(50, 51, 52, 53, 54), by=0)
        world.store(mapping, [1, 2, 71], pages(55, 56, 57), by=1)
    world.agree()
    for mapping in world.mm.mappings:
        world.store(mapping, WRITTEN, page(60))
    world.agree()
    world.drop_all()


@pytest.mark.parametrize("by", [0, 1])
@pytest.mark.parametrize("size", [PAGE, 3])
def test_a_device_store_breaks_what_is_shared(engine: Devices, by: int, size: int) -> None:
    world = World(engine(2))
    mm, heap, file = world.mm, world.heap, world.file
    child = mm.fork(heap)
    copy = mm.reflink(file, name="/b")
    world.model.fork(heap, child)
    world.model.fork(file, copy)
    mm.merge(FILES)
    held = ExitStack()
    spliced = [held.enter_context(mm.splice(mapping, WRITTEN)) for mapping in mm.mappings]
    pins = [held.enter_context(mm.pin(mapping, WRITTEN)) for mapping in mm.mappings]
    before = [buffer.bytes() for buffer in spliced]
    world.agree_on(by)
    for n, mapping in enumerate(mm.mappings):
        mm.device(by).write(mapping, [0, 2, 5, 70], bytes([n]) * size, offset=PAGE - size)
        for i in (0, 2, 5, 70):
            world.model.write(mapping, i, bytes([n]) * size, PAGE - size)
        world.agree()
        assert [buffer.bytes() for buffer in spliced] == before
        assert [pin.read().tobytes() for pin in pins] == before
    held.close()
    world.agree()
    world.drop_all()


@pytest.mark.parametrize("whole", [False, True])
def test_a_file_page_stored_to_after_writeback_is_dirty_again(engine: Devices, whole: bool) -> None:
    world = World(engine(1))
    mm, file = world.mm, world.file
    mm.writeback(file)
    for content in (20, 21, 22):
        world.store(file, [0, 70], page(content), by=0)
        assert mm.counters.dirty == 2
        world.store(file, [0], page(content + 5), by=0)
        assert mm.counters.dirty == 2
        assert mm.writeback(file, None if whole else [0, 9, 70]) == 2
        assert world.disk[0] == page(content + 5).tobytes()
        assert world.disk[70] == page(content).tobytes()
        assert mm.counters.dirty == 0
        world.agree()


def test_pages_go_from_device_to_device_and_back(engine: Devices) -> None:
    world = World(engine(3))
    for turn, by in enumerate((0, 1, 0, 2, 1, 0)):
        world.store(world.heap, range(40, 60), page(100 + turn), by=by)
        assert rows(world.device((by + 1) % 3).read(world.heap, 50)) == rows([page(100 + turn)])
        world.device(by).write(world.heap, [40, 41], b"again", offset=5)
        for i in (40, 41):
            world.model.write(world.heap, i, b"again", 5)
        if turn % 2:
            world.agree()
    world.agree()
    assert world.mm.counters.remote == 0


def test_what_a_device_has_it_reaches_without_a_fault(engine: Devices) -> None:
    world = World(engine(1))
    device, mm = world.device(0), world.mm
    device.write(world.heap, WRITTEN, page(20))
    faults = mm.counters.device_faults
    assert faults == len(WRITTEN)
    device.write(world.heap, WRITTEN, page(21))
    device.read(world.heap, WRITTEN)
    device.read(world.heap, ALL)
    assert mm.counters.device_faults == faults + PLACES - len(WRITTEN)
    device.read(world.heap, ALL)
    device.atomic_add(world.heap, [0, 2], 0, 1)
    device.atomic_add(world.heap, [0, 2], 0, 1)
    device.write(world.heap, [0, 2], page(22))
    assert mm.counters.device_faults == faults + PLACES - len(WRITTEN) + 2
    mm.check()


def test_replicas_of_a_device_need_no_copy_when_it_loads(engine: Devices) -> None:
    world = World(engine(1))
    mm = world.mm
    assert mm.replicate(world.heap, ALL, device=0).all()
    replicas = mm.counters.replicas
    world.agree_on(0)
    assert mm.counters.replicas == replicas + len(WRITTEN), "those of the file"
    mm.device(0).write(world.heap, WRITTEN, page(3))
    assert mm.counters.replicas == len(WRITTEN)


def test_a_pinned_page_is_reached_where_it_is(engine: Devices) -> None:
    world = World(engine(1))
    mm, heap = world.mm, world.heap
    frames = mm.counters.frames
    with mm.pin(heap, [0, 2, 9], write=True) as pin:
        world.agree_on(0)
        assert mm.counters.remote == 3
        world.store(heap, [0, 2, 3], pages(20, 21, 22), by=0)
        assert mm.counters.remote == 5
        assert rows(pin.read())[:2] == rows(pages(20, 21))
        world.agree()
    assert not {0, 2, 9} & set(world.mirrored(heap, 0))
    remote = mm.counters.remote
    world.agree_on(0)
    assert mm.counters.remote == remote
    mm.collapse(heap, ALL)
    mm.collapse(world.file, ALL)
    assert mm.counters.frames == frames + 1
