"""Run a command with a fault, and check what it leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpudedup.images.opening import open_image

from .cases import OLD, Case, make_inputs
from .server import Server
from .shim import Control, Fault
from .target import PAGES, Target

DEADLINE_S = 60
PAGE = 4096
DONE, FAILED, PARTLY, UNSUPPORTED = 0, 1, 3, 4
VARY = ("timings", "seconds", "device", "load_s", "path")
"""Keys of JSON whose values differ from run to run."""


HINDERS_CLEANING = ("unlink", "stat")
"""Calls without which what was begun cannot be undone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left.

    :param status: its wait status; -1: it did not end
    :param files: content of each file below ``out``, by name; None: a folder
    """

    status: int
    out: str
    err: str
    files: dict[str, bytes | None]

    @property
    def code(self) -> int:
        return os.waitstatus_to_exitcode(self.status)


@dataclass
class Runner:
    """Runs commands in ``work``, whose folder ``in`` it makes.

    :ivar tally: number of runs by exit code, for each case
    """

    server: Server
    control: Control
    work: Path
    idle: Target
    writing: Target
    tally: dict[str, dict[int, int]] = field(default_factory=dict)
    whole: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_inputs(self.work / "in")

    def target(self, case: Case) -> Target:
        return self.writing if case.words.startswith("trace record") else self.idle

    def prepare(self, case: Case) -> dict[str, bytes | None]:
        """Make ``out`` anew; return the files in it."""
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for name in case.old:
            (out / name).write_bytes(OLD)
        return _files(out)

    def warm(self, case: Case) -> None:
        """Run a case in the server itself."""
        self.prepare(case)
        self.server.warm(case.arguments(self.target(case).pid), self.work)

    def run(self, case: Case, fault: Fault | None) -> Outcome:
        """Run a case in a fork of the server."""
        self.prepare(case)
        self.control.set(fault)
        out, err = self.work / "stdout", self.work / "stderr"
        words = case.arguments(self.target(case).pid)
        status = self.server.run(words, self.work, out, err, DEADLINE_S)
        said = [path.read_text(errors="replace") for path in (out, err)]
        return Outcome(status, said[0], said[1], _files(self.work / "out"))

    def counts(self, case: Case) -> dict[tuple[str, str], int]:
        """Run a case without a fault; return its calls of each kind, by role and kind."""
        done = self.run(case, None)
        counts = self.control.counts
        self.whole[case.name] = done
        assert (done.status, self.control.delivered) == (0, 0), done.err
        self._check_right(case, done)
        return counts

    def check(self, case: Case, fault: Fault) -> int:
        """Run a case with a fault and check what it leaves; return the exit code."""
        before = self.prepare(case)
        done = self.run(case, fault)
        assert done.status != -1, f"it hangs: {done.err}"
        assert not os.WIFSIGNALED(done.status), (
            f"{signal.strsignal(os.WTERMSIG(done.status))}: {done.err}"
        )
        lines = done.err.splitlines()
        assert all(line.startswith("gpudedup: ") for line in lines), done.err
        notes = [line for line in lines if line.startswith("gpudedup: note: ")]
        if done.code == DONE:
            assert notes == lines, done.err
            if fault.kind == "unlink":
                # What cannot be removed stays, hidden.
                done = replace(done, files=_without_hidden(done.files))
            self._check_right(case, done)
        elif done.code == PARTLY:
            assert len(lines) > len(notes), done.err
            self._check_part(case, done)
        else:
            assert done.code in (FAILED, *[UNSUPPORTED] * case.is_live), done.code
            assert len(lines) == 1, done.err
            self._check_nothing(case, before, done, fault)
        if case.is_live:
            # At last: its answer changes its memory.
            self.target(case).check_left_alone()
        return done.code

    def _check_nothing(
        self, case: Case, before: dict[str, bytes | None], done: Outcome, fault: Fault
    ) -> None:
        """Check that outputs are as they were, or whole: an error may come after them."""
        if done.files == before:
            return
        whole = self.whole[case.name].files
        if fault.kind in HINDERS_CLEANING and "raw" in case.words:
            # What cannot be undone stays, hidden: the old files above all.
            files = _without_hidden(done.files)
            assert all(files[name] in (before.get(name), whole.get(name)) for name in files)
            for name in case.old:
                assert name in done.files or OLD in done.files.values()
            return
        if case.words.startswith("trace record") and done.files.get("t.arrow") == before.get(
            "t.arrow"
        ):
            # The capture is whole before the trace begins.
            assert done.files.keys() == {*before, "t.image.arrow"}
            assert self._missing(case, self.work / "out" / "t.image.arrow") == 0
            return
        assert done.files.keys() == whole.keys(), sorted(done.files)
        if fault.kind == "rename":
            # Of several files some are replaced already.
            assert all(held in (OLD, whole[name]) for name, held in done.files.items())
            return
        self._check_files(case, done)

    def _check_right(self, case: Case, done: Outcome) -> None:
        """Check that everything is as in a run without a fault."""
        whole = self.whole[case.name]
        assert _said(done.out) == _said(whole.out) or case.is_live, done.out
        assert done.files.keys() == whole.files.keys(), sorted(done.files)
        self._check_files(case, done)

    def _check_files(self, case: Case, done: Outcome) -> None:
        if not case.is_live:
            assert done.files == self.whole[case.name].files
        elif case.words.startswith("capture"):
            assert self._missing(case, self.work / "out" / "c.arrow") == 0
        else:
            self._check_trace(case, self.work / "out" / "t.arrow")
            assert self._missing(case, self.work / "out" / "t.image.arrow") == 0

    def _check_part(self, case: Case, done: Outcome) -> None:
        """Check that an output has what could be read, and counts what could not."""
        whole = self.whole[case.name]
        if not done.files and not whole.files:
            return
        assert done.files.keys() == whole.files.keys(), sorted(done.files)
        for name in done.files:
            path = self.work / "out" / name
            if case.is_live:
                assert name == "t.arrow" or self._missing(case, path) > 0
                continue
            if case.words.startswith("scan"):
                # Pages that were not read are rows too; the contents are fewer.
                found, wanted = _length(path.read_bytes()), _length(whole.files[name] or b"")
                assert found == wanted or (".contents." in name and found < wanted)
                continue
            rows, every = _pages(path.read_bytes()), _pages(whole.files[name] or b"")
            assert rows <= every
            with open_image(str(path), page_size=None) as image:
                assert image.absent.unreadable == every.total() - rows.total() > 0

    def _missing(self, case: Case, path: Path) -> int:
        """Check a capture against the memory of the target; return how many pages it lacks."""
        target = self.target(case)
        with open_image(str(path), page_size=None) as image:
            lacks = image.absent.unreadable
        moves = target is self.writing
        rows = _rows(path.read_bytes())
        area = range(target.area, target.area + PAGES * PAGE, PAGE)
        for (start, index), content in rows.items():
            address = start + index * PAGE
            if not moves or address in area:
                held = target.memory(address, PAGE)
                if moves:
                    # Its second byte is being written.
                    held, content = held[2:], content[2:]
                assert content == held, (
                    f"page {index} of the mapping at {start:#x}: {self._maps(target, start)}"
                )
        if not lacks:
            assert {start + index * PAGE for start, index in rows} >= set(area)
            expected = len(_rows(self.whole[case.name].files[path.name] or b""))
            assert moves or len(rows) == expected, f"{len(rows)} rows, not {expected}"
        return lacks

    @staticmethod
    def _maps(target: Target, start: int) -> str:
        lines = Path(f"/proc/{target.pid}/maps").read_text().splitlines()
        return next((line for line in lines if line.startswith(f"{start:x}-")), "gone")

    def _check_trace(self, case: Case, path: Path) -> None:
        target = self.target(case)
        events = _table(path.read_bytes()).to_pylist()
        times = sorted({event["time_ns"] for event in events})
        with open_image(str(path.with_name("t.image.arrow")), page_size=None) as image:
            starts = [mapping.start for mapping in image.mappings]
        for time in times:
            written = {
                starts[event["mapping"]] + (event["index"] + at) * PAGE
                for event in events
                if event["time_ns"] == time and event["operation"] == "write"
                for at in range(event["count"])
            }
            area = range(target.area, target.area + PAGES * PAGE, PAGE)
            assert written >= set(area), "writes were missed"
        assert times


def _files(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _without_hidden(files: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Return files without those in the hidden folder of a restore of several."""
    return {name: held for name, held in files.items() if ".restore." not in name}


def _table(data: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def _length(data: bytes) -> int:
    """Return the rows of a table in either format."""
    if data.startswith(b"PAR1"):
        return int(pq.read_metadata(pa.BufferReader(data)).num_rows)
    return int(_table(data).num_rows)


def _pages(data: bytes) -> Counter[tuple[Any, ...]]:
    """Return mapping, index and content of each page of a dump."""
    rows = _table(data).to_pylist()
    return Counter((*row["mapping"].values(), row["index"], row["content"]) for row in rows)


def _rows(data: bytes) -> dict[tuple[Any, int], bytes]:
    """Return the content of each page of a dump, by the start of its mapping, and its index."""
    return {
        (row["mapping"]["start"], row["index"]): row["content"] for row in _table(data).to_pylist()
    }


def _said(text: str) -> Any:
    """Return what was printed, without times and names that vary."""
    if not text.startswith("{"):
        return re.sub(r"\d+\.\d+ s\b", "", text)
    return _without(json.loads(text))


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(held) for key, held in value.items() if key not in VARY}
    return [_without(held) for held in value] if isinstance(value, list) else value
