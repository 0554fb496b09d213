"""Threads that store, load and merge in one manager, and know which bytes must be there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.policy import MergePolicy

from .common import PAGE

PAGES = 200
SECONDS = 3.0
ROUNDS = 5
"""Least rounds of each thread: compiling may take longer than SECONDS."""
OWN = 1000
"""First number that only one writer stores; lower ones are common, so that pages merge."""

Numbers = npt.NDArray[np.int64]
Job = Callable[[np.random.Generator], Any]


def filled(numbers: Numbers) -> npt.NDArray[np.uint8]:
    """Fill each page with its number, in every word: torn or foreign pages show."""
    return np.repeat(numbers[:, None], PAGE // 8, axis=1).view(np.uint8)


def numbers_in(found: npt.NDArray[np.uint8]) -> Numbers:
    words = found.view(np.int64)
    assert (words == words[:, :1]).all(), "a torn page"
    return np.ascontiguousarray(words[:, 0])


class Stress:
    """Runs each job in its own thread, again and again until the time is over or one job fails."""

    def __init__(self) -> None:
        self.end = time.monotonic() + SECONDS
        self.failed: list[BaseException] = []

    def run(self, jobs: list[Job]) -> None:
        threads = [
            threading.Thread(target=self.loop, args=(job, seed)) for seed, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed[0]

    def loop(self, job: Job, seed: int) -> None:
        rng, rounds = np.random.default_rng(seed), 0
        try:
            while (time.monotonic() < self.end or rounds < ROUNDS) and not self.failed:
                job(rng)
                rounds += 1
        except BaseException as error:
            self.failed.append(error)


def readers(mm: MemoryManager) -> list[Any]:
    """Return all that read pages: the manager and its devices."""
    return [mm, *mm.devices]


class Writer:
    """Writes its own mapping, from the host or a device, and knows what each page must hold."""

    def __init__(self, mm: MemoryManager, number: int, kind: str, by: int | None = None) -> None:
        self.mm, self.own, self.by = mm, OWN * (number + 1), by
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


def look(found: Numbers, writer: Writer) -> None:
    assert np.isin(found // OWN * OWN, (0, writer.own)).all(), "another mapping's page"


class Merger:
    """Merges, each time by a random policy."""

    def __init__(self, mm: MemoryManager, verify_each: bool) -> None:
        self.mm, self.verify_each = mm, verify_each
        self.reports: list[Any] = []

    def work(self, rng: np.random.Generator) -> None:
        policy = MergePolicy(
            kinds=("anon", "file"),
            max_page_sharing=int(rng.choice([2, 8, 256])),
            use_zero_pages=bool(rng.integers(0, 2)),
        )
        self.reports.append(self.mm.merge(policy))
        if self.verify_each:
            self.mm.check()
