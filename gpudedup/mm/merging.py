"""Merging: find pages with equal bytes and make them share a frame.

Frames are digested without the lock, so that stores, forks and the rest proceed; pages that change
meanwhile are skipped. The lock is then held for a batch of groups at a time: a store waits at most
while one batch, or the largest group, is compared and moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.clock import Clock
from gpudedup.engines.base import HOST_MEMORY, Engine, PageClass, PageSource
from gpudedup.mm.access import AccessPaths
from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.pools import Frames
from gpudedup.mm.passes import merge as passes
from gpudedup.mm.passes import plan as plan_passes
from gpudedup.mm.policy import MergePolicy, MergeReport
from gpudedup.mm.state.arrays import PER_CONTENT, Count, PageNumbers, State, grown

SURVEY_FRAMES = 1 << 20
"""Frames surveyed in one hold of the lock."""

BATCH_PAGES = 1 << 16
"""Pages compared and moved in one hold of the lock, if no group is larger."""


@dataclass(frozen=True, slots=True)
class _Survey:
    """Frames that a merge digests, and their pages.

    :param rows: (k,) uint32, frames
    :param pages, row_of, generation: (n,) uint32, as of :func:`gpudedup.mm.passes.plan.survey`
    :param pinned: pages left out, since their frames are pinned
    :param on_device: pages left out, since their frames lie on a device
    """

    rows: Frames
    pages: PageNumbers
    row_of: npt.NDArray[np.uint32]
    generation: npt.NDArray[np.uint32]
    pinned: int
    on_device: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """Groups of pages with equal digests, as :func:`gpudedup.mm.passes.merge.compare` takes them.

    :param pages, generation, frames: (n,) uint32
    :param starts, is_zero, scope: (groups + 1,) int64; (groups,) bool; (groups,) uint32
    """

    pages: PageNumbers
    generation: npt.NDArray[np.uint32]
    frames: Frames
    starts: npt.NDArray[np.int64]
    is_zero: npt.NDArray[np.bool_]
    scope: npt.NDArray[np.uint32]


def merge(manager: AccessPaths, policy: MergePolicy, engine: Engine) -> MergeReport:
    """Merge equal pages; see :meth:`gpudedup.mm.manager.MemoryManager.merge`."""
    clock = Clock()
    with manager.lock:
        manager.unpin_dropped()
        eligible = [m for m in manager.mappings if m.kind in policy.kinds]
    survey = _survey(manager, eligible)
    clock.stage("survey_s")
    zero_row, representative = _digest(manager, survey, engine, policy)
    clock.stage("partition_s")
    plan = _plan(manager, survey, representative, zero_row, policy)
    clock.stage("plan_s")
    tally, moved, errors = _carry_out(manager, plan, policy, clock)
    _mark(manager, survey, eligible)
    clock.stage("mark_s")
    return MergeReport(
        pages=len(survey.pages) + survey.pinned + survey.on_device,
        frames=len(survey.rows),
        **moved,
        errors=errors,
        written=int(tally[passes.WRITTEN]),
        pinned=survey.pinned + int(tally[passes.PINNED]),
        on_device=survey.on_device,
        unequal=int(tally[passes.UNEQUAL]),
        counters=manager.counters,
        seconds=clock.seconds,
    )


def _mask(manager: AccessPaths, eligible: list[Mapping]) -> npt.NDArray[np.bool_]:
    """Return by mapping number whether pages may merge; the lock is held.

    A number goes to another mapping once its own is dropped.
    """
    mask = np.zeros(len(manager.memory.state.populated), np.bool_)
    mask[[mapping.number for mapping in eligible if not mapping.dropped]] = True
    return mask


def _survey(manager: AccessPaths, eligible: list[Mapping]) -> _Survey:
    pieces: list[tuple[Any, ...]] = []
    start, rows_before, left_out = 1, 0, np.zeros(2, np.int64)
    while True:
        with manager.lock:
            state = manager.memory.state
            stop = min(start + SURVEY_FRAMES, manager.memory.frames_numbered)
            if start >= stop:
                break
            room = int(plan_passes.aliases_between(state, start, stop))
            rows = np.empty(stop - start, np.uint32)
            pages, row_of, generation = (np.empty(room, np.uint32) for _ in range(3))
            mask = _mask(manager, eligible)
            n, m = plan_passes.survey(
                state, start, stop, mask, rows, pages, row_of, generation, left_out
            )
        pieces.append((rows[:n], pages[:m], row_of[:m] + np.uint32(rows_before), generation[:m]))
        start, rows_before = stop, rows_before + n
    empty = tuple(np.empty(0, np.uint32) for _ in range(4))
    rows, pages, row_of, generation = (
        np.concatenate(arrays) for arrays in zip(*(pieces or [empty]), strict=True)
    )
    return _Survey(rows, pages, row_of, generation, int(left_out[0]), int(left_out[1]))


def _digest(
    manager: AccessPaths, survey: _Survey, engine: Engine, policy: MergePolicy
) -> tuple[int, npt.NDArray[np.int64]]:
    """Return the row of zero pages that need no frame, or -1, and the representative of each row.

    The lock is not held: bytes may change while they are digested.
    """
    n = len(survey.rows)
    first_row, base = np.empty(n + 1, np.int64), np.empty(n, np.uint64)
    k = plan_passes.stretches(manager.memory.state, survey.rows, first_row, base)
    store = PageSource(
        manager.page_size, first_row[: k + 1], np.full(k, HOST_MEMORY, np.int32), base[:k],
        keep=(manager.memory,),
    )  # fmt: skip
    # A digest nominates; bytes are compared under the lock.
    found = engine.partition(store, verify=False)
    zero = found.representative[found.classes == PageClass.ZERO][:1]
    return (int(zero[0]) if policy.use_zero_pages and len(zero) else -1), found.representative


def _plan(
    manager: AccessPaths,
    survey: _Survey,
    representative: npt.NDArray[np.int64],
    zero_row: int,
    policy: MergePolicy,
) -> _Plan:
    n, k = len(survey.pages), len(survey.rows)
    by_domain, by_node = policy.within_domain, not policy.merge_across_nodes
    chosen = np.empty(n, np.int64)
    count = plan_passes.select(
        survey.row_of, representative, np.zeros(k, np.uint32), zero_row, chosen
    )
    chosen = chosen[:count]
    key = np.zeros(n, np.int64)
    if by_domain or by_node:
        with manager.lock:
            state = manager.memory.state
            plan_passes.keys(
                state, survey.pages, survey.rows, survey.row_of, by_domain, by_node, key
            )
        chosen = chosen[np.argsort(key[chosen], kind="stable")]
    order = np.empty(count, np.int64)
    plan_passes.group(chosen, survey.row_of, representative, np.zeros(k + 1, np.int64), order)
    kept, starts = np.empty(count, np.int64), np.empty(count + 1, np.int64)
    is_zero, scope = np.empty(count, np.bool_), np.empty(count, np.uint32)
    per_domain = (manager.nodes if by_node else 1) if by_domain else 0
    g, m = plan_passes.groups(
        order, survey.row_of, representative, key, zero_row, kept, starts, is_zero, scope,
        per_domain,
    )  # fmt: skip
    kept = kept[:m]
    return _Plan(
        pages=survey.pages[kept],
        generation=survey.generation[kept],
        frames=survey.rows[survey.row_of[kept]],
        starts=starts[: g + 1],
        is_zero=is_zero[:g],
        scope=scope[:g],
    )


def _carry_out(
    manager: AccessPaths, plan: _Plan, policy: MergePolicy, clock: Clock
) -> tuple[npt.NDArray[np.int64], dict[str, int], list[str]]:
    """Compare and move, a batch at a time; return pages per verdict, and what moved."""
    tally = np.zeros(6, np.int64)
    moved = dict.fromkeys(("merged", "zeroed", "frames_freed", "written_back", "unwritten"), 0)
    errors: dict[str, str] = {}
    verdict = np.empty(len(plan.pages), np.uint8)
    first, groups = 0, len(plan.is_zero)
    while first < groups:
        end = plan.starts[first] + BATCH_PAGES
        stop = max(first + 1, int(np.searchsorted(plan.starts, end, "right")) - 1)
        with manager.lock:
            manager.memory.settle()
            passes.compare(
                manager.memory.state, first, stop, plan.starts, plan.is_zero, plan.scope,
                plan.pages, plan.generation, plan.frames, verdict, tally,
            )  # fmt: skip
            clock.stage("compare_s")
            batch = slice(int(plan.starts[first]), int(plan.starts[stop]))
            if manager.memory.state.counts[Count.DIRTY_PAGES]:
                ready = np.flatnonzero(verdict[batch] == passes.READY) + batch.start
                dirty = _dirty_beside(manager, plan.pages[ready])
                written, failed = manager.writebacks.write_pages(dirty)
                moved["written_back"] += written
                errors.update(failed)
                if failed:
                    # What could not be written stays as it is.
                    beside = _dirty_beside(manager, plan.pages[ready])
                    frames = manager.memory.state.frame[beside]
                    unwritten = ready[np.isin(plan.frames[ready], frames)]
                    verdict[unwritten] = passes.BUSY
                    moved["unwritten"] += len(unwritten)
            state = _contents_ensured(manager, stop - first)
            before = int(state.counts[Count.FRAMES])
            merged, zeroed = manager.memory.run(
                passes.apply, first, stop, plan.starts, plan.is_zero, plan.scope, plan.pages,
                plan.frames, verdict, policy.max_page_sharing,
            )  # fmt: skip
            moved["merged"] += merged
            moved["zeroed"] += zeroed
            moved["frames_freed"] += before - int(state.counts[Count.FRAMES])
            clock.stage("apply_s")
        first = stop
    return tally, moved, [f"{name}: {reason}" for name, reason in errors.items()]


def _dirty_beside(manager: AccessPaths, pages: PageNumbers) -> PageNumbers:
    """Return the dirty aliases of the frames of pages, also those that take no part."""
    state = manager.memory.state
    found = np.empty(int(plan_passes.dirty_beside(state, pages, pages[:0])), np.uint32)
    plan_passes.dirty_beside(state, pages, found)
    return found


def _contents_ensured(manager: AccessPaths, more: int) -> State:
    """Return the state, with room for ``more`` contents."""
    state = manager.memory.state
    least = int(state.counts[Count.CHAIN_FRESH]) + more
    manager.memory.state = state = grown(state, PER_CONTENT, least)
    return state


def _mark(manager: AccessPaths, survey: _Survey, eligible: list[Mapping]) -> None:
    """Mark the pages found unique; count the volatile ones."""
    volatile = 0
    for start in range(0, len(survey.pages), SURVEY_FRAMES):
        part = slice(start, start + SURVEY_FRAMES)
        with manager.lock:
            state = manager.memory.state
            volatile += plan_passes.mark_unshared(
                state, survey.pages[part], survey.generation[part],
                survey.rows[survey.row_of[part]], _mask(manager, eligible),
            )  # fmt: skip
    manager.volatile = volatile
