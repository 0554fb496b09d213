"""Stores, loads, forks, pins and writebacks while merging runs: no store is lost, none is seen
where it was not made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.policy import MergePolicy

from .common import PAGE

PAGES = 300
SECONDS = 3.0
OWN = 1000
"""Numbers from here on are one writer's own; those below are everybody's, so that pages merge."""


def filled(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """A page holds its number in every word: torn or foreign pages show."""
    return np.repeat(numbers[:, None], PAGE // 8, axis=1).view(np.uint8)


def numbers_in(found: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    words = found.view(np.int64)
    assert (words == words[:, :1]).all(), "a torn page"
    return np.ascontiguousarray(words[:, 0])


class Stress:
    """Threads that stop when the time is over, or one of them fails."""

    def __init__(self) -> None:
        self.mm = MemoryManager(PAGE, nodes=2)
        self.end = time.monotonic() + SECONDS
        self.failed: list[BaseException] = []
        self.rounds: dict[str, int] = {}
        self.disk: dict[int, bytes] = {}

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
        rng = np.random.default_rng(seed)
        try:
            while time.monotonic() < self.end and not self.failed:
                job(rng)
                name = job.__qualname__
                self.rounds[name] = self.rounds.get(name, 0) + 1
        except BaseException as error:
            self.failed.append(error)


class Writer:
    """Writes its own mapping, and knows what each of its pages must hold."""

    def __init__(self, stress: Stress, number: int, kind: str) -> None:
        self.mm, self.own = stress.mm, OWN * (number + 1)
        self.mapping = self.mm.create("m", kind=kind, pages=PAGES, node=number % 2)
        self.held = np.zeros(PAGES, np.int64)

    def work(self, rng: np.random.Generator) -> None:
        index = rng.integers(0, PAGES, rng.integers(1, 60))
        numbers = rng.integers(1, 20, len(index))
        numbers[rng.random(len(index)) < 0.2] += self.own
        self.mm.write(self.mapping, index, filled(numbers))
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
        elif what == 4 and self.mapping.is_file:
            self.mm.writeback(self.mapping, index)
        self.compare(index)

    def compare(self, index: npt.NDArray[np.int64]) -> None:
        found = numbers_in(self.mm.read(self.mapping, index))
        assert np.array_equal(found, self.held[index]), "a lost store"


@pytest.mark.parametrize("verify_each", [False, True])
def test_stores_while_merging(verify_each: bool) -> None:
    stress = Stress()
    mm = stress.mm
    writers = [Writer(stress, n, kind) for n, kind in enumerate(("anon", "anon", "file"))]

    def look(found: npt.NDArray[np.int64], writer: Writer) -> None:
        whose = found // OWN * OWN
        assert np.isin(whose, (0, writer.own)).all(), "another mapping's page"

    def read(rng: np.random.Generator) -> None:
        writer = writers[rng.integers(0, 3)]
        # Half of the pages are always there.
        look(numbers_in(mm.read(writer.mapping, rng.integers(0, PAGES // 2, 50))), writer)

    def fork(rng: np.random.Generator) -> None:
        writer = writers[rng.integers(0, 2)]
        child: Mapping = mm.fork(writer.mapping)
        index = np.arange(PAGES // 2)
        before = numbers_in(mm.read(child, index))
        look(before, writer)
        mm.write(child, [0, 1], filled(np.array([7, 8])))
        before[:2] = (7, 8)
        with mm.splice(child, index) as buffer:
            mm.migrate(child, index, node=1)
            assert np.array_equal(numbers_in(mm.read(child, index)), before)
            mm.drop(child)
            assert buffer.bytes() == filled(before).tobytes()

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
    stress.run([*(w.work for w in writers), read, fork, merge])
    for writer in writers:
        writer.compare(np.arange(PAGES))
    mm.check()
    assert sum(r.merged for r in merged) > 0
    assert sum(r.written for r in merged) > 0
    for writer in writers:
        mm.drop(writer.mapping)
    left = mm.counters
    assert left.frames == left.pins == left.dirty == left.pages_shared == left.pages_unshared == 0
    mm.check()
