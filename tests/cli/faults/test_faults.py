"""A system call that fails, at any place of any command: an error of one line, nothing left behind.

Each command runs once to count its calls of each kind, then again and again with one of them
failing, or doing half of its work; see ``faults.cpp`` for the calls and ``runs.py`` for what is
checked. `make test` draws some of the faults; with GPUDEDUP_LONG all are tried, for about an hour.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.processes.children import may_trace

from . import shim, target
from .cases import CASES
from .runs import Runner
from .server import Server

COMPILER = shutil.which("g++")
LONG = bool(os.environ.get("GPUDEDUP_LONG"))
DRAWN = 5
"""Faults of each command that are tried, unless all are."""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++, which compiles the faults")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("faults")
    assert COMPILER
    library, program = shim.build(COMPILER, folder), target.build(COMPILER, folder)
    control = shim.Control(folder / "control")
    (folder / "work").mkdir()
    idle, writing = target.Target(program), target.Target(program, writes=True)
    server = Server(library, folder / "control")
    try:
        yield Runner(server, control, folder / "work", idle, writing)
    finally:
        server.close()
        idle.close()
        writing.close()


@pytest.mark.parametrize("name", CASES)
def test_a_call_that_fails(runner: Runner, name: str) -> None:
    case = CASES[name]
    if case.is_live and (os.geteuid() or not may_trace()):
        pytest.skip("needs root")
    if name.startswith("record") and not target.can_protect():
        pytest.skip("needs PAGEMAP_SCAN and userfaultfd")
    runner.warm(case)
    counts = runner.counts(case)
    todo = shim.faults(counts)
    if not LONG:
        todo = random.Random(name).sample(todo, min(DRAWN, len(todo)))
    codes: Counter[int] = Counter()
    wrong: list[str] = []
    for fault in todo:
        try:
            codes[runner.check(case, fault)] += 1
        except (AssertionError, ValueError, LookupError, OSError) as error:
            wrong.append(f"{fault}: {type(error).__name__}: {error}")
    if LONG:
        how = f"codes {dict(sorted(codes.items()))}, {len(wrong)} wrong"
        print(f"\n{name}: {len(todo)} runs, {sum(counts.values())} calls; {how}")  # noqa: T201
    assert not wrong, "\n".join(wrong)


def test_calls_are_counted_and_fail(runner: Runner) -> None:
    """The instrument itself: a fault is delivered, and makes a difference."""
    case = CASES["generate raw"]
    runner.warm(case)
    counts = runner.counts(case)
    assert counts["command", "fsync"] == 2
    assert counts["command", "rename"] == 1
    fault = shim.Fault("command", "fsync", 1, shim.LASTING["fsync"])
    done = runner.run(case, fault)
    assert runner.control.delivered == 1
    assert (done.code, done.err) == (1, "gpudedup: out/g.mem: Input/output error\n")
    assert runner.control.counts["command", "fsync"] == 1
