"""A lost device loses the pages whose only frame it held, and nothing else.

Reading a lost page raises DeviceError, for ever, and never returns other bytes; the page can be
punched, truncated or dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpudedup.devices.host import HostDevice
from gpudedup.errors import DeviceError
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.policy import MergePolicy
from gpudedup.mm.state.steps import node_of

from ..kernels.shim.device import ShimDevice
from .common import PAGE, page, pages, rows
from .world import PLACES, World

pytestmark = [
    pytest.mark.usefixtures("small_chunks"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels"),
]

ALL = range(PLACES)
FILES = MergePolicy(kinds=("anon", "file"), use_zero_pages=True)


def nodes(world: World, mapping: Mapping) -> list[int]:
    """Return the pool of the frame of each page."""
    state = world.mm.memory.state
    found, _ = world.mm.memory.locate(mapping, np.arange(mapping.pages))
    return [int(node_of(state, state.frame[p])) for p in found]


def lost(world: World) -> set[tuple[Mapping, int]]:
    """Return the pages whose only frame is on device 0."""
    far = world.device(0).node
    return {
        (mapping, i)
        for mapping in world.mm.mappings
        for i, node in enumerate(nodes(world, mapping))
        if node == far
    }


def read_one(world: World, mapping: Mapping, index: int) -> bytes | None:
    try:
        return rows(world.mm.read(mapping, index))[0]
    except DeviceError:
        return None


Step = tuple[str, Callable[[], Any]]


def steps(world: World) -> Iterator[Step]:
    """Yield the operations before and after the loss of device 0; the model follows each."""
    mm, heap, file, first = world.mm, world.heap, world.file, world.device(0)
    yield "load", lambda: first.read(heap, ALL)
    yield "load of a file", lambda: first.read(file, [0, 1, 70])
    yield "migrate", lambda: mm.migrate(heap, [2, 3], device=0)
    yield "replicate", lambda: mm.replicate(file, ALL, device=0)
    yield "migrate back", lambda: mm.migrate(heap, [2], node=1)
    yield "merge", lambda: mm.merge(FILES)
    yield "host store", lambda: world.store(heap, [0, 70], pages(20, 21))
    yield "unmerge", lambda: mm.unmerge(file, ALL)
    yield "store", lambda: world.store(heap, [0, 4, 9], pages(22, 23, 24), by=0)
    yield "cache", lambda: mm.cache(heap, [3, 4], node=1)
    yield "splice", lambda: mm.splice(heap, [0, 1, 4]).close()
    yield "store of another", lambda: world.store(heap, [0, 5], pages(25, 26), by=1)
    yield "migrate merged", lambda: mm.migrate(file, ALL, device=0)
    yield "load of another", lambda: world.device(1).read(file, ALL)
    yield "replicate there", lambda: mm.replicate(file, [0, 1], node=1)
    yield "part of a page", lambda: mm.write(file, [], pages())
    yield "take", lambda: mm.acquire_exclusive(file, [0, 71], device=0)
    yield "take from it", lambda: mm.acquire_exclusive(file, [0, 71]).release()
    yield "writeback", lambda: mm.writeback(file, [1, 2])


STORED = {
    "host store": {0: 20, 70: 21},
    "store": {0: 22, 4: 23, 9: 24},
    "store of another": {0: 25, 5: 26},
}
"""Contents that a step stores to the heap, by page; a store that fails may write some."""

MAY_LOSE = ("store", "take")
"""Steps that may lose pages: they move pages to the device before it is lost."""


@pytest.mark.parametrize("fail_after", [*range(7, 66, 2), *range(66, 220, 7)])
def test_what_was_on_the_host_stays_right(fail_after: int) -> None:
    world = World([ShimDevice(fail_after=fail_after), HostDevice(1)])
    device = world.device(0)
    for name, step in steps(world):
        before, moves = lost(world), name in MAY_LOSE
        try:
            step()
            moves |= name.startswith("migrate")
            world.mm.check()
        except DeviceError:
            assert device.lost
        if device.lost:
            world.mm.check()
            assert moves or not lost(world) - before, name
        compare(world, name, STORED.get(name, {}))
    if device.lost:
        with pytest.raises(DeviceError):
            device.read(world.heap, 0)
    use_what_is_left(world)


def compare(world: World, name: str, stored: dict[int, int]) -> None:
    """Read every page: it holds what the model says, or what was just stored, or is lost."""
    for mapping in world.mm.mappings:
        for i in ALL:
            found = read_one(world, mapping, i)
            if found is None:
                assert (mapping, i) in lost(world), name
            elif found != world.model.read(mapping, i):
                assert mapping is world.heap, name
                assert found == page(stored[i]).tobytes(), f"{name}, {i}"
                world.model.write(mapping, i, found)


def use_what_is_left(world: World) -> None:
    """Run all operations of the host and of device 1 after lost pages are punched."""
    mm = world.mm
    for mapping, i in lost(world):
        mm.punch(mapping, i)
        world.model.held[mapping].pop(i, None)
    assert not lost(world)
    agree(world)
    mm.merge(FILES)
    agree(world)
    child, copy = mm.fork(world.heap), mm.reflink(world.file, name="/b")
    world.model.fork(world.heap, child)
    world.model.fork(world.file, copy)
    for mapping in mm.mappings:
        for node in (0, 1):
            mm.migrate(mapping, ALL, node=node)
            mm.replicate(mapping, ALL, node=1 - node)
        agree(world)
        with mm.splice(mapping, ALL) as buffer:
            before = buffer.bytes()
            world.store(mapping, [0, 1, 70], page(40))
            assert buffer.bytes() == before
        world.store(mapping, [1, 9], page(41), by=1)
        with mm.pin(mapping, [2, 3], write=True) as pin:
            pin.write(page(42))
            world.know(mapping, [2, 3], page(42))
        mm.acquire_exclusive(mapping, [0, 2]).release()
        agree(world)
    mm.writeback(world.file)
    mm.truncate(world.heap, 3)
    world.model.truncate(world.heap, 3)
    agree(world)
    world.drop_all()


def agree(world: World) -> None:
    world.mm.check()
    world.agree_on(1)
    for mapping in world.mm.mappings:
        expected = [world.model.read(mapping, i) for i in range(mapping.pages)]
        for node in (0, 1):
            assert rows(world.mm.read(mapping, range(mapping.pages), node=node)) == expected


def lose(device: ShimDevice) -> None:
    device._left = 0


def test_pages_that_were_only_there() -> None:
    device = ShimDevice()
    world = World([device, HostDevice(1)])
    mm, heap, file = world.mm, world.heap, world.file
    child = mm.fork(heap)
    world.model.fork(heap, child)
    mm.migrate(heap, [0, 1], device=0)
    world.store(file, [0, 1], page(30), by=0)
    told: list[Any] = []
    held = mm.acquire_exclusive(heap, [2], device=0, on_revoke=lambda m, i: told.append(i))
    held.write(2, page(31))
    lose(device)
    for access in (
        lambda: mm.read(heap, [5, 0]),
        lambda: mm.write(heap, 0, b"abc", offset=3),
        lambda: mm.write(child, 1, b"abc", offset=3),
        lambda: mm.read(heap, 2),
        lambda: world.device(1).read(heap, 0),
        lambda: world.device(1).write(child, 0, b"abc", offset=3),
        lambda: world.device(1).atomic_add(file, 0, 0, 1),
        lambda: mm.writeback(file),
        lambda: mm.migrate(heap, 0, node=0),
        lambda: mm.replicate(heap, 0, node=1),
        lambda: mm.acquire_exclusive(heap, [0, 5]),
        lambda: world.device(0).read(heap, 5),
        lambda: world.device(0).write(heap, 5, page(1)),
        lambda: world.device(0).atomic_add(heap, 5, 0, 1),
        lambda: mm.migrate(heap, 5, device=0),
    ):
        with pytest.raises(DeviceError):
            access()
        mm.check()
        for mapping, index in ((heap, (0, 1, 2)), (child, (0, 1)), (file, (0, 1))):
            assert [read_one(world, mapping, i) for i in index] == [None] * len(index)
        assert rows(mm.read(heap, [3, 4, 5, 70])) == [
            world.model.read(heap, i) for i in (3, 4, 5, 70)
        ]
        assert rows(mm.read(file, [2, 3])) == [world.model.read(file, i) for i in (2, 3)]
    assert [i.tolist() for i in told] == [[2]]
    assert mm.writeback(file, [2, 3, 4, 70]) == 4, "not yet: the file as a whole could not be"
    assert mm.counters.pins == 0
    use_what_is_left(world)


def test_replicas_go_with_one_that_cannot_be_made() -> None:
    device = ShimDevice()
    world = World([device, HostDevice(1)])
    world.agree_on(1)
    lose(device)
    with pytest.raises(DeviceError):
        world.mm.replicate(world.heap, [0, 2], device=0)
    world.mm.check()
    assert not {0, 2} & set(world.mirrored(world.heap, 1))
    use_what_is_left(world)


@pytest.mark.parametrize("what", ["fork", "reflink", "splice"])
def test_what_fails_in_the_middle_leaves_nothing_behind(what: str) -> None:
    device = ShimDevice()
    world = World([device, HostDevice(1)])
    mm, mapping = world.mm, world.file if what == "reflink" else world.heap
    world.store(mapping, [0], page(30), by=0)
    with mm.pin(mapping, [0, 1], write=True):
        lose(device)
        acts: dict[str, Callable[[], Any]] = {
            "fork": lambda: mm.fork(mapping),
            "reflink": lambda: mm.reflink(mapping, name="/b"),
            "splice": lambda: mm.splice(mapping, [0, 1, 2]),
        }
        with pytest.raises(DeviceError):
            acts[what]()
        mm.check()
        assert mm.counters.pins == 2
        assert mm.mappings == [world.heap, world.file]
        assert mm.read(mapping, 1).shape == (1, PAGE)
    use_what_is_left(world)
