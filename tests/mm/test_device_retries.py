"""Device faults that retry: an invalidation came before they made their entries."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpudedup.arguments import Index
from gpudedup.errors import UsageError
from gpudedup.mm.device import PATIENCE, ManagedDevice
from gpudedup.mm.memory.device_table import Made

from .common import page, rows
from .conftest import Devices
from .world import World

pytestmark = pytest.mark.usefixtures("small_chunks")


class Meanwhile:
    """Calls ``act``, in another thread, between the making of a fault's entries and their entry.

    If the manager's lock is held, that thread waits for the lock, and the device goes on.
    """

    def __init__(
        self, world: World, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch, times: int
    ) -> None:
        self.lock, self.act = world.mm.lock, act
        self.left = times
        self.entered = 0
        self.late: list[threading.Thread] = []
        submit = ManagedDevice._submit

        def later(device: ManagedDevice, access: Any, rows: Index, made: Made | None) -> Index:
            self.entered += made is not None
            if self.left and made is not None:
                self.left -= 1
                self.interfere()
            return submit(device, access, rows, made)

        monkeypatch.setattr(ManagedDevice, "_submit", later)

    def interfere(self) -> None:
        begun, held = threading.Event(), []

        def act() -> None:
            held.append(not self.lock.acquire(blocking=False))
            begun.set()
            if held[0]:
                self.lock.acquire()
            try:
                self.act()
            finally:
                self.lock.release()

        thread = threading.Thread(target=act)
        thread.start()
        begun.wait()
        if held[0]:
            self.late.append(thread)
            self.left = 0
        else:
            thread.join()

    def finish(self) -> None:
        for thread in self.late:
            thread.join()


STORES = {
    "host": lambda world: world.mm.write(world.heap, [0, 9], page(30)),
    "fork": lambda world: world.mm.drop(world.mm.fork(world.heap)),
    "device": lambda world: world.device(1).write(world.heap, [0, 9], page(30)),
    "away": lambda world: world.mm.migrate(world.heap, [0, 9], node=1),
    "punch": lambda world: world.mm.punch(world.heap, [0, 9]),
}


@pytest.mark.parametrize("access", ["load", "store", "add"])
@pytest.mark.parametrize("store", STORES)
def test_a_fault_that_comes_too_late_asks_again(
    engine: Devices, access: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(engine(2))
    device, heap = world.device(0), world.heap
    held = [world.model.read(heap, i) for i in (0, 9)]
    if store in ("host", "device"):
        held = rows([page(30)] * 2)
    elif store == "punch":
        held = rows([page(0)] * 2)
    meanwhile = Meanwhile(world, lambda: STORES[store](world), monkeypatch, 1)
    if access == "load":
        assert rows(device.read(heap, [0, 9])) == held
    elif access == "store":
        device.write(heap, [0, 9], b"abc", offset=5)
        held = [row[:5] + b"abc" + row[8:] for row in held]
    else:
        before = device.atomic_add(heap, [0, 9], 0, 7)
        words = np.array([np.frombuffer(row, np.uint64) for row in held])
        assert before.tolist() == words[:, 0].tolist()
        words[:, 0] += np.uint64(7)
        held = rows(words)
    meanwhile.finish()
    # A host store goes to the device's frame, and a fork keeps read-only entries: no invalidation.
    late = (access, store) not in (("store", "host"), ("load", "fork"))
    assert device.mirror.retries == world.mm.counters.retries == late
    assert rows(world.mm.read(heap, [0, 9])) == held
    world.mm.check()


@pytest.mark.parametrize("access", ["load", "store", "add"])
def test_an_adversary_is_overcome(
    engine: Devices, access: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(engine(1))
    device, heap = world.device(0), world.heap

    def interfere() -> None:
        world.mm.write(heap, [0, 9], page(30))
        world.mm.migrate(heap, [0, 9], node=1)

    meanwhile = Meanwhile(world, interfere, monkeypatch, 10 * PATIENCE)
    if access == "load":
        assert rows(device.read(heap, [0, 9])) == rows([page(30)] * 2)
    elif access == "store":
        device.write(heap, [0, 9], page(31))
    else:
        assert device.atomic_add(heap, 0, 0, 1)[0] == page(30).view(np.uint64)[0]
    assert meanwhile.entered == PATIENCE + 1
    assert device.mirror.retries == PATIENCE
    meanwhile.finish()
    assert rows(world.mm.read(heap, [0, 9])) == rows([page(30)] * 2), "the adversary came last"
    world.mm.check()


def test_a_mapping_that_goes_meanwhile(engine: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(engine(1))
    meanwhile = Meanwhile(world, lambda: world.mm.drop(world.heap), monkeypatch, 1)
    with pytest.raises(UsageError, match="dropped"):
        world.device(0).read(world.heap, [0, 9])
    meanwhile.finish()
    del world.model.held[world.heap]
    again = world.create("again", "anon")
    assert again.number == world.heap.number
    world.store(again, [0], page(40))
    world.agree()
    world.drop_all()


def test_two_faults_of_one_device_at_once(engine: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(engine(1))
    device, heap = world.device(0), world.heap
    meanwhile = Meanwhile(world, lambda: device.write(heap, [0, 9], page(33)), monkeypatch, 1)
    assert rows(device.read(heap, [0, 9])) == rows([page(33)] * 2)
    meanwhile.finish()
    device.write(heap, [0, 9], page(34))
    assert rows(world.mm.read(heap, [0, 9])) == rows([page(34)] * 2)
    world.mm.check()
