"""Device atomics take exclusive access; any touch by another device or the host revokes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpudedup.errors import BusyError, RevokedError
from gpudedup.kernels import ATOMIC, WRITE
from gpudedup.mm.mapping import Mapping

from .common import PAGE, page, pages, rows
from .conftest import Devices
from .world import World

pytestmark = pytest.mark.usefixtures("small_chunks")


class Owner:
    """An ``on_revoke`` callback that records the revoked pages and their bytes at that moment."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told: list[tuple[list[int], list[bytes]]] = []

    def __call__(self, mapping: Mapping, index: Any) -> None:
        # Without the manager's lock: the thread that touches the pages holds it.
        memory = self.world.mm.memory
        found, _ = memory.locate(mapping, index)
        out = np.empty((len(index), PAGE), np.uint8)
        memory.read(memory.state.frame[found], out)
        self.told.append((index.tolist(), rows(out)))


def bits(world: World, mapping: Mapping, number: int, index: int) -> int:
    """Return the permission bits of a device's entry for a page; 0 without an entry."""
    found, entries = world.device(number).table.present(mapping)
    return int(entries[found == index].sum()) & 7


def test_an_atomic_takes_every_other_entry_away(engine: Devices) -> None:
    world = World(engine(3))
    mm, heap = world.mm, world.heap
    child = mm.fork(heap)
    world.model.fork(heap, child)
    world.agree()
    before = world.device(0).atomic_add(heap, [0, 9], [1, 2], [5, 6])
    assert before.tolist() == [int(page(1).view(np.uint64)[1]), 0]
    mm.check()
    for index in (0, 9):
        assert bits(world, heap, 0, index) & (WRITE | ATOMIC) == WRITE | ATOMIC
        assert bits(world, heap, 1, index) == bits(world, heap, 2, index) == 0
    assert bits(world, child, 1, 0), "of the child's frame nobody took anything"
    for index, word, value in ((0, 1, 5), (9, 2, 6)):
        held = np.frombuffer(world.model.read(heap, index), np.uint64).copy()
        held[word] += np.uint64(value)
        world.know(heap, [index], held.view(np.uint8))
    world.agree()
    assert mm.counters.revoked == 2
    world.drop_all()


def test_words_given_twice_add_up(engine: Devices) -> None:
    world = World(engine(1))
    device, heap = world.device(0), world.heap
    n = 500
    before = device.atomic_add(heap, [9] * n, 3, 1)
    assert sorted(before.tolist()) == list(range(n))
    index, word = np.arange(n) % 3 + 20, np.arange(n) % 2
    device.atomic_add(heap, index, word, np.arange(n))
    found = device.read(heap, [20, 21, 22]).view(np.uint64)[:, :2]
    expected = np.zeros((3, 2), np.uint64)
    np.add.at(expected, (index - 20, word), np.arange(n).astype(np.uint64))
    assert np.array_equal(found, expected)
    assert device.atomic_add(heap, 9, 3, -n).tolist() == [n]
    assert device.atomic_add(heap, 9, 3, np.uint64((1 << 64) - 1)).tolist() == [0]
    assert device.atomic_add(heap, 9, 3, 1).tolist() == [(1 << 64) - 1]
    world.mm.check()


def test_many_devices_add_to_the_same_words(engine: Devices) -> None:
    world = World(engine(8))
    for turn in range(3):
        for device in world.mm.devices:
            device.atomic_add(world.file, [7, 8, 9, 7], [0, 63, 5, 0], 1 + turn)
            world.mm.check()
    found = world.mm.read(world.file, [7, 8, 9]).view(np.uint64)
    total = 8 * (1 + 2 + 3)
    assert [int(found[0, 0]), int(found[1, 63]), int(found[2, 5])] == [2 * total, total, total]
    assert int(found.sum()) == 4 * total
    world.drop_all()


OTHERS: dict[str, Callable[[World], Any]] = {
    "host load": lambda w: w.mm.read(w.heap, [0, 2]),
    "host store": lambda w: w.store(w.heap, [0, 2], pages(70, 71)),
    "pin": lambda w: w.mm.pin(w.heap, [0, 2]).unpin(),
    "splice": lambda w: w.mm.splice(w.heap, [0, 2]).close(),
    "migrate": lambda w: w.mm.migrate(w.heap, [0, 2], node=1),
    "replicate": lambda w: w.mm.replicate(w.heap, [0, 2], device=0),
    "load of another": lambda w: w.device(1).read(w.heap, [0, 2]),
    "store of another": lambda w: w.store(w.heap, [0, 2], pages(70, 71), by=1),
    "atomic of another": lambda w: w.device(1).atomic_add(w.heap, [0, 2], 0, 0),
    "taken by another": lambda w: w.mm.acquire_exclusive(w.heap, [0, 2], device=1).release(),
    "taken by the host": lambda w: w.mm.acquire_exclusive(w.heap, [0, 2]).release(),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_touch_by_others_ends_it_and_the_owner_is_told_before(
    engine: Devices, other: str
) -> None:
    world = World(engine(2))
    heap, owner = world.heap, Owner(world)
    held = world.mm.acquire_exclusive(heap, [0, 2, 9], device=0, on_revoke=owner)
    world.device(0).write(heap, [0, 2, 9], pages(60, 61, 62))
    world.know(heap, [0, 2, 9], pages(60, 61, 62))
    world.mm.check()
    OTHERS[other](world)
    assert owner.told == [([0, 2], rows(pages(60, 61)))]
    assert held.left == 1
    assert not bits(world, heap, 0, 0) & ATOMIC
    with pytest.raises(RevokedError, match="page 2"):
        held.atomic_add([9, 2], 0, 1)
    assert rows(held.read(9)) == rows([page(62)])
    world.agree()
    assert owner.told[1:] == [([9], rows([page(62)]))]
    world.drop_all()


@pytest.mark.parametrize("what", ["truncate", "fork", "punch", "drop"])
def test_a_touch_of_the_whole_mapping_ends_it(engine: Devices, what: str) -> None:
    world = World(engine(2))
    mm, heap, owner = world.mm, world.heap, Owner(world)
    mm.acquire_exclusive(heap, [2, 70], device=0, on_revoke=owner).write([2, 70], pages(60, 61))
    world.know(heap, [2, 70], pages(60, 61))
    world.device(0).atomic_add(heap, 71, 0, 0)
    if what == "truncate":
        mm.truncate(heap, 50)
        world.model.truncate(heap, 50)
    elif what == "fork":
        world.model.fork(heap, mm.fork(heap))
    elif what == "punch":
        mm.punch(heap, range(50, 80))
        world.model.truncate(heap, 50)
    else:
        mm.drop(heap)
        del world.model.held[heap]
    told = {"truncate": [70], "punch": [70], "fork": [2, 70], "drop": [2, 70]}[what]
    contents = {2: page(60), 70: page(61)}
    assert owner.told == [(told, rows([contents[i] for i in told]))]
    world.agree()
    world.drop_all()


def test_what_its_own_device_does_does_not_end_it(engine: Devices) -> None:
    world = World(engine(2))
    device, heap, owner = world.device(0), world.heap, Owner(world)
    held = world.mm.acquire_exclusive(heap, [0, 1, 9, 1], device=0, on_revoke=owner)
    assert held.index.tolist() == [0, 1, 9]
    assert rows(device.read(heap, [0, 9])) == rows(pages(1, 0))
    device.write(heap, [0, 1, 2], pages(20, 21, 22))
    held.write(9, b"ab", offset=30)
    assert device.read(heap, 9, offset=30, size=2).tobytes() == b"ab"
    device.atomic_add(heap, [0, 0, 3], 1, 4)
    assert held.atomic_add([0, 1], 1, 1)[0] == int(page(20).view(np.uint64)[1]) + 8
    assert rows(device.read(heap, [0])) == rows(held.read(0))
    assert (held.left, owner.told, world.mm.counters.revoked) == (3, [], 0)
    world.mm.check()
    held.release()
    held.release()
    assert not bits(world, heap, 0, 0) & ATOMIC
    world.mm.check()
    with pytest.raises(RevokedError):
        held.read(0)
    device.atomic_add(heap, [0], 1, 1)
    assert world.mm.counters.revoked == 0
    world.mm.release_exclusive(heap, range(80))
    world.mm.check()
    assert not world.mm.grants._grants


def test_pages_of_a_device_taken_by_the_host_come_to_it(engine: Devices) -> None:
    world = World(engine(1))
    device, heap = world.device(0), world.heap
    world.store(heap, [0, 1, 9], pages(20, 21, 22), by=0)
    held = world.mm.acquire_exclusive(heap, [0, 1, 9])
    assert held.atomic_add([0, 9], 0, 1)[0] == int(page(20).view(np.uint64)[0])
    assert held.atomic_add([0, 9], 0, -1)[0] == int(page(20).view(np.uint64)[0]) + 1
    world.mm.check()
    assert rows(device.read(heap, [1])) == rows([page(21)])
    assert held.left == 2, "a device is somebody else"
    world.agree()


def test_a_pinned_page_cannot_be_added_to(engine: Devices) -> None:
    world = World(engine(1))
    heap = world.heap
    for pin in (world.mm.pin(heap, [2], write=True), world.mm.pin(heap, [2])):
        with pin, pytest.raises(BusyError, match="pinned"):
            world.device(0).atomic_add(heap, [0, 2], 0, 1)
        world.agree()
    with world.mm.splice(heap, [2]) as buffer:
        world.device(0).atomic_add(heap, [2], 0, 1)
        assert buffer.bytes() == page(2).tobytes()
    world.mm.check()


def test_a_merge_does_not_touch_what_is_taken(engine: Devices) -> None:
    world = World(engine(1))
    owner = Owner(world)
    world.store(world.heap, [40, 41, 42], page(33))
    held = world.mm.acquire_exclusive(world.heap, [40], device=0, on_revoke=owner)
    assert world.mm.merge().merged == 2
    assert (held.left, owner.told) == (1, [])
    world.agree()
