"""The memory manager and the kernel's KSM merge the same memory; their counters are equal."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import gpudedup as gd
from gpudedup.processes.capture import capture

from .ksm import COUNTERS, PAGE, Population, Populations, let_ksm_run, page_of

pytestmark = pytest.mark.live


def ksm_of(mm: gd.MemoryManager) -> dict[str, int]:
    found = asdict(mm.counters)
    return {name: found[name] for name in COUNTERS}


def load(people: list[Population], path: Path) -> gd.MemoryManager:
    """Load a capture of processes into a manager, and drop what is not mergeable."""
    capture([pid for p in people for pid in p.pids], str(path), stop=True)
    mm = gd.MemoryManager.from_image(path)
    for mapping in mm.mappings:
        if "mg" not in mapping.source_flags.split():
            mm.drop(mapping)
    mm.check()
    return mm


def put(mm: gd.MemoryManager, person: Population, changes: list[tuple[int, int]]) -> None:
    """Write the same pages in the process and in its copy in the manager."""
    person.put(changes)
    pid = f"[{person.pids[0]}]"
    (mapping,) = [
        m
        for m in mm.mappings
        if m.owner.endswith(pid) and m.start <= person.at < m.start + m.pages * PAGE
    ]
    first = (person.at - mapping.start) // PAGE
    data = np.frombuffer(b"".join(page_of(c) for _, c in changes), np.uint8)
    mm.write(mapping, [first + place for place, _ in changes], data.reshape(-1, PAGE))


@pytest.mark.usefixtures("ksm")
@pytest.mark.parametrize("use_zero_pages", [0, 1])
@pytest.mark.parametrize("forks", [0, 2])
def test_counters_before_and_after_stores(
    tmp_path: Path, populations: Populations, use_zero_pages: int, forks: int
) -> None:
    rng = random.Random(forks)

    def some(n: int) -> list[int]:
        return [rng.choice([0, 0, -5, *range(1, 150)]) for _ in range(n)]

    changed = tuple([(place, c) for place, c in enumerate(some(20))] for _ in range(forks))
    people = [populations.start(some(300), changed), populations.start(some(200))]
    mm = load(people, tmp_path / "dump")
    policy = gd.MergePolicy(use_zero_pages=bool(use_zero_pages))
    mm.merge(policy)
    mm.check()
    first = let_ksm_run(256, use_zero_pages)
    assert ksm_of(mm) == first
    assert first["pages_sharing"] > 100
    # Break COW of some pages, make others equal, and merge both again.
    for person in people:
        places = rng.sample(range(200), 60)
        put(mm, person, list(zip(places, some(60), strict=True)))
    mm.check()
    mm.merge(policy)
    mm.check()
    second = let_ksm_run(256, use_zero_pages)
    assert ksm_of(mm) == second
    assert second != first
