"""Random processes, forks and regions: KSM's counters are what a scan and the manager say."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

import pytest

import gpudedup as gd

from ..long.amounts import SEED, amount, say
from .ksm import PAGE, Population, Populations, let_ksm_run, page_of, write_ksm
from .test_ksm import check
from .test_manager import ksm_of

pytestmark = pytest.mark.live

LAYOUTS = amount(2, 200)

CAP = 256
"""KSM's own limit of pages to a frame."""


class Layout:
    """Random processes: what they hold, which of their regions KSM may merge, and their forks."""

    def __init__(self, rng: random.Random, populations: Populations) -> None:
        self.rng = rng
        # Pages that forks share already may exceed the limit in the kernel: none has so many.
        self.forks = rng.random() < 0.5
        self.cap = CAP if self.forks else rng.choice([CAP, 17, 3, 2])
        self.use_zero_pages = rng.randrange(2)
        self.contents = [
            *[0] * rng.randrange(4), *(-rng.randrange(1, 256) for _ in range(rng.randrange(3))),
            *range(1, rng.choice([40, 150, 900] if self.forks else [4, 40, 150, 900])),
        ]  # fmt: skip
        self.people = [self._start(populations) for _ in range(rng.randrange(1, 4))]

    def _start(self, populations: Populations) -> Population:
        size = self.rng.randrange(1, 400)
        forks = tuple(
            [(place, self.content()) for place in self._places(size)]
            for _ in range(self.rng.randrange(3) if self.forks else 0)
        )
        plain = []
        for _ in range(self.rng.choice([0, 1, 3])):
            first = self.rng.randrange(size)
            plain.append((first, self.rng.randrange(1, size - first + 1)))
        contents = [self.content() for _ in range(size)]
        return populations.start(contents, forks, tuple(plain))

    def content(self) -> int:
        chosen: int = self.rng.choice(self.contents)
        return chosen

    def _places(self, size: int) -> list[int]:
        return self.rng.sample(range(size), self.rng.randrange(size + 1))

    def changes(self) -> list[tuple[int, int]]:
        return [(place, self.content()) for place in range(self.rng.randrange(20))]

    @property
    def policy(self) -> gd.MergePolicy:
        return gd.MergePolicy(max_page_sharing=self.cap, use_zero_pages=bool(self.use_zero_pages))

    @property
    def pids(self) -> list[int]:
        return [pid for person in self.people for pid in person.pids]


def load(path: Path) -> gd.MemoryManager:
    """Load a capture into a manager, and drop what is not mergeable."""
    mm = gd.MemoryManager.from_image(path)
    for mapping in mm.mappings:
        if "mg" not in mapping.source_flags.split():
            mm.drop(mapping)
    return mm


def put(mm: gd.MemoryManager, person: Population, changes: list[tuple[int, int]]) -> None:
    """Write the same pages in the process and in its copy in the manager, where it has them."""
    person.put(changes)
    own = [m for m in mm.mappings if m.owner.endswith(f"[{person.pids[0]}]")]
    for place, content in changes:
        address = person.at + place * PAGE
        for mapping in own:
            if mapping.start <= address < mapping.start + mapping.pages * PAGE:
                mm.write(mapping, (address - mapping.start) // PAGE, page_of(content))


@pytest.mark.usefixtures("ksm")
def test_counters_of_random_layouts(tmp_path: Path) -> None:
    merged = again = 0
    for number in range(LAYOUTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            with ExitStack() as stack:
                layout = Layout(random.Random(SEED << 40 | number), Populations(stack))
                merged += bool(compare(layout, folder)["pages_shared"])
                again += change(layout, load(folder / "before"))
        except AssertionError as error:
            error.add_note(f"seed {SEED}, layout {number}")
            raise
        for path in folder.iterdir():
            path.unlink()
        write_ksm("run", 2)
    assert merged
    say(f"{LAYOUTS} layouts, {merged} of which KSM merges; {again} once more after stores")


def compare(layout: Layout, folder: Path) -> dict[str, int]:
    """Compare KSM's counters with those of the scan and of the manager; return them."""
    expected = check(layout.pids, folder, layout.cap, layout.use_zero_pages)
    mm = load(folder / "before")
    mm.merge(layout.policy)
    mm.check()
    assert ksm_of(mm) == expected
    return expected


def change(layout: Layout, mm: gd.MemoryManager) -> bool:
    """Store to some pages, merge again, and compare again, where no frame reaches its limit.

    Which of several full frames KSM frees first is its own affair.
    """
    mm.merge(layout.policy)
    if layout.cap < CAP or mm.counters.stable_node_chains:
        return False
    for person in layout.people:
        put(mm, person, layout.changes())
    mm.merge(layout.policy)
    mm.check()
    if mm.counters.stable_node_chains:
        return False
    assert let_ksm_run(layout.cap, layout.use_zero_pages) == ksm_of(mm)
    return True
