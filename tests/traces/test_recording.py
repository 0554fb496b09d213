"""Recording with a stand-in for what watches the process: what was written becomes events."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import gpudedup as gd
from gpudedup.errors import GpudedupError, ImageError, OutputError, UnsupportedHereError, UsageError
from gpudedup.processes.procfs import Vma
from gpudedup.processes.tracer import thread_states
from gpudedup.traces import recording
from gpudedup.traces.recording import Recording, default_image, record_trace
from gpudedup.traces.summary import summary

from ..processes.children import PAGE, Child, child, may_trace, until

PAGES, HELD = 64, 32
"""Pages of the mapping that is written, and of them those that are there from the beginning."""

IDLE = f"""
# Between pages that cannot be touched it is a mapping of its own.
at = map({PAGES} + 2, protection=0) + PAGE
libc.mprotect(at, {PAGES} * PAGE, RW)
fill(at, "a", range({HELD}))
shared = map(4, SHARED | ANONYMOUS)
fill(shared, "s", range(4))
thread = threading.Thread(target=signal.pause, daemon=True)
thread.start()
tell(at=at, shared=shared, thread=thread.native_id)
while hear():
    tell(awake=True)
"""

INTERVAL = 0.002


@pytest.fixture
def idle() -> Iterator[Child]:
    with child(IDLE) as running:
        yield running


class Seen:
    """Implements :class:`gpudedup.processes.write_watch.Watch`: it sees what it is told to see.

    :param looks: for each look (place, pages) that were written, or what is raised
    :param first: number of the page at place 0
    """

    def __init__(self, looks: Sequence[Any], first: int = 0, how: str = "write-protect") -> None:
        self.looks, self.first, self.how = list(looks), first, how
        self.asked: list[tuple[int, str]] = []
        self.begun: list[tuple[int, int]] = []
        self.states: set[str] = set()
        self.closed = False

    def __call__(self, pid: int, method: str) -> Seen:
        self.asked.append((pid, method))
        return self

    def can_watch(self, vma: Vma) -> bool:
        return True

    def begin(self, ranges: Sequence[tuple[int, int]]) -> int:
        self.begun = list(ranges)
        self.states = set(thread_states(self.asked[0][0]).values())
        return sum(stop - start for start, stop in ranges)

    def written(self) -> Any:
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return np.array(look, np.int64).reshape(-1, 2) + np.array([self.first, 0])

    def close(self) -> None:
        assert not self.closed
        self.closed = True


Record = Callable[..., tuple[Recording, Seen]]


@pytest.fixture
def record(idle: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Return what records the idle process to ``t.arrow``, as long as there are looks."""

    def run(looks: Sequence[Any], how: str = "write-protect", **more: Any) -> Any:
        seen = Seen(looks, idle.said["at"] // PAGE, how)
        monkeypatch.setattr(recording, "watch", seen)
        options = {"interval": INTERVAL, "duration": len(looks) * INTERVAL, **more}
        return record_trace(options.pop("pid", idle.pid), tmp_path / "t.arrow", **options), seen

    return run


def rows_of(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as source:
        rows: list[dict[str, Any]] = pa.ipc.open_file(source).read_all().to_pylist()
    return rows


def notes(done: Recording) -> list[str]:
    """Return the notes, but for one that root does not get."""
    return [note for note in done.notes if not note.startswith("no frame numbers ")]


def brief(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["operation"], row["index"], row["count"], (row["seed"] or 0) >> 32


def test_what_was_written_becomes_events(idle: Child, tmp_path: Path, record: Record) -> None:
    told: list[tuple[int, int]] = []
    looks = [[(3, 2), (30, 2)], [], [(0, 1), (40, 2)], [(41, 1), (50, 14)]]
    done, seen = record(looks, progress=lambda at, total: told.append((at, total)))
    rows = rows_of(tmp_path / "t.arrow")
    assert [brief(row) for row in rows] == [
        ("write", 3, 2, 1),
        ("write", 30, 2, 1),
        ("write", 0, 1, 3),
        # Pages that were holes, beyond the last that the capture has of the mapping.
        ("truncate", 42, 0, 0),
        ("write", 40, 2, 3),
        ("write", 41, 1, 4),
        ("truncate", 64, 0, 0),
        ("write", 50, 14, 4),
    ]
    with gd.open_image(done.image) as image:
        (number,) = {row["mapping"] for row in rows}
        assert image.mappings[number].start == idle.said["at"]
        assert (done.image_pages, done.mappings) == (image.pages, len(image.mappings))
    assert {row["seed"] for row in rows} == {None, *(at << 32 | number for at in (1, 3, 4))}
    assert all((row["node"], row["device"]) == (None, None) for row in rows)
    times = [row["time_ns"] for row in rows]
    assert times == sorted(times)
    assert len(set(times)) == 3
    assert (done.image, done.how, done.looks) == (str(tmp_path / "t.image.arrow"), seen.how, 4)
    assert (done.events, done.pages, done.losses, notes(done)) == (8, 22, [], [])
    assert told[-1][1] == int(4 * INTERVAL * 1e3)
    assert len(told) == 4
    assert all(at <= total for at, total in told)
    assert summary(tmp_path / "t.arrow").source == f"writes of pid {idle.pid}"
    result = gd.replay(done.image, tmp_path / "t.arrow", verify=True)
    assert (result.events, result.totals["pages"], result.verified) == (8, 22, True)


def test_random_ranges_are_followed(tmp_path: Path, record: Record) -> None:
    rng = np.random.default_rng(1)
    looks, expected, size = [], [], HELD
    for look in range(1, 30):
        ends = np.sort(rng.choice(PAGES, 2 * rng.integers(0, 4), replace=False)).reshape(-1, 2)
        ranges = [(int(start), int(stop - start)) for start, stop in ends]
        for at, count in ranges:
            if at + count > size:
                size = at + count
                expected.append(("truncate", size, 0, 0))
            expected.append(("write", at, count, look))
        looks.append(ranges)
    done, _ = record(looks)
    assert [brief(row) for row in rows_of(tmp_path / "t.arrow")] == expected
    assert done.pages == sum(count for ranges in looks for _, count in ranges)
    assert gd.replay(done.image, tmp_path / "t.arrow").events == done.events == len(expected)


def test_private_memory_is_watched_from_the_capture_on(idle: Child, record: Record) -> None:
    _, seen = record([[]], pid=idle.said["thread"], method="soft-dirty")
    # A thread stands for its process.
    assert seen.asked == [(idle.pid, "soft-dirty")]
    first = idle.said["at"] // PAGE
    assert (first, first + PAGES) in seen.begun
    left_out = {first - 1, first + PAGES, idle.said["shared"] // PAGE}
    assert not any(start <= page < stop for start, stop in seen.begun for page in left_out)
    assert seen.states == {"t" if may_trace() else "T"}
    assert seen.closed
    assert idle.ask("still there?") == {"awake": True}


@pytest.mark.parametrize("how", ["soft-dirty", "write-protect"])
def test_a_process_that_ends_ends_it(idle: Child, tmp_path: Path, record: Record, how: str) -> None:
    done, seen = record([[(3, 2)], [], ProcessLookupError(), [(4, 1)]], how)
    assert (done.looks, done.events, done.pages) == (3, 1, 2)
    assert [brief(row) for row in rows_of(tmp_path / "t.arrow")] == [("write", 3, 2, 1)]
    note = rf"pid {idle.pid}: ended after \d+\.\d s; what it wrote last is not known"
    assert re.fullmatch(note, notes(done)[0])
    lost = ["what is written just while the process is looked at is lost"]
    assert notes(done)[1:] == (lost if how == "soft-dirty" else [])
    assert seen.closed


def test_what_is_not_watched_is_told(
    idle: Child, tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = idle.said["at"] // PAGE
    monkeypatch.setattr(Seen, "can_watch", lambda self, vma: vma.first != first)
    done, seen = record([[]])
    assert (first, first + PAGES) not in seen.begun
    assert done.unwatched == PAGES
    assert [note for note in notes(done) if f" {PAGES} pages of private memory are not" in note]
    monkeypatch.setattr(Seen, "can_watch", lambda self, vma: False)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UnsupportedHereError, match=r"none of its \d+ pages of private memory"):
        record([[]])
    assert list(tmp_path.iterdir()) == []
    assert idle.ask("still there?") == {"awake": True}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("tell()\nhear()\nos._exit(0)", "a zombie: it has ended, and its parent has not asked how"),
        (
            "threading.Thread(target=signal.pause).start()\ntell()\nhear()\n"
            "libc.syscall(60 if os.uname().machine == 'x86_64' else 93, 0)",
            "its main thread has ended, and its memory is out of reach with it",
        ),
    ],
)
def test_a_process_whose_memory_is_gone(tmp_path: Path, code: str, reason: str) -> None:
    with child(code) as one:
        threads = thread_states(one.pid).keys()
        one.say("end")
        until(lambda: thread_states(one.pid)[one.pid] == "Z")
        for pid in {one.pid, *(threads & thread_states(one.pid).keys())}:
            with pytest.raises(ImageError) as recorded:
                record_trace(pid, tmp_path / "t.arrow")
            with pytest.raises(ImageError) as captured:
                gd.capture([pid], str(tmp_path / "dump"), stop=True)
            assert str(recorded.value) == str(captured.value) == f"pid {pid}: {reason}"
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_no_trace(tmp_path: Path, record: Record) -> None:
    with pytest.raises(ZeroDivisionError):
        record([[(3, 2)], ZeroDivisionError()])
    assert not (tmp_path / "t.arrow").exists()
    assert [path for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_existing_files_are_kept(tmp_path: Path, record: Record) -> None:
    image, trace = tmp_path / "t.image.arrow", tmp_path / "t.arrow"
    for path in (image, trace):
        path.write_text("kept")
        with pytest.raises(OutputError) as raised:
            record([[]])
        assert raised.value.path == str(path)
        assert {other.read_text() for other in tmp_path.iterdir()} == {"kept"}
    done, _ = record([[(3, 2)]], force=True)
    assert gd.replay(image, trace).events == done.events == 1
    done, _ = record([[]], force=True, image=tmp_path / "elsewhere")
    assert (done.image, done.events) == (str(tmp_path / "elsewhere"), 0)
    assert rows_of(trace) == []


@pytest.mark.parametrize(
    ("path", "image"),
    [
        ("t.arrow", "t.image.arrow"),
        ("a.b/t.x.arrow", "a.b/t.x.image.arrow"),
        ("a.b/t", "a.b/t.image.arrow"),
        (Path("/d/t.trace"), "/d/t.image.arrow"),
    ],
)
def test_the_capture_lies_beside_the_trace(path: str | Path, image: str) -> None:
    assert default_image(path) == image


NOBODY = 2**22 + 1


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"interval": 0}, UsageError, "interval 0 s: not from 0.001 s up to the duration"),
        ({"interval": -1}, UsageError, "interval -1 s: not from 0.001 s up to the duration"),
        ({"interval": math.nan}, UsageError, "interval nan s: not from 0.001 s up to the duration"),
        ({"interval": 2, "duration": 1.5}, UsageError, "interval 2 s: not from 0.001 s up to"
         " the duration"),
        ({"interval": 1e-9}, UsageError, "interval 1e-09 s: not from 0.001 s up to the duration"),
        ({"duration": 1e300}, UsageError, "duration 1e+300 s: not up to 2592000 s"),
        ({"duration": math.inf}, UsageError, "duration inf s: not up to 2592000 s"),
        ({"duration": math.nan}, UsageError, "duration nan s: not up to 2592000 s"),
        ({"pid": 0}, UsageError, "pid 0: not from 1 to 2**31 - 1"),
        ({"pid": 1 << 31}, UsageError, "pid 2147483648: not from 1 to 2**31 - 1"),
        ({"image": "../here/t.arrow"}, UsageError, "../here/t.arrow: image and trace are two"
         " files"),
        ({"method": "x"}, UsageError, "method 'x': not one of auto, soft-dirty, write-protect"),
        ({"pid": os.getpid()}, UsageError, f"pid {os.getpid()}: a process cannot watch itself"),
        ({"pid": NOBODY}, ImageError, f"pid {NOBODY}: no such process"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any],
    kind: type[GpudedupError], reason: str,
) -> None:  # fmt: skip
    """Nothing was touched, and nothing is left."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(kind) as raised:
        record_trace(options.pop("pid", os.getppid()), "t.arrow", **options)
    assert str(raised.value) == reason
    assert list((tmp_path / "here").iterdir()) == []


def test_a_process_that_ends_before_the_capture(
    idle: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(Seen):
        def __call__(self, pid: int, method: str) -> Seen:
            idle.kill()
            return super().__call__(pid, method)

    monkeypatch.setattr(recording, "watch", Deadly([]))
    with pytest.raises(ImageError, match=rf"^pid {idle.pid}: no such process$"):
        record_trace(idle.pid, tmp_path / "t.arrow")
