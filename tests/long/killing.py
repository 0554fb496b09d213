"""Commands that write files, killed at random moments, and what may be there afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import gpudedup as gd
from gpudedup.images.dumps.merged_writer import SEAL_MAGIC

from ..processes.children import Child
from ..processes.test_killed import check_left_alone

ROOT = Path(__file__).parents[2]

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

OLD = b"the file from before"


class Server:
    """Runs commands in forked children; see :mod:`.server`."""

    def __init__(self, folder: Path) -> None:
        self.errors = folder / "errors"
        self.errors.touch()
        (folder / "temporary").mkdir()
        self.temporary = folder / "temporary"
        self._running = subprocess.Popen(
            [
                sys.executable,
                "-X",
                "faulthandler",
                "-W",
                "ignore",
                "-m",
                "tests.long.server",
                str(self.errors),
            ],
            cwd=ROOT,
            # numpy's own threads would be there before the forks.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "TMPDIR": str(self.temporary)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: str) -> Any:
        assert self._running.stdin
        assert self._running.stdout
        self._running.stdin.write(json.dumps(words) + "\n")
        self._running.stdin.flush()
        return json.loads(self._running.stdout.readline())

    def close(self) -> None:
        self._running.communicate()


@dataclass(frozen=True)
class Command:
    """A command that writes files.

    :param arguments: given the folder of its outputs
    :param outputs: names that it writes, in the order of their appearance
    :param is_exact: its outputs are the same each time
    :param is_folder: it writes all its outputs into a folder that it makes
    :param apart: its outputs appear one after another, each for itself
    :param holds: process that it holds, or looks at
    """

    arguments: Callable[[Path], list[str]]
    outputs: list[str]
    is_exact: bool = True
    is_folder: bool = False
    apart: bool = False
    holds: Child | None = None


def content(path: Path, is_exact: bool) -> object:
    """Return what tells a whole file from others: a hash, or the columns of a table."""
    data = path.read_bytes()
    if data == OLD:
        return "old"
    if not data.startswith(b"ARROW1"):
        return hashlib.sha256(data).hexdigest()
    if SEAL_MAGIC in data:
        assert not gd.verify(path, threads=1).damage
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    table.validate(full=True)
    # Not the metadata: they tell the time.
    rows = pa.BufferOutputStream()
    with pa.ipc.new_stream(rows, table.schema.remove_metadata()) as stream:
        stream.write_table(table)
    return hashlib.sha256(rows.getvalue()).hexdigest() if is_exact else table.schema.names


class Killer:
    """Runs one command again and again, and kills it."""

    def __init__(self, server: Server, command: Command, out: Path, seed: int) -> None:
        self.server, self.command, self.out = server, command, out
        self.rng = random.Random(seed)
        self.killed = self.writing = 0
        self._begin(False)
        for _ in range(3):
            began = time.monotonic()
            server.ask(*command.arguments(out), "--force")
            self.done, left = server.ask("wait")
            self.within = 2 * (time.monotonic() - began)
            assert not left
        self.new = {name: content(out / name, command.is_exact) for name in command.outputs}
        self.fds = self._descriptors()

    def _begin(self, force: bool) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        if force:
            for name in self.command.outputs:
                (self.out / name).parent.mkdir(exist_ok=True)
                (self.out / name).write_bytes(OLD)

    def _descriptors(self) -> int:
        held = self.command.holds
        return len(list(Path(f"/proc/{held.pid}/fd").iterdir())) if held else 0

    def kill(self) -> None:
        """Run the command once, kill it at a random moment, and check what is there."""
        force, number = self.rng.random() < 0.5, self.rng.choice(SIGNALS)
        self._begin(force)
        pid = self.server.ask(*self.command.arguments(self.out), *["--force"] * force)
        time.sleep(self.rng.uniform(0, self.within))
        os.kill(pid, number)
        code, left = self.server.ask("wait")
        what = f"signal {number} to {pid}, {force=}: code {code}"
        assert not left, f"{what}: a process is left"
        assert code in (self.done, -number, 128 + number), what
        killed = code != self.done
        self.killed += killed
        # Half of all commands are done before the signal comes: it may come at any moment.
        self.within *= 1.02 if killed else 0.98
        said = self.server.errors.read_text()
        assert "Traceback" not in said, f"{what}: {said}"
        assert not list(self.server.temporary.iterdir()), what
        self._check_files(force, number == signal.SIGKILL, killed, what)
        if self.command.holds:
            check_left_alone([self.command.holds], self.server.temporary)
            assert self._descriptors() == self.fds, f"{what}: descriptors are left"

    def _check_files(self, force: bool, at_once: bool, killed: bool, what: str) -> None:
        """Check that there are the files from before, or the new ones, and nothing else."""
        names = {str(p.relative_to(self.out)) for p in self.out.rglob("*") if not p.is_dir()}
        outputs = self.command.outputs
        found = {
            name: content(self.out / name, self.command.is_exact) for name in names & set(outputs)
        }
        for name, held in found.items():
            assert held == self.new[name] or (force and held == "old"), f"{what}: {name}"
        new = [name for name, held in found.items() if held != "old"]
        assert killed or len(new) == len(outputs), f"{what}: only {new}"
        if force:
            # For an instant a file that is replaced has no other name, after a kill for ever.
            assert len(found) == len(outputs) or (at_once and self.command.is_folder), what
        if not at_once and not self.command.apart and not force:
            assert len(new) in (0, len(outputs)), f"{what}: only {new}"
        for name in names - set(outputs):
            assert at_once, f"{what}: {name} is left"
            self._check_left_over(name, force, what)
        folders = [p for p in self.out.rglob("*") if p.is_dir()]
        if not self.command.is_folder or not (at_once or new or force):
            assert not folders, f"{what}: {folders}"

    def _check_left_over(self, name: str, force: bool, what: str) -> None:
        """Check what SIGKILL may leave: a whole file for an instant, or a folder of raw files."""
        path = self.out / name
        if self.command.is_folder:
            assert path.parent.name.startswith(".restore."), f"{what}: {name} is left"
            return
        assert force, f"{what}: {name} is left"
        assert path.name.startswith("."), f"{what}: {name} is left"
        assert path.suffix == ".tmp", f"{what}: {name} is left"
        held = content(path, self.command.is_exact)
        assert held in self.new.values(), f"{what}: {name} is not whole"
