"""Devices with too little memory, device pages that a merge skips, and refused arguments."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpudedup.devices.base import Device
from gpudedup.devices.cuda import open_devices
from gpudedup.devices.host import HostDevice
from gpudedup.engines.offload.engine import OffloadEngine
from gpudedup.errors import UnsupportedHereError, UsageError
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.memory.pools import OutOfMemory
from gpudedup.mm.policy import MergePolicy

from ..kernels.shim.device import ShimDevice
from .common import PAGE, page, pages, rows
from .conftest import SMALL_CHUNK, Devices
from .world import WRITTEN, World

pytestmark = pytest.mark.usefixtures("small_chunks")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels")

LITTLE: dict[str, Callable[[int], Device]] = {
    "cpu": lambda memory: HostDevice(0, memory),
    "shim": lambda memory: ShimDevice(memory=memory),
}

SPARE = 160 << 10
"""Bytes that page tables take on a device, and a little more."""


@pytest.fixture(params=["cpu", pytest.param("shim", marks=needs_compiler)])
def little(request: pytest.FixtureRequest) -> Callable[[int], Device]:
    """Return a factory of devices; it takes their bytes of memory."""
    return LITTLE[request.param]


@pytest.mark.parametrize("chunks", [0, 1, 2])
@pytest.mark.parametrize("spare", [8 << 10, 130 << 10, SPARE, SPARE + (40 << 10)])
def test_what_a_little_device_cannot_hold_the_host_does(
    little: Callable[[int], Device], chunks: int, spare: int
) -> None:
    world = World([little(spare + chunks * (SMALL_CHUNK + 1024))])
    mm, device = world.mm, world.device(0)
    large = mm.create("large", pages=700)
    world.model.held[large] = {}
    for turn in range(2):
        contents = pages(*range(turn, turn + 600))
        world.store(large, range(600), contents, by=0)
        world.agree()
        assert mm.counters.remote > 0
        world.store(large, range(300, 700), page(turn), by=0)
        device.write(large, [1, 650, 650], b"abc", offset=4)
        for i in (1, 650):
            world.model.write(large, i, b"abc", 4)
        world.agree()
        mm.merge()
        world.agree()
        world.store(large, range(0, 700, 7), page(9))
        world.agree()
        mm.migrate(large, range(700), node=1)
        world.agree()
    world.drop_all()


@pytest.mark.parametrize("spare", [130 << 10, SPARE])
def test_atomics_beyond_its_memory_are_refused_and_nothing_is_lost(
    little: Callable[[int], Device], spare: int
) -> None:
    world = World([little(spare + SMALL_CHUNK + 1024)])
    mm, device = world.mm, world.device(0)
    large = mm.create("large", pages=700)
    world.model.held[large] = {}
    world.store(large, range(700), pages(*range(700)))
    with pytest.raises(OutOfMemory):
        device.atomic_add(large, range(700), 0, 1)
    world.agree()
    with pytest.raises(OutOfMemory):
        mm.acquire_exclusive(large, range(700), device=0)
    world.agree()
    mm.migrate(large, range(700), node=0)
    for mapping in mm.mappings:
        mm.collapse(mapping, range(mapping.pages))
    held = mm.acquire_exclusive(large, [5] * 400, device=0)
    assert held.read(5).tobytes() == page(5).tobytes()
    world.agree()
    world.drop_all()


def test_replicas_and_pages_beyond_its_memory_are_refused(little: Callable[[int], Device]) -> None:
    world = World([little(SPARE + SMALL_CHUNK)])
    mm = world.mm
    large = mm.create("large", pages=700)
    world.model.held[large] = {}
    world.store(large, range(700), pages(*range(700)))
    for act in (mm.replicate, mm.migrate):
        with pytest.raises(OutOfMemory):
            act(large, range(700), device=0)
        assert act(large, range(100), device=0).all()
    world.agree()
    mm.drop(large)
    del world.model.held[large]
    world.agree()
    world.drop_all()


def test_what_fills_its_memory_it_stores_to(little: Callable[[int], Device]) -> None:
    world = World([little(SPARE + SMALL_CHUNK)])
    mm = world.mm
    large = mm.create("large", pages=200)
    world.model.held[large] = {}
    world.store(large, range(200), pages(*range(200)))
    n = SMALL_CHUNK // PAGE
    assert mm.migrate(large, range(n), device=0).all()
    for start in range(0, n, 32):
        world.store(large, range(start, start + 32), page(9), by=0)
    assert mm.counters.remote == 0
    world.store(large, range(n - 4, n + 1), page(10), by=0)
    assert mm.counters.remote == 1
    world.agree()


def test_a_merge_leaves_pages_on_devices_alone(engine: Devices) -> None:
    world = World(engine(2))
    mm, heap = world.mm, world.heap
    policy = MergePolicy(kinds=("anon", "file"))
    world.store(heap, range(20, 30), page(33), by=0)
    world.store(heap, range(30, 35), page(33), by=1)
    world.store(heap, range(35, 40), page(33))
    report = mm.merge(policy)
    assert (report.on_device, report.pinned, report.written) == (15, 0, 0)
    # Three pages of 1 and of 2, two of 0, five of 33.
    assert report.merged == 2 + 2 + 1 + 4
    world.agree()
    assert mm.migrate(heap, range(80), node=0).all()
    report = mm.merge(policy)
    assert report.on_device == 0
    assert mm.counters.frames - mm.counters.replicas == 12, "different contents"
    world.agree()
    mm.migrate(heap, range(20, 40), device=0)
    assert mm.merge(policy).on_device == 20
    world.agree()
    world.drop_all()


def test_merging_pages_of_which_devices_have_replicas(engine: Devices) -> None:
    world = World(engine(2))
    mm, heap = world.mm, world.heap
    world.agree()
    assert world.mirrored(heap, 0) == list(range(80))
    report = mm.merge(MergePolicy(kinds=("anon", "file")))
    assert report.merged > 0
    mm.check()
    assert 1 not in world.mirrored(heap, 0), "it moved"
    assert 3 in world.mirrored(heap, 0), "it is like no other"
    world.agree()
    mm.collapse(heap, WRITTEN)
    mm.collapse(world.file, WRITTEN)
    assert mm.counters.replicas == 0
    world.agree()


@needs_compiler
def test_a_device_finds_what_to_merge_while_another_has_pages() -> None:
    world = World([ShimDevice()])
    world.store(world.heap, range(20, 60), pages(*([50] * 40)))
    world.store(world.file, range(20, 30), page(50), by=0)
    world.agree()
    engine = OffloadEngine([ShimDevice(seed=1)], 2, chunk_bytes=64 << 10)
    report = world.mm.merge(MergePolicy(kinds=("anon", "file")), engine=engine)
    assert report.merged >= 39
    assert report.on_device == 10
    world.agree()
    world.drop_all()


Act = Callable[[World, Any], Any]

REFUSED: dict[str, tuple[str, Act]] = {
    "beyond": ("no page 80", lambda w, d: d.read(w.heap, [0, 80])),
    "negative": ("no page -1", lambda w, d: d.write(w.heap, [-1], page(1))),
    "add beyond": ("no page 80", lambda w, d: d.atomic_add(w.heap, [80], 0, 1)),
    "no index": ("not integers", lambda w, d: d.read(w.heap, [0.5])),
    "offset": ("10 bytes at 510", lambda w, d: d.read(w.heap, 0, offset=510, size=10)),
    "negative offset": ("at -1", lambda w, d: d.read(w.heap, 0, offset=-1, size=1)),
    "negative size": ("-1 bytes", lambda w, d: d.read(w.heap, 0, size=-1)),
    "offset of a store": ("at 510", lambda w, d: d.write(w.heap, 0, b"abc", offset=510)),
    "part of a page": ("3 bytes", lambda w, d: d.write(w.heap, 0, b"abc")),
    "data of words": ("type uint64", lambda w, d: d.write(w.heap, 0, np.zeros(64, np.uint64))),
    "rows of data": ("for 2 pages", lambda w, d: d.write(w.heap, [0, 1], pages(1, 2, 3))),
    "word": ("word 64", lambda w, d: d.atomic_add(w.heap, [0, 1], [0, 64], 1)),
    "negative word": ("word -1", lambda w, d: d.atomic_add(w.heap, 0, -1, 1)),
    "half a word": ("not integers", lambda w, d: d.atomic_add(w.heap, 0, 0.5, 1)),
    "vast word": ("word", lambda w, d: d.atomic_add(w.heap, 0, 1 << 64, 1)),
    "words": ("shape", lambda w, d: d.atomic_add(w.heap, [0, 1], [0, 1, 2], 1)),
    "half": ("not integers", lambda w, d: d.atomic_add(w.heap, 0, 0, 0.5)),
    "vast value": ("not integers", lambda w, d: d.atomic_add(w.heap, 0, 0, 1 << 64)),
    "values": ("shape", lambda w, d: d.atomic_add(w.heap, [0, 1], 0, [1, 2, 3])),
    "both": ("one of", lambda w, d: w.mm.replicate(w.heap, 0, node=0, device=0)),
    "neither": ("one of", lambda w, d: w.mm.migrate(w.heap, 0)),
    "device": ("device 2", lambda w, d: w.mm.migrate(w.heap, 0, device=2)),
    "negative device": ("device -1", lambda w, d: w.mm.device(-1)),
    "device that takes": ("device 2", lambda w, d: w.mm.acquire_exclusive(w.heap, 0, device=2)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    world = World([HostDevice(0), HostDevice(1)])
    message, act = REFUSED[what]
    world.device(1).write(world.heap, 0, page(1))
    with pytest.raises(UsageError, match=message):
        act(world, world.device(0))
    world.agree()
    assert world.mm.counters.pins == 0


@pytest.mark.parametrize("what", ["read", "write", "atomic_add"])
def test_a_mapping_that_is_gone_or_another_manager_s(what: str) -> None:
    world, other = World([HostDevice()]), World([HostDevice()])
    more = {"read": (), "write": (page(1),), "atomic_add": (0, 1)}[what]
    access = getattr(world.device(0), what)
    with pytest.raises(UsageError, match="manager"):
        access(other.heap, [0], *more)
    world.mm.drop(world.heap)
    with pytest.raises(UsageError, match="dropped"):
        access(world.heap, [0], *more)
    again = world.mm.create("again", pages=80)
    assert again.number == world.heap.number
    with pytest.raises(UsageError, match="dropped"):
        access(world.heap, [], *more)
    access(again, [0], *more)
    world.mm.check()


def test_nothing_is_asked_for(engine: Devices) -> None:
    world = World(engine(1))
    device = world.device(0)
    assert device.read(world.heap, []).shape == (0, PAGE)
    assert device.read(world.heap, [0, 1], size=0).shape == (2, 0)
    assert device.read(world.heap, [0], offset=PAGE).shape == (1, 0)
    device.write(world.heap, [], pages())
    device.write(world.heap, [0], b"", offset=0)
    assert device.atomic_add(world.heap, [], 0, 1).shape == (0,)
    world.agree()


def test_which_devices_there_are() -> None:
    for devices in (-1, 9):
        with pytest.raises(UsageError, match="devices"):
            MemoryManager(PAGE, devices=devices, device_engine="cpu")
    with pytest.raises(UsageError, match="engine 'gpu'"):
        MemoryManager(PAGE, devices=1, device_engine="gpu")
    nine = [HostDevice(n) for n in range(9)]
    for given, count in ((nine, None), (nine[:2], 3)):
        with pytest.raises(UsageError, match="given"):
            MemoryManager(PAGE, devices=count, device_engine=given)
    assert MemoryManager(PAGE).devices == []
    assert MemoryManager(PAGE, device_engine="cuda").devices == []
    mm = MemoryManager(PAGE, nodes=64, devices=8, device_engine="cpu")
    assert [mm.device(n).name for n in range(8)] == [f"cpu ({n})" for n in range(8)]
    heap = mm.create("heap", pages=1, node=63)
    for device in mm.devices:
        device.atomic_add(heap, 0, 0, 1)
    assert mm.read(heap, 0).view(np.uint64)[0, 0] == 8
    mm.check()


def test_where_there_is_no_gpu() -> None:
    try:
        open_devices()
    except UnsupportedHereError:
        pass
    else:
        pytest.skip("there is a GPU")
    with pytest.raises(UnsupportedHereError):
        MemoryManager(PAGE, devices=1, device_engine="cuda")
    assert MemoryManager(PAGE, devices=2).device(1).name == "cpu (1)"


def test_an_image_is_loaded_beside_devices() -> None:
    held = pages(1, 0, 1, 2)
    mm = MemoryManager.from_image(held, devices=1, device_engine="cpu")
    (mapping,) = mm.mappings
    assert rows(mm.device(0).read(mapping, range(4))) == rows(held)
    mm.check()
