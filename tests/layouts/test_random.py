"""Random operations in all layouts and in the manager at once, against a dict of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from gpudedup.layouts.base import Region
from gpudedup.layouts.bookkeeping import LAYOUTS, Bookkeeping
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.policy import MergePolicy
from gpudedup.schema import KINDS

from ..mm.common import PAGE, page, rows

MOST = 70
"""Pages of a mapping: two leaves."""

NODES = 3

contents = st.integers(0, 4)
places = st.lists(st.integers(0, 3) | st.integers(0, MOST), max_size=6)
nodes = st.integers(0, NODES - 1)


@dataclass(eq=False)
class Same:
    """One mapping in the manager and in every layout, and what it must hold."""

    mapping: Mapping
    regions: list[Region]
    held: dict[int, bytes] = field(default_factory=dict)

    def here(self, index: list[int]) -> list[int]:
        return [i for i in index if i < self.mapping.pages]


class Random(RuleBasedStateMachine):
    """Each rule does one operation in the manager and in all layouts; then all are checked."""

    mappings = Bundle("mappings")

    @initialize(cap=st.sampled_from([2, 3, 256]))
    def begin(self, cap: int) -> None:
        self.cap = cap
        self.mm = MemoryManager(PAGE, nodes=NODES)
        for node in range(NODES):
            # Number frames by node, as the layouts do: merging takes frames in that order.
            self.mm.memory.ensure(node, 1)
        self.books = [
            Bookkeeping(name, PAGE, nodes=NODES, max_page_sharing=cap) for name in LAYOUTS
        ]
        self.alive: list[Same] = []

    def everywhere(self, same: Same, act: Callable[[Any, Any], Any]) -> list[Any]:
        places: list[tuple[Any, Any]] = [
            (self.mm, same.mapping),
            *zip(self.books, same.regions, strict=True),
        ]
        return [act(manager, mapping) for manager, mapping in places]

    def add(self, made: list[Any], held: dict[int, bytes]) -> Same:
        same = Same(made[0], made[1:], held)
        self.alive.append(same)
        return same

    @rule(
        target=mappings,
        kind=st.sampled_from(["anon", "file"]),
        pages=st.integers(0, MOST),
        node=nodes,
    )
    def create(self, kind: str, pages: int, node: int) -> Same:
        managers: list[Any] = [self.mm, *self.books]
        return self.add([m.create("m", kind=kind, pages=pages, node=node) for m in managers], {})

    @rule(same=mappings, index=places, seed=st.lists(contents, min_size=6, max_size=6))
    def write(self, same: Same, index: list[int], seed: list[int]) -> None:
        index = same.here(index)
        data = np.stack([page(s) for s in seed])[: len(index)]
        self.everywhere(same, lambda m, which: m.write(which, index, data))
        same.held |= dict(zip(index, rows(data), strict=True))

    @rule(same=mappings, index=places, offset=st.integers(0, PAGE - 2), byte=st.integers(0, 2))
    def write_part(self, same: Same, index: list[int], offset: int, byte: int) -> None:
        index = same.here(index)
        data = bytes([byte]) * 2
        self.everywhere(same, lambda m, which: m.write(which, index, data, offset=offset))
        for i in index:
            old = same.held.get(i, bytes(PAGE))
            same.held[i] = old[:offset] + data + old[offset + 2 :]

    @rule(same=mappings, index=places, seed=contents)
    def file_write(self, same: Same, index: list[int], seed: int) -> None:
        if same.mapping.is_file:
            self.everywhere(same, lambda m, which: m.file_write(which, index, page(seed)))
            same.held |= dict.fromkeys(index, page(seed).tobytes())

    @rule(target=mappings, same=mappings)
    def copy(self, same: Same) -> Any:
        if len(self.alive) > 6:
            return multiple()
        if same.mapping.is_file:
            made = self.everywhere(same, lambda m, which: m.reflink(which, name="copy"))
        else:
            made = self.everywhere(same, lambda m, which: m.fork(which))
        return self.add(made, dict(same.held))

    @rule(same=mappings, pages=st.integers(0, MOST))
    def truncate(self, same: Same, pages: int) -> None:
        self.everywhere(same, lambda m, which: m.truncate(which, pages))
        same.held = {i: data for i, data in same.held.items() if i < pages}

    @rule(same=mappings, index=places)
    def punch(self, same: Same, index: list[int]) -> None:
        index = same.here(index)
        self.everywhere(same, lambda m, which: m.punch(which, index))
        for i in index:
            same.held.pop(i, None)

    @rule(same=consumes(mappings))
    def drop(self, same: Same) -> None:
        self.everywhere(same, lambda m, which: m.drop(which))
        self.alive.remove(same)

    @rule(same=mappings, index=places, node=nodes)
    def migrate(self, same: Same, index: list[int], node: int) -> None:
        found = self.everywhere(
            same, lambda m, which: m.migrate(which, same.here(index), node=node)
        )
        assert all(moved.all() for moved in found)

    @rule(same=mappings, index=places, node=nodes)
    def replicate(self, same: Same, index: list[int], node: int) -> None:
        index = same.here(index)
        found = self.everywhere(same, lambda m, which: m.replicate(which, index, node=node))
        assert all(there.all() for there in found)

    @rule(same=mappings, index=places)
    def collapse(self, same: Same, index: list[int]) -> None:
        self.everywhere(same, lambda m, which: m.collapse(which, same.here(index)))

    @rule()
    def merge(self) -> None:
        report = self.mm.merge(MergePolicy(KINDS, max_page_sharing=self.cap))
        moved = [books.merge() for books in self.books]
        assert moved[LAYOUTS.index("frame")] == report.merged
        assert [books.merge() for books in self.books] == [0, 0, 0]

    @rule(same=mappings, index=places)
    def unmerge(self, same: Same, index: list[int]) -> None:
        self.everywhere(same, lambda m, which: m.unmerge(which, same.here(index)))

    @invariant()
    def bytes_are_what_was_written(self) -> None:
        for same in self.alive:
            expected = [same.held.get(i, bytes(PAGE)) for i in range(same.mapping.pages)]
            index = range(same.mapping.pages)
            for node in range(NODES):
                assert rows(self.mm.read(same.mapping, index, node=node)) == expected
                for books, region in zip(self.books, same.regions, strict=True):
                    assert rows(books.read(region, index, node=node)) == expected

    @invariant()
    def books_are_in_order(self) -> None:
        for books in self.books:
            books.check()

    @invariant()
    def frame_counts_what_the_manager_counts(self) -> None:
        found, counters = self.books[LAYOUTS.index("frame")].costs, self.mm.counters
        assert found.frames == counters.frames
        assert found.pages_shared == counters.pages_shared
        assert found.pages_sharing == counters.pages_sharing

    def teardown(self) -> None:
        if not hasattr(self, "mm"):
            return
        for same in self.alive:
            self.everywhere(same, lambda m, which: m.drop(which))
        for books in self.books:
            books.check()
            left = books.costs
            assert left.frames == left.metadata_bytes == 0
            assert left.pages_shared == left.pages_sharing == 0


TestRandom = Random.TestCase
TestRandom.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
