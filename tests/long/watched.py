"""Readers of mutated files, watched: one that dies or hangs names its case, and another goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from .mutations import case
from .reader import BEGINNING, ENDED, MOST_FAILURES, STATE, bases_of, told

ROOT = Path(__file__).parents[2]

HANGING_S = 120.0
"""Seconds after which a case that is still read hangs; the slowest take less than one."""


@dataclass
class Watched:
    """One reader after another, for every ``step``-th case."""

    folder: Path
    seed: int
    first: int
    stop: int
    step: int
    done: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin(self.first)

    def begin(self, first: int) -> None:
        self._state = self.folder / f"state {self.first} {first}"
        self._state.write_bytes(STATE.pack(BEGINNING, 0, 0))
        arguments = [self.folder, self.seed, first, self.stop, self.step, self._state]
        self._number, self._since = BEGINNING, time.monotonic()
        self._said = self._state.with_name(f"{self._state.name}, errors")
        with self._said.open("wb") as said:
            self._running = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.long.reader", *map(str, arguments)],
                cwd=ROOT,
                # The C library's own allocator crashes earliest on what is freed too early.
                env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_PERTURB_": "165"},
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def goes_on(self) -> bool:
        """Look after the reader; return False once all cases are done."""
        ended = self._running.poll() is not None
        number, done, refused = STATE.unpack(self._state.read_bytes())
        if number != self._number:
            self._number, self._since = number, time.monotonic()
        if not ended and time.monotonic() - self._since < HANGING_S:
            return True
        if not ended:
            self._running.kill()
        code, said = self._running.wait(), self._said.read_text(errors="replace")
        self.done, self.refused = self.done + done, self.refused + refused
        if number == ENDED and code == 0:
            return False
        assert number != BEGINNING, f"the reader did not begin: {said}"
        what = f"died with code {code}" if ended else f"hung for {HANGING_S} s"
        one = case(bases_of(self.folder), self.seed, number)
        self.failures.append(told(one, self.seed, number, f"the reader {what}: {said[-3000:]}"))
        (self.folder / f"case {number}").write_bytes(one.data)
        if len(self.failures) < MOST_FAILURES and number + self.step < self.stop:
            self.begin(number + self.step)
            return True
        return False

    def kill(self) -> None:
        self._running.kill()
        self._running.wait()


def read_all(folder: Path, seed: int, count: int) -> tuple[int, int, list[str]]:
    """Read cases 0 to ``count - 1``; return cases read, cases refused, and what failed."""
    workers = len(os.sched_getaffinity(0))
    readers: list[Watched] = []
    try:
        readers += (Watched(folder, seed, first, count, workers) for first in range(workers))
        left = list(readers)
        while left:
            time.sleep(0.1)
            left = [reader for reader in left if reader.goes_on()]
    finally:
        for reader in readers:
            reader.kill()
    failures = [text for reader in readers for text in reader.failures]
    if (noted := folder / "failures").exists():
        failures.append(noted.read_text())
    return sum(r.done for r in readers), sum(r.refused for r in readers), failures
