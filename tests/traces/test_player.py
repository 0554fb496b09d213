"""What a trace does is what the manager's methods of these names do, one after another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpudedup as gd
from gpudedup.errors import TraceError
from gpudedup.mm.manager import MemoryManager
from gpudedup.schema import OPERATIONS

from .common import MAPPINGS, PAGE, POLICIES, Event, event, traces, word, write_image
from .direct import ALL, Direct, counted, holdings, manager, play, playing, told


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("player") / "image.arrow", MAPPINGS)


SCRIPTS: dict[str, list[Event]] = {
    "read": [event("read", 0, 1, 3), event("read", 2, 0, 7, node=1)],
    "write": [event("write", 0, 1, 4, seed=7), event("write", 3, 0, seed=8)],
    "file_write": [event("file_write", 2, 5, 3, seed=7), event("file_write", 3, 200, seed=1)],
    "fork": [event("fork", 0), event("fork", 0), event("fork", 4), event("write", 5, 0, 2)],
    "reflink": [event("reflink", 2), event("reflink", 4), event("write", 2, 0, 2)],
    "drop": [event("drop", 1), event("fork", 0), event("drop", 0), event("write", 4, 2)],
    "truncate": [
        # The leaf that mapping 0 had goes to mapping 2, and it gets another.
        *[event("read", 0), event("truncate", 0, 300), event("write", 0, 299)],
        *[event("truncate", 0, 0), event("truncate", 0, 8)],
        *[event("file_write", 2, 64), event("write", 0, 1, seed=9), event("read", 2, 64)],
    ],
    "punch": [event("punch", 0, 0, 2), event("punch", 2, 3)],
    "pin": [event("pin", 0, 0, 2), event("write", 0, 1), event("pin", 0, 0, 2)],
    "pin_write": [event("pin_write", 0, 0, 2, seed=3), event("pin_write", 0, 5, seed=4)],
    "unpin": [event("pin_write", 2, 0, 2), event("pin", 2, 0, 2), event("unpin", 2, 0, 2)],
    "splice": [event("splice", 2, 0, 3), event("file_write", 2, 1)],
    "close": [event("splice", 2, 0), event("write", 2, 0), event("splice", 2), event("close", 2)],
    "writeback": [event("file_write", 2, 0, 3), event("writeback", 2, 1, 4)],
    "migrate": [event("migrate", 0, 0, 3, node=1), event("migrate", 1, 1, device=0)],
    "replicate": [event("replicate", 0, 0, 3, node=1), event("replicate", 1, 1, device=1)],
    "collapse": [event("replicate", 0, 0, 6, node=1), event("collapse", 0, 2, 3)],
    "cache": [event("cache", 0, 5, 1, node=1), event("write", 0, 5), event("cache", 0, 0, node=1)],
    "flush": [event("cache", 0, 5, node=1), event("write", 0, 5), event("flush", 0, 4, 2)],
    "evict": [event("cache", 0, 5, node=1), event("write", 0, 5), event("evict", 0, 0, 8)],
    "merge": [event("write", 0, 3, 3), event("write", 1, 3, 3), event("merge", -9, 5, device=1)],
    "unmerge": [event("unmerge", 0, 0, 8), event("unmerge", 2, 1)],
    "device_read": [event("device_read", 0, 0, 8, device=1), event("write", 0, 1)],
    "device_write": [event("device_write", 0, 0, 8, device=1, seed=2), event("read", 0, 1)],
    "atomic_add": [event("atomic_add", 0, 0, 3, device=1, seed=2), event("read", 0, 1)],
    "acquire_exclusive": [
        event("acquire_exclusive", 0, 0, 3),
        event("acquire_exclusive", 1, 0, 3, device=0),
        event("write", 0, 1),
    ],
    "release_exclusive": [event("acquire_exclusive", 0, 0, 3), event("release_exclusive", 0, 1)],
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_the_method_of_that_name(image: Path, operation: str) -> None:
    events = SCRIPTS[operation]
    assert operation in {e["operation"] for e in events}
    one, other = manager(image), manager(image)
    direct, (player, accounts) = Direct(other, ALL), playing(one)
    refused: dict[str, int] = {}
    for e in events:
        play(player, [e])
        refused[e["operation"]] = refused.get(e["operation"], 0) + direct.do(e)
        assert counted(one) == counted(other)
    for table in (MemoryManager.frames, MemoryManager.aliases, MemoryManager.mappings_table):
        assert table(one) == table(other)
    assert told(accounts) == refused
    assert [m.name for m in player.mappings] == [m.name for m in direct.mappings]
    assert [m.owner for m in player.mappings] == [m.owner for m in direct.mappings]
    in_bulk, _ = playing(bulk := manager(image))
    play(in_bulk, events)
    assert counted(bulk) == counted(other)
    assert holdings(one) == holdings(other) == holdings(bulk)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=traces(), policy=st.sampled_from(POLICIES))
def test_a_trace_is_all_its_events(
    image: Path, events: list[Event], policy: gd.MergePolicy
) -> None:
    """In bulk, one by one, and by calls of the manager itself."""
    managers = [manager(image, policy) for _ in range(3)]
    direct, refused = Direct(managers[0], policy), 0
    players = []
    for e in events:
        refused += direct.do(e)
    for mm, singly in zip(managers[1:], (True, False), strict=True):
        player, accounts = playing(mm, policy)
        players.append(player)  # What it pins counts below.
        play(player, events, singly=singly)
        counts = [counted(found) for found in (mm, managers[0])]
        for found in counts:
            # Of pages accessed one by one, a fault maps the next ones too.
            found["device_faults"] += found.pop("mapped_around")
            if not singly:
                # See test_a_page_that_comes_twice below.
                del found["device_faults"]
        assert counts[0] == counts[1]
        assert sum(told(accounts).values()) == refused
        assert sum(told(accounts, "events").values()) == len(events)
    expected = holdings(managers[0])
    assert all(holdings(mm) == expected for mm in managers[1:])


def test_what_is_refused_is_counted(image: Path) -> None:
    player, accounts = playing(mm := manager(image, POLICIES[0]))
    before = mm.read(player.mappings[0], 5, size=8).view("<u8")[0, 0]
    events = [
        # Pages 0, 1 and 6 share a frame, and keep it where it is while one of them is pinned.
        event("pin", 0, 0),
        event("migrate", 0, 0, 6, node=1),
        event("replicate", 0, 0, 3, device=0),
        event("unmerge", 0, 0, 2),
        # They are on node 0. Page 2 is not any more, and shares its frame with 7.
        event("cache", 0, 0, 3, node=0),
        event("pin", 0, 5),
        event("acquire_exclusive", 0, 3, 3),
        event("atomic_add", 0, 3, 3, device=0, seed=5),
    ]
    direct = Direct(manager(image, POLICIES[0]), POLICIES[0])
    refused = {e["operation"]: direct.do(e) for e in events}
    play(player, events)
    assert told(accounts) == refused
    assert {what: n for what, n in refused.items() if n} == {
        "migrate": 2, "replicate": 2, "unmerge": 2, "cache": 1, "acquire_exclusive": 3,
        "atomic_add": 1,
    }  # fmt: skip
    after = mm.read(player.mappings[0], 5, size=8).view("<u8")[0, 0]
    assert int(after - before) % (1 << 64) == word(5, 5)


def test_the_oldest_is_let_go_first(image: Path) -> None:
    """Of two splices of one page, between which it was written, the frame of the first goes."""
    player, _ = playing(mm := manager(image))
    frames, twice = mm.counters.frames, [event("splice", 2, 6), event("write", 2, 6)] * 2
    play(player, [*twice[:-1], event("pin", 2, 6)])
    assert (mm.counters.frames, mm.counters.pins) == (frames + 1, 3)
    for closed in (2, 1):
        play(player, [event("close", 2, 6)])
        assert (mm.counters.frames, mm.counters.pins) == (frames, closed)
    play(player, [event("unpin", 2, 6)])
    assert mm.counters.pins == 0


def test_in_the_end_all_is_let_go(image: Path) -> None:
    player, accounts = playing(mm := manager(image))
    held = [event("pin", 0, 0, 2), event("pin_write", 0, 3), event("splice", 2, 0, 3)]
    exclusive = [event("acquire_exclusive", 1), event("atomic_add", 1, 3, device=0)]
    play(player, [*held, event("pin", 0, 0, 2), *exclusive, event("drop", 0)])
    assert mm.counters.pins == 8
    player.let_all_go()
    assert mm.counters.pins == 0
    mm.write(player.mappings[1], 0, bytes(PAGE))
    assert mm.counters.revoked == 0
    player.let_all_go()
    mm.check()
    with pytest.raises(TraceError, match=r"row 0: unpin: no pin of 2 pages from 0 of mapping 0"):
        play(player, [event("unpin", 0, 0, 2)])
    assert told(accounts, "events")["acquire_exclusive"] == 1


@pytest.mark.parametrize(
    ("events", "held", "reason"),
    [
        (["unpin 0 0 1"], 0, "row 0: unpin: no pin of 1 pages from 0 of mapping 0"),
        (["close 2 1 2"], 0, "row 0: close: no splice of 2 pages from 1 of mapping 2"),
        (["pin 0 0 1", "close 0 0 1"], 1, "row 1: close: no splice of 1 pages from 0 of mapping 0"),
        (["splice 0 0 1", "unpin 0 0 1"], 1, "row 1: unpin: no pin of 1 pages from 0 of mapping 0"),
        (["pin 0 0 2", "unpin 0 0 1"], 2, "row 1: unpin: no pin of 1 pages from 0 of mapping 0"),
        (["pin 0 0 1", "unpin 1 0 1"], 1, "row 1: unpin: no pin of 1 pages from 0 of mapping 1"),
        (
            ["pin 0 1 1", "pin_write 1 0 1", *["unpin 0 1 1"] * 3],
            1,
            "row 3: unpin: no pin of 1 pages from 1 of mapping 0",
        ),
    ],
)
def test_what_is_not_held_cannot_be_let_go(
    image: Path, events: list[str], held: int, reason: str
) -> None:
    """What comes before it was done."""
    player, _ = playing(mm := manager(image))
    with pytest.raises(TraceError) as raised:
        play(player, [event(what, *map(int, where)) for what, *where in map(str.split, events)])
    assert str(raised.value) == f"t.arrow: {reason} is held"
    assert mm.counters.pins == held
    player.let_all_go()
    assert mm.counters.pins == 0


def test_without_a_policy_nothing_is_merged(image: Path) -> None:
    mm = MemoryManager.from_image(image)
    player, accounts = playing(mm, None)
    play(player, [event("merge"), event("merge", 1)])
    assert mm.counters.pages_shared == 0
    assert told(accounts, "events") == {"merge": 2}
