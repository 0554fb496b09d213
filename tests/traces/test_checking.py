"""A trace that does not fit is refused before anything is done, at the first row that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudedup.arguments import MAX_PAGES
from gpudedup.errors import TraceError, UsageError
from gpudedup.mm.manager import MemoryManager
from gpudedup.schema import OPERATIONS
from gpudedup.traces import events as table
from gpudedup.traces.checking import MAX_HELD, Wrong, check_trace, places_named
from gpudedup.traces.events import as_trace

from .common import MAPPINGS, PAGE, POLICIES, Event, event, trace_of, write_image
from .direct import Direct, manager, play, playing

HELD = [("anon", 3), ("file", 2), ("shmem", 0)]
"""Kind and pages of each mapping."""


def check(events: Sequence[Event], nodes: int = 2, devices: int = 1) -> int:
    mm = MemoryManager(PAGE, nodes)
    mappings = [mm.create(kind, kind=kind, pages=pages) for kind, pages in HELD]
    return check_trace(as_trace(trace_of(events)), mappings, nodes, devices)


def refused(events: Sequence[Event], nodes: int = 2, devices: int = 1) -> str:
    with pytest.raises(TraceError) as raised:
        check(events, nodes, devices)
    assert raised.value.exit_code == 1
    return str(raised.value).removeprefix("trace: ")


LAST = (1 << 64) - 1

WRONG = [
    (Wrong.MAPPING, event("read", 3), "read: no mapping 3, there are 3"),
    (Wrong.MAPPING, event("read", -1), "read: no mapping -1, there are 3"),
    (Wrong.MAPPING, event("unpin", 3), "unpin: no mapping 3, there are 3"),
    (Wrong.MAPPING, event("drop", 1 << 30), "drop: no mapping 1073741824, there are 3"),
    (Wrong.BEYOND, event("read", 0, 3), "read: mapping 0: no page 3, it has 3"),
    (Wrong.BEYOND, event("write", 0, 2, 2), "write: mapping 0: no page 3, it has 3"),
    (Wrong.BEYOND, event("pin", 0, 0, LAST >> 32), "pin: mapping 0: no page 3, it has 3"),
    (Wrong.BEYOND, event("evict", 2), "evict: mapping 2: no page 0, it has 0"),
    (Wrong.BEYOND, event("punch", 0, 1 << 63), f"punch: mapping 0: no page {1 << 63}, it has 3"),
    (Wrong.BEYOND, event("read", 1, LAST, 2), f"read: mapping 1: no page {LAST}, it has 2"),
    (Wrong.NO_FILE, event("file_write", 0), "file_write: mapping 0 is no file"),
    (Wrong.NO_FILE, event("reflink", 0), "reflink: mapping 0 is no file"),
    (Wrong.FILE, event("fork", 1), "fork: mapping 1 is a file"),
    (Wrong.FILE, event("fork", 2), "fork: mapping 2 is a file"),
    (Wrong.NODE, event("read", node=2), "read: no node 2, there are 2"),
    (Wrong.NODE, event("read", node=-2), "read: no node -2, there are 2"),
    (Wrong.NODE, event("cache"), "cache: no node given, there are 2"),
    (Wrong.NODE, event("cache", device=0), "cache: no node given, there are 2"),
    (Wrong.DEVICE, event("device_read"), "device_read: no device given, there are 1"),
    (Wrong.DEVICE, event("atomic_add", node=0), "atomic_add: no device given, there are 1"),
    (Wrong.DEVICE, event("atomic_add", device=1), "atomic_add: no device 1, there are 1"),
    (Wrong.DEVICE, event("acquire_exclusive", device=-2), "acquire_exclusive: no device -2, there"
     " are 1"),
    (Wrong.PLACE, event("migrate"), "migrate: one of node and device must be given"),
    (Wrong.PLACE, event("replicate", node=0, device=0), "replicate: one of node and device must be"
     " given"),
    (Wrong.SIZE, event("truncate", 0, MAX_PAGES + 1, 0), f"truncate: {MAX_PAGES + 1} pages: a"
     f" mapping has at most {MAX_PAGES}"),
    (Wrong.SIZE, event("file_write", 1, MAX_PAGES - 1, 2), f"file_write: {MAX_PAGES + 1} pages: a"
     f" mapping has at most {MAX_PAGES}"),
    (Wrong.SIZE, event("file_write", 1, LAST, 1), f"file_write: {LAST + 1} pages: a mapping has at"
     f" most {MAX_PAGES}"),
    (Wrong.HELD, event("unpin", 0, 0, MAX_HELD + 1), f"unpin: {MAX_HELD + 1} pages at one time: at"
     f" most {MAX_HELD} can be held"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "wrong", "reason"), WRONG, ids=[reason for *_, reason in WRONG])
def test_what_cannot_be_is_refused(why: Wrong, wrong: Event, reason: str) -> None:
    assert refused([event("write"), wrong, event("read", 77)]) == f"row 1: {reason}"
    assert check([event("write")]) == 1


def test_every_reason_is_among_them() -> None:
    assert {why for why, *_ in WRONG} | {Wrong.DROPPED} == set(Wrong)


@pytest.mark.parametrize(("first", "end"), [("pin", "unpin"), ("splice", "close")])
def test_pages_held_at_one_time(first: str, end: str) -> None:
    """A trace of a few events cannot hold more pages than there is memory to number them."""
    long = event("truncate", 0, 1 << 32, 0)
    most = event(first, 0, 0, MAX_HELD)
    for events, row in (
        ([long, event(first, 0, 5, MAX_HELD + 1)], 1),
        ([long, event("acquire_exclusive", 0, 5, MAX_HELD + 1)], 1),
        ([long, most, event("read"), event("splice", 0, 7)], 3),
        ([long, most, event(end, 0, 0, MAX_HELD), most, event("pin_write", 0, 7)], 4),
    ):
        word = events[row]["operation"]
        said = f"row {row}: {word}: {MAX_HELD + 1} pages at one time: at most {MAX_HELD} can be "
        assert refused(events).startswith(said)
        assert check(events[:row]) == row


GOOD = [
    event("fork", 0),
    event("truncate", 3, 5, 0),
    event("write", 3, 4),
    event("drop", 0),
    event("merge", 99, LAST, 7),
    event("reflink", 1, LAST, 7),
    event("file_write", 4, 9),
    event("file_write", 4, 1),
    event("read", 4, 9),
    event("pin", 3, 4),
    event("drop", 3),
    event("unpin", 3, 4),
    event("close", 0, LAST, 9),
    event("file_write", 2, 7, 0),
    event("read", 2, 0, 0),
]
"""What can be: forks, reflinks, and mappings that get longer, shorter, or go."""


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_lengths_and_numbers_are_followed(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(table, "PIECE", piece)
    at = len(GOOD)
    assert check(GOOD) == at
    for wrong, reason in (
        (event("fork", 5), "fork: no mapping 5, there are 5"),
        (event("read", 0), "read: mapping 0 was dropped"),
        (event("drop", 3), "drop: mapping 3 was dropped"),
        (event("read", 1, 2), "read: mapping 1: no page 2, it has 2"),
        (event("read", 4, 10), "read: mapping 4: no page 10, it has 10"),
        (event("read", 2), "read: mapping 2: no page 0, it has 0"),
        (event("fork", 4), "fork: mapping 4 is a file"),
    ):
        assert refused([*GOOD, wrong]) == f"row {at}: {reason}"


def test_those_that_are_made_are_as_those_they_are_made_of() -> None:
    """Each fork is of the one before, and a page longer; there is no room for so many at first."""
    grown = [e for n in range(300) for e in (event("fork", n + 2 if n else 0), event("truncate",
             n + 3, n + 4, 0))]  # fmt: skip
    assert check(grown) == 600
    assert check([*grown, event("read", 302, 302)]) == 601
    assert refused([*grown, event("read", 302, 303)]) == (
        "row 600: read: mapping 302: no page 303, it has 303"
    )
    assert refused([*grown, event("read", 303)]) == "row 600: read: no mapping 303, there are 303"
    assert refused([event("drop", 0), event("fork", 0)]) == "row 1: fork: mapping 0 was dropped"


def test_the_count_of_a_truncate_says_nothing() -> None:
    assert check([event("truncate", 0, MAX_PAGES, 1)]) == 1


@pytest.mark.parametrize("word", sorted({*OPERATIONS} - {"truncate", "fork", "reflink", "drop"}))
@pytest.mark.parametrize("index", [3, MAX_PAGES + 1, LAST])
def test_an_event_of_no_pages_names_none(word: str, index: int) -> None:
    """So its index may lie anywhere, as in the manager's calls; what else it names must be."""
    mapping = 1 if word == "file_write" else 0
    more: dict[str, int] = {"node": 0} if word in ("cache", "migrate", "replicate") else {}
    if word in ("device_read", "device_write", "atomic_add"):
        more = {"device": 0}
    assert check([event(word, mapping, index, 0, **more)]) == 1
    if word != "merge":
        assert refused([event(word, 3, index, 0, **more)]) == (
            f"row 0: {word}: no mapping 3, there are 3"
        )


@pytest.mark.parametrize("piece", [1, 100])
def test_nodes_and_devices_that_are_named(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(table, "PIECE", piece)
    found = places_named(
        as_trace(trace_of([event("read", node=4), event("merge", device=2), event("read", node=1)]))
    )
    assert found == (5, 3)
    assert places_named(as_trace(trace_of([]))) == (0, 0)
    assert places_named(as_trace(trace_of([event("read")]))) == (0, 0)


NODED = ("read", "cache", "migrate", "replicate")
DEVICED = (
    "migrate", "replicate", "device_read", "device_write", "atomic_add", "acquire_exclusive",
)  # fmt: skip


@st.composite
def attempts(draw: st.DrawFn) -> list[Event]:
    """Draw events of which some cannot be; none names a place that it does not look at."""
    words = sorted(set(OPERATIONS) - {"unpin", "close"})
    events = []
    for _ in range(draw(st.integers(1, 25))):
        new = event(draw(st.sampled_from(words)), draw(st.integers(0, 5)))
        new["index"] = draw(st.sampled_from([*range(9)] * 4 + [70, MAX_PAGES + 1, 1 << 63, LAST]))
        new["count"] = draw(st.integers(0, 3))
        if new["operation"] == "truncate":
            new["count"] = 0
        if new["operation"] in NODED:
            new["node"] = draw(st.sampled_from([None, 0, 1, 1, 2, -2]))
        if new["operation"] in DEVICED:
            new["device"] = draw(st.sampled_from([None, 0, 1, 1, 2, -2]))
        events.append(new)
    return events


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("checking") / "image.arrow", MAPPINGS)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=attempts())
def test_what_is_refused_is_what_the_manager_refuses(image: Path, events: list[Event]) -> None:
    """And what is not, can be played."""
    direct, done = Direct(manager(image), POLICIES[0]), 0
    for e in events:
        try:
            direct.do(e)
        except (UsageError, TypeError, OverflowError):
            break
        done += 1
    mm = manager(image)
    mappings, places = mm.mappings, (mm.nodes, len(mm.devices))
    assert check_trace(as_trace(trace_of(events[:done])), mappings, *places) == done
    if done < len(events):
        with pytest.raises(TraceError) as raised:
            check_trace(as_trace(trace_of(events)), mappings, *places)
        assert raised.value.row == done
    player, _ = playing(mm)
    play(player, events[:done])
    assert len(player.mappings) == len(direct.mappings)
    one, other = ([None if m.dropped else m.pages for m in of.mappings] for of in (player, direct))
    assert one == other
