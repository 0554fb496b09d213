"""Devices and the host at the same pages at once: no store or atomic add is lost or misplaced."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from gpudedup.devices.host import HostDevice
from gpudedup.errors import BusyError
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.pools import OutOfMemory

from .common import PAGE
from .stress import PAGES, Merger, Stress, Writer, filled, look, numbers_in, readers

pytestmark = pytest.mark.usefixtures("small_chunks")

COUNTERS = 8
"""Pages that atomics add to."""
WORDS = PAGE // 8


class Counting:
    """A manager with two devices, a file whose words atomics add to, and the expected sums."""

    def __init__(self, memory: int | None) -> None:
        self.mm = MemoryManager(PAGE, nodes=2, device_engine=[HostDevice(0, memory), HostDevice(1)])
        self.sums = self.mm.create("sums", kind="file", pages=COUNTERS)
        self.added = np.zeros((COUNTERS, WORDS), np.uint64)
        self.adding = threading.Lock()

    def adder(self, number: int) -> Callable[[np.random.Generator], None]:
        """Return a job that adds to the counters by atomics of one device."""
        device = self.mm.device(number)

        def add(rng: np.random.Generator) -> None:
            index = np.full(12, rng.integers(0, COUNTERS))
            word, value = rng.integers(0, WORDS, 12), rng.integers(0, 1 << 40, 12)
            try:
                device.atomic_add(self.sums, index, word, value)
            except (BusyError, OutOfMemory):
                return
            with self.adding:
                np.add.at(self.added, (index, word), value.astype(np.uint64))

        return add

    def touch_counters(self, rng: np.random.Generator) -> None:
        """Touch the counters, which revokes them from devices, and change no byte."""
        index = rng.integers(0, COUNTERS, 3)
        what = rng.integers(0, 6)
        if what == 0:
            self.mm.read(self.sums, index)
        elif what == 1:
            self.mm.pin(self.sums, index).unpin()
        elif what == 2:
            self.mm.migrate(self.sums, index, node=int(rng.integers(0, 2)))
        elif what == 3:
            self.mm.writeback(self.sums)
        elif what == 4:
            self.mm.drop(self.mm.reflink(self.sums, name="copy"))
        else:
            with self.mm.splice(self.sums, index) as buffer:
                before = buffer.bytes()
                self.mm.device(1).read(self.sums, index)
                assert buffer.bytes() == before


@pytest.mark.parametrize("memory", [None, 300 << 10])
@pytest.mark.parametrize("verify_each", [False, True])
def test_devices_and_the_host_at_once(verify_each: bool, memory: int | None) -> None:
    counting = Counting(memory)
    mm = counting.mm
    writers = [
        Writer(mm, n, kind, by)
        for n, (kind, by) in enumerate(
            (("anon", None), ("file", None), ("anon", 0), ("file", 0), ("anon", 1))
        )
    ]

    def load(rng: np.random.Generator) -> None:
        writer = writers[rng.integers(0, len(writers))]
        device = mm.device(int(rng.integers(0, 2)))
        # No writer truncates the first half of its pages.
        look(numbers_in(device.read(writer.mapping, rng.integers(0, PAGES // 2, 50))), writer)

    def fork(rng: np.random.Generator) -> None:
        writer = writers[rng.choice([0, 2, 4])]
        child: Mapping = mm.fork(writer.mapping)
        index = np.arange(PAGES // 2)
        before = numbers_in(mm.device(0).read(child, index))
        look(before, writer)
        mm.device(1).write(child, [0, 1], filled(np.array([7, 8])))
        before[:2] = (7, 8)
        with mm.splice(child, index) as buffer:
            mm.device(0).write(child, [0], filled(np.array([9])))
            assert buffer.bytes() == filled(before).tobytes()
            before[0] = 9
            for reader in readers(mm):
                assert np.array_equal(numbers_in(reader.read(child, index)), before)
            mm.drop(child)

    merger = Merger(mm, verify_each)
    adders = [counting.adder(0), counting.adder(1), counting.adder(1)]
    Stress().run(
        [*(w.work for w in writers), *adders, counting.touch_counters, load, fork, merger.work]
    )
    for writer in writers:
        writer.compare(np.arange(PAGES))
    assert np.array_equal(mm.read(counting.sums, range(COUNTERS)).view(np.uint64), counting.added)
    assert counting.added.any()
    mm.check()
    assert sum(r.merged for r in merger.reports) > 0
    assert sum(r.on_device for r in merger.reports) > 0
    for mapping in mm.mappings:
        mm.drop(mapping)
    left = mm.counters
    assert (
        left.frames == left.pages == left.replicas == left.pins == left.dirty == left.mirrored == 0
    )
    assert left.pages_shared == left.pages_unshared == left.ksm_zero_pages == 0
    assert all(device.table.leaves_used == 0 for device in mm.devices)
    assert not mm._mappings
    assert not mm.grants._grants
    mm.check()
