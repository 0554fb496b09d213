"""Small traces whose counts are all worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpudedup as gd
from gpudedup.errors import InvariantError, TraceError, UsageError
from gpudedup.mm.state.arrays import Count
from gpudedup.schema import CAUSES, SAMPLES
from gpudedup.traces import replay as module
from gpudedup.traces.contents import pages_of, words_of
from gpudedup.traces.digest import digest_of
from gpudedup.traces.replay import replay

from .common import PAGE, Event, event, trace_of, whole, word, write_image

ANON = [("anon", [7, 7, 7, 7, 8, -1, 9])]
FILES = ("anon", "file", "shmem")


def run(tmp_path: Path, mappings: Any, events: list[Event], **options: Any) -> gd.Replay:
    image = write_image(tmp_path / "image.arrow", mappings)
    done = replay(image, trace_of(events), verify=True, device_engine="cpu", **options)
    assert done.verified
    return done


def causes(done: gd.Replay) -> dict[str, dict[str, int]]:
    """Return the counts of each operation that are not 0."""
    table = done.causes.drop_columns(["seconds"]).to_pylist()
    return {
        row["operation"]: {k: v for k, v in row.items() if v and k != "operation"} for row in table
    }


def test_stores_break_reuse_and_fill(tmp_path: Path) -> None:
    done = run(
        tmp_path, ANON, [event("write", 0, 0, 6), event("write", 0, 0), event("read", 0, 0, 7)]
    )
    # Three of the four equal pages break COW and the last reuses their frame; page 4 never shared
    # its own; page 5 is a hole.
    assert causes(done) == {
        "write": {
            "events": 2, "pages": 7, "breaks": 3, "fills": 1, "reuses": 1,
            "bytes_copied": 4 * PAGE,
        },
        "read": {"events": 1, "pages": 7},
    }  # fmt: skip
    assert done.merged is not None
    assert done.merged.frames_freed == 3
    first, last = (done.samples.to_pylist()[at] for at in (0, -1))
    assert (first["event"], first["frames"], first["pages"], first["pages_sharing"]) == (0, 3, 6, 3)
    assert (first["bytes"], first["unshared_bytes"]) == (3 * PAGE, 6 * PAGE)
    assert (last["event"], last["frames"], last["pages"], last["breaks"]) == (3, 7, 7, 3)
    assert done.totals["pages"] == 14
    assert done.causes.schema.equals(CAUSES)
    assert done.samples.schema.equals(SAMPLES)


def test_without_merging_nothing_breaks(tmp_path: Path) -> None:
    done = run(tmp_path, ANON, [event("write", 0, 0, 6)], merge=False)
    assert causes(done) == {"write": {"events": 1, "pages": 6, "fills": 1, "bytes_copied": PAGE}}
    assert done.merged is None


def test_zero_pages_break_and_holes_do_not(tmp_path: Path) -> None:
    policy = gd.MergePolicy(use_zero_pages=True)
    done = run(tmp_path, [("anon", [0, 0, -1, 5])], [event("write", 0, 0, 4)], policy=policy)
    assert causes(done)["write"] == {
        "events": 1, "pages": 4, "breaks": 2, "fills": 1, "bytes_copied": 3 * PAGE,
    }  # fmt: skip


def test_forks_pins_and_merges(tmp_path: Path) -> None:
    events = [
        event("fork", 0),
        event("write", 1, 0, 2, seed=1),
        event("pin_write", 0, 0, seed=2),
        event("unpin", 0, 0),
        event("write", 1, 0, 2, seed=2),
        event("write", 0, 1, 1, seed=2),
        event("merge"),
        event("unmerge", 0, 1),
        event("drop", 1),
    ]
    done = run(tmp_path, [("anon", [1, 2])], events)
    assert causes(done) == {
        "fork": {"events": 1},
        "write": {"events": 3, "pages": 5, "breaks": 2, "reuses": 1, "bytes_copied": 2 * PAGE},
        "pin_write": {"events": 1, "pages": 1, "reuses": 1},
        "unpin": {"events": 1, "pages": 1},
        # Seed 2 made page 1 of both mappings equal: merged. Page 0 of mapping 0 was written whole.
        "merge": {"events": 1},
        "unmerge": {"events": 1, "pages": 1, "breaks": 1, "bytes_copied": PAGE},
        "drop": {"events": 1},
    }
    assert done.counters.frames == 2


def test_files_are_written_back_and_grow(tmp_path: Path) -> None:
    events = [
        event("file_write", 0, 0, 4, seed=3),
        event("writeback", 0, 0, 4),
        event("writeback", 0, 0, 4),
        event("reflink", 0),
        event("file_write", 1, 1, seed=3),
        event("file_write", 0, 1, seed=4),
        event("splice", 0, 0, 2),
        event("write", 0, 0, seed=5),
        event("close", 0, 0, 2),
        event("truncate", 0, 1),
        event("punch", 1, 0, 4),
    ]
    done = run(tmp_path, [("file", [1, 1])], events, policy=gd.MergePolicy(kinds=FILES))
    found = causes(done)
    # The first of two pages that share a frame gets another; the second keeps this one, and
    # overwrites it, so that it is copied first.
    assert found["file_write"] == {
        "events": 3, "pages": 6, "breaks": 2, "fills": 2, "reuses": 2, "bytes_copied": PAGE,
    }  # fmt: skip
    assert found["writeback"] == {"events": 2, "pages": 8, "written_back": 4}
    assert found["write"] == {"events": 1, "pages": 1, "breaks": 1, "bytes_copied": PAGE}
    assert found["truncate"] == {"events": 1}
    assert done.counters.pages == 1


def test_replicas_and_nodes(tmp_path: Path) -> None:
    events = [
        event("replicate", 0, 0, 4, node=1),
        event("read", 0, 0, 4, node=1),
        event("write", 0, 3),
        event("migrate", 0, 4, 1, node=1),
        event("replicate", 0, 4, 1, node=0),
        event("collapse", 0, 4, 1),
        event("pin", 0, 6),
        event("migrate", 0, 6, node=1),
    ]
    done = run(tmp_path, ANON, events, nodes=2)
    found = causes(done)
    # Four pages share one frame: one replica.
    assert found["replicate"] == {"events": 2, "pages": 5, "bytes_copied": 2 * PAGE}
    assert found["write"] == {"events": 1, "pages": 1, "breaks": 1, "bytes_copied": PAGE}
    assert found["collapse"] == {"events": 1, "pages": 1, "collapses": 1}
    assert found["migrate"] == {"events": 2, "pages": 2, "refused": 1, "bytes_copied": PAGE}
    assert done.counters.replicas == 1
    assert done.counters.pins == 1


def test_devices_fault_and_revoke(tmp_path: Path) -> None:
    events = [
        event("device_read", 0, 0, 4, device=0),
        event("device_read", 0, 0, 4, device=0),
        event("atomic_add", 0, 0, 2, device=0, seed=1),
        event("read", 0, 0, 2),
        event("acquire_exclusive", 0, 4),
        event("write", 0, 4),
        event("pin", 0, 6),
        event("atomic_add", 0, 6, device=0),
        event("acquire_exclusive", 0, 6),
        event("device_write", 0, 5, device=0),
    ]
    done = run(tmp_path, ANON, events, devices=1)
    found = causes(done)
    assert found["device_read"]["device_faults"] == 4
    assert found["atomic_add"]["refused"] == 1
    assert found["atomic_add"]["breaks"] == 2
    assert found["read"] == {"events": 1, "pages": 2, "revoked": 2, "invalidations": 2}
    assert found["write"]["revoked"] == 1
    assert found["acquire_exclusive"]["refused"] == 1
    assert found["device_write"]["fills"] == 1


def test_what_is_written_is_as_told() -> None:
    seed, index = np.array([0, 5, (1 << 64) - 1], np.uint64), np.array([0, 9, 1 << 35])
    words = words_of(seed, index)
    pairs = list(zip(seed.tolist(), index.tolist(), strict=True))
    assert words.tolist() == [word(*pair) for pair in pairs]
    assert [row.tobytes() for row in pages_of(words, PAGE)] == [whole(*pair) for pair in pairs]


def test_samples_are_spread_and_keep_the_time(tmp_path: Path) -> None:
    events = [event("write", 0, at % 6, time_ns=at * 10 if at < 7 else None) for at in range(10)]
    done = run(tmp_path, ANON, events, samples=4)
    assert done.samples.column("event").to_pylist() == [0, 2, 5, 7, 10]
    assert done.samples.column("time_ns").to_pylist() == [None, 10, 40, 60, 60]
    assert run(tmp_path / "..", ANON, [], samples=9).samples.num_rows == 1


def test_digest_sees_contents_only() -> None:
    def digest(merge: bool, page: int, size: int = 3) -> str:
        mm = gd.MemoryManager(PAGE)
        mapping = mm.create("m", pages=size)
        mm.write(mapping, [0, 1], np.full(PAGE, page, np.uint8))
        mm.write(mapping, 2, np.zeros(PAGE, np.uint8))
        if merge:
            mm.merge(gd.MergePolicy(use_zero_pages=True))
        return digest_of(mm, [mapping]).whole

    assert digest(True, 1) == digest(False, 1)
    assert len({digest(False, 1), digest(False, 2), digest(False, 1, 4)}) == 3


def test_a_difference_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = digest_of
    asked: list[Any] = []

    def dishonest(manager: Any, mappings: Any) -> Any:
        if asked:
            manager.write(mappings[0], 2, b"!", offset=3)
        asked.append(manager)
        return honest(manager, mappings)

    monkeypatch.setattr(module, "digest_of", dishonest)
    with pytest.raises(InvariantError, match="mapping 0: its contents differ from those of"):
        run(tmp_path, ANON, [event("write")])


@pytest.mark.parametrize("verify", [False, True])
def test_the_books_are_checked_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    """Also those of the memory that is never merged, with which ``verify`` compares."""
    broken: list[Any] = []

    def breaking(manager: Any, mappings: Any) -> Any:
        found = digest_of(manager, mappings)
        broken.append(manager)
        if len(broken) == 1 + verify:
            manager.memory.state.counts[Count.DIRTY_PAGES] += 1
        return found

    monkeypatch.setattr(module, "digest_of", breaking)
    image = write_image(tmp_path / "image.arrow", ANON)
    said = "after the last event the memory manager contradicts itself: DIRTY_PAGES: 1 kept, 0"
    with pytest.raises(InvariantError, match=said):
        replay(image, trace_of([event("write")]), verify=verify)
    assert len(broken) == 1 + verify


@pytest.mark.parametrize("verify", [False, True])
def test_what_is_held_is_let_go_if_a_replay_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    """Also on the memory that is never merged; a pin that is merely dropped warns."""
    managers: list[Any] = []

    def failing(manager: Any, mappings: Any) -> Any:
        managers.append(manager)
        if len(managers) == 1 + verify:
            assert manager.counters.pins == 4
            raise KeyboardInterrupt
        return digest_of(manager, mappings)

    monkeypatch.setattr(module, "digest_of", failing)
    image = write_image(tmp_path / "image.arrow", ANON)
    held = [event("pin", 0, 0, 2), event("pin_write", 0, 3), event("splice", 0, 4)]
    with pytest.raises(KeyboardInterrupt):
        replay(image, trace_of(held), verify=verify)
    assert [manager.counters.pins for manager in managers] == [0] * (1 + verify)


def test_nothing_is_done_before_all_is_checked() -> None:
    mm = gd.MemoryManager(PAGE)
    heap = mm.create("heap", pages=2)
    with pytest.raises(TraceError, match="row 1"):
        replay(mm, trace_of([event("write"), event("write", 1)]))
    assert mm.counters.pages == 0
    replay(mm, trace_of([event("write")]))
    assert mm.read(heap, 0).any()


def test_arguments(tmp_path: Path) -> None:
    mm = gd.MemoryManager(PAGE)
    for options in ({"verify": True}, {"nodes": 2}, {"devices": 1}, {"samples": 0}):
        with pytest.raises(UsageError):
            replay(mm, trace_of([]), **options)
    done = replay(np.ones((4, PAGE), np.uint8), trace_of([event("write", 0, 3)]))
    assert causes(done)["write"]["breaks"] == 1
    named = replay(
        np.ones((4, PAGE), np.uint8),
        trace_of([event("read", node=2), event("device_read", device=1)]),
        device_engine="cpu",
    )
    assert (named.nodes, named.devices) == (3, ("cpu (0)", "cpu (1)"))
