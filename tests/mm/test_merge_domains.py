"""Merging within domains and nodes, where frames are shared already: all aliases decide."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import Mapping as Region
from gpudedup.images.rows import PageColumns
from gpudedup.mm.manager import MemoryManager
from gpudedup.mm.policy import MergePolicy
from gpudedup.schema import PageFlag

from .common import PAGE, page, pages, rows

WITHIN = MergePolicy(within_domain=True)

Place = tuple[int, int]
"""Mapping, from 0, and index."""


class Row(NamedTuple):
    """One page of an image: rows with one frame have one content."""

    mapping: int
    frame: int
    content: int
    node: int = 0
    flags: int = 0


def loaded(
    folder: Path, domains: list[str], table: list[Row], kinds: list[str] | None = None
) -> tuple[MemoryManager, dict[Place, Row]]:
    """Return a manager that holds an image's pages in its frames, and the row of each page."""
    path = folder / "shared.arrow"
    kinds = kinds or ["anon"] * len(domains)
    maps = [Region("o", d, k, "m", 0) for d, k in zip(domains, kinds, strict=True)]
    indices: dict[int, int] = defaultdict(int)
    placed: dict[Place, Row] = {}
    for row in table:
        placed[row.mapping, indices[row.mapping]] = row
        indices[row.mapping] += 1
    columns = PageColumns(
        0,
        np.array([m for m, _ in placed], np.int32),
        np.array([i for _, i in placed], np.uint64),
        np.array([r.frame for r in table], np.uint64),
        np.array([r.node for r in placed.values()], np.int16),
        np.array([r.flags for r in placed.values()], np.uint32),
    )
    with DumpWriter(path, PAGE, maps, source="test", force=True) as writer:
        writer.write(columns, pages(*(r.content for r in placed.values())))
    return MemoryManager.from_image(str(path), nodes=2), placed


def sharers(mm: MemoryManager) -> set[tuple[Place, Place]]:
    """Return all pairs of pages that share a frame."""
    number = {m.number: at for at, m in enumerate(mm.mappings)}
    of_frame = defaultdict(list)
    for alias in mm.aliases().to_pylist():
        if alias["mapping"] in number:
            of_frame[alias["frame"]].append((number[alias["mapping"]], alias["index"]))
    return {pair for held in of_frame.values() for pair in combinations(sorted(held), 2)}


def holds(mm: MemoryManager, placed: dict[Place, Row]) -> None:
    """Check the manager, and what each page holds."""
    mm.check()
    for (mapping, index), row in placed.items():
        assert rows(mm.read(mm.mappings[mapping], index)) == rows([page(row.content)])


def test_nobody_joins_a_frame_that_two_domains_share_already(tmp_path: Path) -> None:
    """One library in two containers: another red page with its bytes keeps away from blue."""
    table = [Row(0, 1, 5), Row(1, 1, 5), Row(0, 2, 5), Row(2, 3, 5)]
    mm, placed = loaded(tmp_path, ["red", "blue", "red"], table)
    mm.merge(WITHIN)
    assert sharers(mm) == {((0, 0), (0, 1)), ((0, 0), (2, 0))} | {((0, 1), (2, 0))}
    assert mm.counters.frames == 2
    holds(mm, placed)
    assert mm.merge(WITHIN).merged == 0


def test_frames_of_two_domains_each_stay_as_they_are(tmp_path: Path) -> None:
    table = [Row(0, 1, 5), Row(1, 1, 5), Row(0, 2, 5), Row(1, 2, 5), Row(0, 3, 6), Row(0, 3, 6)]
    mm, placed = loaded(tmp_path, ["red", "blue"], table)
    before = sharers(mm)
    assert mm.merge(WITHIN).merged == 0
    assert sharers(mm) == before
    assert mm.merge().merged == 2, "without domains they merge"
    assert mm.counters.frames == 2
    holds(mm, placed)


def test_a_cap_does_not_send_pages_to_a_frame_of_two_domains(tmp_path: Path) -> None:
    table = [Row(0, 1, 5), Row(1, 1, 5), Row(0, 2, 5), Row(0, 3, 5), Row(0, 4, 5), Row(0, 5, 5)]
    mm, placed = loaded(tmp_path, ["red", "blue"], table)
    mm.merge(MergePolicy(within_domain=True, max_page_sharing=3))
    assert sharers(mm) == {
        ((0, 1), (0, 2)), ((0, 1), (0, 3)), ((0, 2), (0, 3)), ((0, 0), (0, 4)),
    }, "red leaves blue for a frame with room"  # fmt: skip
    holds(mm, placed)


def test_a_dirty_file_page_whose_frame_merges_by_another_alias_is_written_back(
    tmp_path: Path,
) -> None:
    """The file takes no part in the merge; its page lies in a frame of one that does."""
    table = [Row(0, 1, 5), Row(1, 1, 5, 0, int(PageFlag.DIRTY)), Row(0, 2, 5)]
    mm, placed = loaded(tmp_path, ["red", "red"], table, ["anon", "file"])
    mm.merge()
    holds(mm, placed)


def frames_of(mm: MemoryManager, domains: list[str]) -> dict[int, tuple[set[str], list[Place]]]:
    """Return the domains and pages of each frame, by its number."""
    number = {m.number: at for at, m in enumerate(mm.mappings)}
    found: dict[int, tuple[set[str], list[Place]]] = defaultdict(lambda: (set(), []))
    for alias in mm.aliases().to_pylist():
        mapping = number[alias["mapping"]]
        found[alias["frame"]][0].add(domains[mapping])
        found[alias["frame"]][1].append((mapping, alias["index"]))
    return found


def nodes_of(mm: MemoryManager) -> dict[Place, int]:
    """Return the node of each page's frame."""
    number = {m.number: at for at, m in enumerate(mm.mappings)}
    return {(number[a["mapping"]], a["index"]): a["node"] for a in mm.aliases().to_pylist()}


@settings(max_examples=150, deadline=None)
@given(
    frames=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=12),
    aliases=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), min_size=1, max_size=40),
    moved=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 1)), max_size=5),
    cap=st.sampled_from([2, 3, 256]),
    within=st.booleans(),
    across=st.booleans(),
    mixed_before=st.booleans(),
    use_zero_pages=st.booleans(),
)
def test_no_pages_of_two_domains_or_nodes_come_together(
    frames: list[tuple[int, int]],
    aliases: list[tuple[int, int]],
    moved: list[tuple[int, int]],
    cap: int,
    within: bool,
    across: bool,
    mixed_before: bool,
    use_zero_pages: bool,
) -> None:
    """Against dicts of places: pairs that shared may go on; none of two domains is added."""
    domains = ["red", "blue", "red", "green"]
    table = [Row(m, f % len(frames) + 1, *frames[f % len(frames)]) for m, f in aliases]
    with TemporaryDirectory() as folder:
        mm, placed = loaded(Path(folder), domains, table)
    if mixed_before:
        mm.merge(MergePolicy(max_page_sharing=cap))
    for at, node in moved:
        mapping, index = list(placed)[at % len(placed)]
        mm.migrate(mm.mappings[mapping], index, node=node)
    before, node_of = sharers(mm), nodes_of(mm)
    policy = MergePolicy(("anon",), within, cap, across, use_zero_pages)
    merges = 0
    while mm.merge(policy).merged:
        merges += 1
        assert merges <= 4, "merges without end"
    holds(mm, placed)
    for one, other in sharers(mm) - before:
        assert placed[one].content == placed[other].content
        if within:
            assert domains[one[0]] == domains[other[0]]
        if not across:
            assert node_of[one] == node_of[other]
    if mixed_before or cap < 256:
        return
    # What may merge has merged: one frame of each content and key, which has all such pages.
    pages_of, homes = defaultdict(set), defaultdict(set)
    for frame, (among, held) in frames_of(mm, domains).items():
        for place in held:
            key = (
                placed[place].content,
                domains[place[0]] if within else "",
                -1 if across else node_of[place],
            )
            pages_of[key].add(frame)
            if not within or len(among) == 1:
                homes[key].add(frame)
    for key, own in homes.items():
        assert pages_of[key] == own
        assert len(own) == 1
