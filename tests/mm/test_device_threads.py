"""Devices and the host at the same pages at the same time: no store is lost, none is seen where it
was not made, and what is added to comes out right."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.engines.host_device import HostDevice
from gpudedup.errors import BusyError
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.policy import MergePolicy
from gpudedup.mm.pools import OutOfMemory

from .common import PAGE

pytestmark = pytest.mark.usefixtures("small_chunks")

PAGES = 200
SECONDS = 3.0
ROUNDS = 5
"""Of each thread, at least."""
OWN = 1000
"""Numbers from here on are one writer's own; those below are everybody's, so that pages merge."""
COUNTERS = 8
"""Pages that are added to."""
WORDS = PAGE // 8

Numbers = npt.NDArray[np.int64]


def filled(numbers: Numbers) -> npt.NDArray[np.uint8]:
    """A page holds its number in every word: torn or foreign pages show."""
    return np.repeat(numbers[:, None], WORDS, axis=1).view(np.uint8)


def numbers_in(found: npt.NDArray[np.uint8]) -> Numbers:
    words = found.view(np.int64)
    assert (words == words[:, :1]).all(), "a torn page"
    return np.ascontiguousarray(words[:, 0])


class Stress:
    """Threads that stop when the time is over, or one of them fails."""

    def __init__(self, memory: int | None) -> None:
        self.mm = MemoryManager(PAGE, nodes=2, device_engine=[HostDevice(0, memory), HostDevice(1)])
        self.sums = self.mm.create("sums", kind="file", pages=COUNTERS)
        self.added = np.zeros((COUNTERS, WORDS), np.uint64)
        self.adding = threading.Lock()
        self.end = time.monotonic() + SECONDS
        self.failed: list[BaseException] = []

    def run(self, jobs: list[Callable[[np.random.Generator], Any]]) -> None:
        threads = [
            threading.Thread(target=self.loop, args=(job, seed)) for seed, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed[0]

    def loop(self, job: Callable[[np.random.Generator], Any], seed: int) -> None:
        rng, rounds = np.random.default_rng(seed), 0
        try:
            # The time may be over before everything is compiled.
            while (time.monotonic() < self.end or rounds < ROUNDS) and not self.failed:
                job(rng)
                rounds += 1
        except BaseException as error:
            self.failed.append(error)

    def adder(self, number: int) -> Callable[[np.random.Generator], None]:
        """Return what adds to the counters by one device."""
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
        """Do to the counters what takes them from devices, and changes nothing."""
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


def readers(mm: MemoryManager) -> list[Any]:
    """Return all by which pages can be read."""
    return [mm, *mm.devices]


class Writer:
    """Writes its own mapping, by the host or a device, and knows what each page must hold."""

    def __init__(self, stress: Stress, number: int, kind: str, by: int | None) -> None:
        self.mm, self.own, self.by = stress.mm, OWN * (number + 1), by
        self.mapping = self.mm.create("m", kind=kind, pages=PAGES, node=number % 2)
        self.held = np.zeros(PAGES, np.int64)

    def work(self, rng: np.random.Generator) -> None:
        index = rng.integers(0, PAGES, rng.integers(1, 40))
        numbers = rng.integers(1, 20, len(index))
        numbers[rng.random(len(index)) < 0.2] += self.own
        self.reach().write(self.mapping, index, filled(numbers))
        self.held[index] = numbers
        what = rng.integers(0, 12)
        if what == 0:
            self.mm.punch(self.mapping, index)
            self.held[index] = 0
        elif what == 1:
            self.mm.truncate(self.mapping, PAGES // 2)
            self.mm.truncate(self.mapping, PAGES)
            self.held[PAGES // 2 :] = 0
        elif what == 2:
            self.mm.unmerge(self.mapping, index)
        elif what == 3:
            with self.mm.pin(self.mapping, index[:1], write=True) as pin:
                pin.write(filled(self.held[index[:1]] + 1))
                self.held[index[:1]] += 1
        elif what == 4:
            self.mm.write(self.mapping, index, filled(numbers + 1))
            self.held[index] = numbers + 1
        elif what == 5 and self.mapping.is_file:
            self.mm.writeback(self.mapping, index)
        elif what == 6:
            self.mm.migrate(self.mapping, index, node=int(rng.integers(0, 2)))
        self.compare(index)

    def reach(self) -> Any:
        return self.mm if self.by is None else self.mm.device(self.by)

    def compare(self, index: Numbers) -> None:
        for reader in readers(self.mm):
            found = numbers_in(reader.read(self.mapping, index))
            assert np.array_equal(found, self.held[index]), "a lost store"


@pytest.mark.parametrize("memory", [None, 300 << 10])
@pytest.mark.parametrize("verify_each", [False, True])
def test_devices_and_the_host_at_once(verify_each: bool, memory: int | None) -> None:
    stress = Stress(memory)
    mm = stress.mm
    writers = [
        Writer(stress, n, kind, by)
        for n, (kind, by) in enumerate(
            (("anon", None), ("file", None), ("anon", 0), ("file", 0), ("anon", 1))
        )
    ]

    def look(found: Numbers, writer: Writer) -> None:
        assert np.isin(found // OWN * OWN, (0, writer.own)).all(), "another mapping's page"

    def load(rng: np.random.Generator) -> None:
        writer = writers[rng.integers(0, len(writers))]
        device = mm.device(int(rng.integers(0, 2)))
        # Half of the pages are always there.
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

    def merge(rng: np.random.Generator) -> None:
        policy = MergePolicy(
            kinds=("anon", "file"),
            max_page_sharing=int(rng.choice([2, 8, 256])),
            use_zero_pages=bool(rng.integers(0, 2)),
        )
        merged.append(mm.merge(policy))
        if verify_each:
            mm.check()

    merged: list[Any] = []
    adders = [stress.adder(0), stress.adder(1), stress.adder(1)]
    stress.run([*(w.work for w in writers), *adders, stress.touch_counters, load, fork, merge])
    for writer in writers:
        writer.compare(np.arange(PAGES))
    assert np.array_equal(mm.read(stress.sums, range(COUNTERS)).view(np.uint64), stress.added)
    assert stress.added.any()
    mm.check()
    assert sum(r.merged for r in merged) > 0
    assert sum(r.on_device for r in merged) > 0
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
