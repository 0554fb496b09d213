"""Every command that writes, killed at random moments: old files or new ones, nothing else.

SIGKILL may leave what docs/reliability.md says. A process that was held or watched goes on, with
the descriptors that it had.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gpudedup.errors import ExitCode

from ..processes.children import ANSWERING, Child, child, may_trace
from ..processes.test_killed import THREADS
from .amounts import SEED, amount, say
from .killing import Command, Killer, Server

KILLS = amount(3, 1000)

COMMANDS = [
    "generate", "generate raw", "import", "merge", "restore", "restore --raw", "scan", "replay",
    "trace generate", "capture", "capture --stop", "trace record",
]  # fmt: skip

OWNERS = 3


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Give a folder on a file system that has nothing to wait for."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with folder_in_memory() as made:
        yield made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Start the server, and make the inputs of all commands."""
    made = Server(folder)
    inputs = folder / "inputs"
    inputs.mkdir()
    g, r, m, t = (str(inputs / name) for name in "grmt")
    size = ["--size", "1M", "--owners", str(OWNERS)]
    spare = [str(inputs / name) for name in ("1.arrow", "2", "3")]
    for words in (
        ["generate", "-o", g, *size],
        ["generate", "-o", r, "--size", "512K", "--format", "raw"],
        ["merge", g, r, "-o", m, "--backend", "cpu"],
        ["scan", g, "-o", spare[0], "--backend", "cpu"],
        ["restore", m, "-o", spare[1]],
        ["restore", m, "--raw", "-o", spare[2]],
    ):
        assert made.ask("warm up", *words) == 0, words
    made.ask("warm traces", g, t)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def out(folder: Path) -> Iterator[Path]:
    yield folder / "out"
    shutil.rmtree(folder / "out", ignore_errors=True)


def command(name: str, inputs: Path, held: Child | None) -> Command:
    """Return a command that writes its output ``o``."""
    g, r, m, t = (str(inputs / one) for one in "grmt")
    if held is not None:
        pid = ["-p", str(held.pid)]
        if name == "trace record":
            again = ["--interval", "0.01", "--duration", "0.03"]
            return Command(
                lambda o: ["trace", "record", *pid, "-o", str(o / "o"), *again],
                ["o.image.arrow", "o"], is_exact=False, apart=True, holds=held,
            )  # fmt: skip
        words = name.split()
        return Command(
            lambda o: [*words, *pid, "-o", str(o / "o")], ["o"], is_exact=False, holds=held
        )
    size = ["--size", "1M", "--owners", str(OWNERS)]
    raws = sorted(path.name for path in (inputs / "3").iterdir())
    return {
        "generate": Command(lambda o: ["generate", "-o", str(o / "o"), *size], ["o"]),
        "generate raw": Command(
            lambda o: ["generate", "-o", str(o / "o"), "--size", "1M", "--format", "raw"], ["o"]
        ),
        "import": Command(lambda o: ["import", r, g, "-o", str(o / "o")], ["o"]),
        "merge": Command(lambda o: ["merge", g, r, "-o", str(o / "o"), "--backend", "cpu"], ["o"]),
        "restore": Command(lambda o: ["restore", m, "-o", str(o / "o")], ["o"]),
        "restore --raw": Command(
            lambda o: ["restore", m, "--raw", "-o", str(o / "o")],
            [f"o/{one}" for one in raws],
            is_folder=True,
        ),
        "scan": Command(
            lambda o: ["scan", g, "-o", str(o / "o.arrow"), "--backend", "cpu"],
            ["o.arrow", "o.contents.arrow"],
        ),
        "replay": Command(
            lambda o: ["replay", g, t, "-o", str(o / "o.arrow"), "--device-engine", "cpu"],
            ["o.arrow"],
            is_exact=False,
        ),
        "trace generate": Command(
            lambda o: [
                "trace", "generate", "--image", g, "--mix", "write-heavy", "--events", "5000",
                "-o", str(o / "o"),
            ],
            ["o"],
        ),
    }[name]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment(name: str, server: Server, folder: Path, out: Path) -> None:
    with ExitStack() as stack:
        held = None
        if name in ("capture", "capture --stop", "trace record"):
            if os.geteuid() or not may_trace():
                pytest.skip("needs root, and Yama's ptrace_scope 0")
            held = stack.enter_context(child(THREADS + ANSWERING))
        killer = Killer(server, command(name, folder / "inputs", held), out, SEED)
        if killer.done == ExitCode.ENGINE_UNUSABLE:
            pytest.skip("not possible here")
        for number in range(KILLS):
            try:
                killer.kill()
            except AssertionError as error:
                error.add_note(f"seed {SEED}, kill {number} of {name}")
                raise
    if KILLS >= 100:
        assert killer.killed > KILLS // 4, "most came too late"
    say(f"{name}: {KILLS} signals, {killer.killed} of which came before the end")
