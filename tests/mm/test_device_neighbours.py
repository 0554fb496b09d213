"""What a fault of a device maps beside the page that faulted: what needs nothing but an entry."""

from __future__ import annotations

import numpy as np
import pytest

from gpudedup.kernels import ATOMIC, PRESENT, WRITE
from gpudedup.mm.passes.faults import AROUND
from gpudedup.mm.policy import MergePolicy
from gpudedup.mm.state.arrays import LEAF_PAGES

from .common import Meanwhile, page, pages, rows
from .conftest import Devices
from .world import PLACES, World

HERE = range(32, 48)
"""An aligned run in the middle of the first leaf, in which most tests fault."""


def flags(world: World, index: range = HERE, number: int = 0) -> dict[int, int]:
    """Return the bits of a device's entries for some pages of the heap."""
    found, entries = world.device(number).table.present(world.heap)
    bits = (entries & np.uint64(PRESENT | WRITE | ATOMIC)).tolist()
    return {i: bit for i, bit in zip(found.tolist(), bits, strict=True) if i in index}


def there(world: World) -> None:
    """Put pages on the device, as stores of the host leave them, without entries."""
    for mapping in (world.heap, world.file):
        world.store(mapping, range(PLACES), pages(*range(100, 100 + PLACES)))
        assert world.mm.migrate(mapping, range(PLACES), device=0).all()
    assert not flags(world, range(PLACES))


def test_runs_lie_within_a_leaf() -> None:
    assert LEAF_PAGES % AROUND == 0
    assert len(HERE) == AROUND


def test_loads_and_stores_one_page_at_a_time(engine: Devices) -> None:
    world = World(engine(1))
    there(world)
    for i in range(PLACES):
        assert rows(world.device(0).read(world.heap, i)) == [world.model.read(world.heap, i)]
    now = world.mm.counters
    assert (now.device_faults, now.mapped_around) == (PLACES // AROUND, PLACES - PLACES // AROUND)
    assert now.mirrored == PLACES
    assert set(flags(world, range(PLACES)).values()) == {PRESENT}
    world.mm.drop(world.mm.fork(world.heap))
    for i in range(PLACES):
        world.store(world.heap, [i], page(7 + i), by=0)
    # The fork shares all frames: no page of them is ready for a store, and each one faults.
    assert world.mm.counters.device_faults == now.device_faults + PLACES
    assert world.mm.counters.mapped_around == now.mapped_around
    world.agree()
    world.mm.migrate(world.heap, range(PLACES), node=0)
    world.mm.migrate(world.heap, range(PLACES), device=0)
    now = world.mm.counters
    for i in range(PLACES):
        world.store(world.heap, [i], page(9 + i), by=0)
    assert world.mm.counters.device_faults == now.device_faults + PLACES // AROUND
    world.agree()
    world.drop_all()


def test_a_load_maps_what_is_there_and_nothing_else(engine: Devices) -> None:
    world = World(engine(2))
    there(world)
    heap, mm = world.heap, world.mm
    mm.migrate(heap, [33], node=0)
    mm.punch(heap, [34])
    world.model.held[heap].pop(34)
    mm.migrate(heap, [35], device=1)
    mm.migrate(heap, [36, 37], node=0)
    mm.replicate(heap, [36], device=0)
    mm.replicate(heap, [37], device=1)
    owner = mm.acquire_exclusive(heap, [38], device=0)
    pin = mm.pin(heap, [39])
    frames = mm.counters.frames
    assert rows(world.device(0).read(heap, 40)) == [world.model.read(heap, 40)]
    assert flags(world) == dict.fromkeys([32, 36, 39, *range(40, 48)], PRESENT)
    assert mm.counters.frames == frames
    assert owner.left == 1
    assert mm.counters.mapped_around == 10
    mm.check()
    pin.unpin()
    owner.release()
    world.agree()
    world.drop_all()


def test_a_store_maps_what_a_store_would_leave_as_it_is(engine: Devices) -> None:
    world = World(engine(1))
    there(world)
    heap, mm = world.heap, world.mm
    mm.drop(mm.fork(heap))
    # Of shared frames these get their own; the others stay protected.
    world.store(heap, [33, 34, 40, 70], pages(40, 41, 42, 43))
    mm.read(heap, [33])
    frames, new = mm.counters.frames, mm.counters.new_frames
    world.store(heap, [40], page(50), by=0)
    assert flags(world) == dict.fromkeys([33, 34, 40], PRESENT | WRITE)
    assert (mm.counters.frames, mm.counters.new_frames) == (frames, new)
    assert mm.counters.mapped_around == 2
    faults = mm.counters.device_faults
    world.store(heap, [33, 34], pages(51, 52), by=0)
    assert mm.counters.device_faults == faults
    world.agree()
    world.drop_all()


def test_a_clean_page_of_a_file_faults_and_is_dirty(engine: Devices) -> None:
    world = World(engine(1))
    there(world)
    file, mm = world.file, world.mm
    assert mm.writeback(file) == PLACES
    world.store(file, [40, 41], pages(60, 61))
    world.store(file, [42], page(62), by=0)
    # Page 40 and 41 are dirty already: they are mapped with 42.
    assert mm.counters.mapped_around == 2
    assert mm.counters.dirty == 3
    world.store(file, [43], page(63), by=0)
    assert mm.counters.dirty == 4
    world.store(file, [40], page(64), by=0)
    assert mm.writeback(file) == 4
    assert {i: world.disk[i] for i in range(40, 44)} == {
        i: world.model.read(file, i) for i in range(40, 44)
    }
    # Written back, no page keeps an entry that a store would not fault on.
    world.store(file, [40], page(65), by=0)
    assert (mm.counters.dirty, mm.writeback(file)) == (1, 1)
    world.agree()
    world.drop_all()


def test_a_page_that_a_merge_knows_stays_so_until_it_is_stored_to(engine: Devices) -> None:
    world = World(engine(1))
    heap, mm = world.heap, world.mm
    world.store(heap, HERE, pages(*range(200, 216)))
    mm.merge(MergePolicy(kinds=("anon",)))
    unshared = mm.counters.pages_unshared
    mm.migrate(heap, HERE, device=0)
    world.store(heap, [40], page(70), by=0)
    assert flags(world) == {40: PRESENT | WRITE}
    assert mm.counters.pages_unshared == unshared - 1
    world.agree()


@pytest.mark.parametrize("end", ["truncate", "drop", "migrate", "fork", "store"])
def test_entries_of_neighbours_are_invalidated(engine: Devices, end: str) -> None:
    world = World(engine(1))
    there(world)
    heap, mm = world.heap, world.mm
    child = mm.fork(heap)
    world.model.fork(heap, child)
    world.device(0).read(heap, 40)
    assert sorted(flags(world)) == list(HERE)
    before = mm.counters.invalidations
    if end == "truncate":
        mm.truncate(heap, 36)
        world.model.truncate(heap, 36)
        assert sorted(flags(world)) == list(range(32, 36))
    elif end == "drop":
        mm.drop(heap)
        del world.model.held[heap]
    elif end == "migrate":
        mm.migrate(heap, range(34, 36), node=0)
        assert not {34, 35} & set(flags(world))
    elif end == "fork":
        world.store(heap, HERE, page(77))
        assert not flags(world), "they led to the frames of the child"
    else:
        world.store(heap, [33], page(78))
        assert 33 not in flags(world)
    gone = {"truncate": 12, "drop": 16, "migrate": 2, "fork": 16, "store": 1}[end]
    assert mm.counters.invalidations == before + gone
    world.agree()
    world.drop_all()


def test_an_addition_takes_only_its_page(engine: Devices) -> None:
    world = World(engine(1))
    there(world)
    world.device(0).atomic_add(world.heap, 40, 0, 0)
    assert flags(world) == {40: PRESENT | WRITE | ATOMIC}
    assert world.mm.counters.mapped_around == 0
    world.agree()


def test_a_store_through_a_neighbour_s_entry_is_seen_by_a_merge(engine: Devices) -> None:
    world = World(engine(1))
    heap, mm = world.heap, world.mm
    world.store(heap, [32, 33, 50, 51], pages(80, 81, 80, 81))
    frames = mm.memory.state.frame[mm.memory.locate(heap, np.array([32, 33]))[0]].tolist()

    def store() -> None:
        mm.migrate(heap, [32, 33], device=0)
        world.store(heap, [32], page(82), by=0)
        world.store(heap, [33], page(83), by=0)
        assert mm.counters.device_faults == 1
        mm.migrate(heap, [33, 32], node=0)

    report = mm.merge(MergePolicy(kinds=("anon",)), engine=Meanwhile(store))
    pages_now = mm.memory.locate(heap, np.array([32, 33]))[0]
    assert mm.memory.state.frame[pages_now].tolist() == frames, "they are where they were"
    assert (report.written, report.unequal) == (2, 0)
    world.agree()
