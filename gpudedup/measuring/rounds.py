"""Interleaved rounds: candidates take turns, in an order that rotates.

Only ratios inside one run count: machines are noisy, and other work comes and goes. So every
round runs each candidate once, the order rotates from round to round, and a ratio is the median
of the rounds' own ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Comparison:
    """Candidates that did the same work in interleaved rounds.

    :param case: names and values that distinguish it within a run, e.g. population
    :param size: bytes that each candidate processes; operations where no rate of bytes is printed
    :param seconds: samples of each candidate, one per round
    :param ratios: ``"a / b"`` to the median over rounds of a's rate by b's; other figures by name
    """

    case: dict[str, Any]
    size: int
    seconds: dict[str, list[float]]
    ratios: dict[str, float] = field(default_factory=dict)

    def ratio(self, name: str, other: str) -> float:
        """Record and return how many times faster ``name`` is than ``other``."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        value = median(b / a for a, b in pairs)
        self.ratios[f"{name} / {other}"] = round(value, 3)
        return value


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that runs ``work`` and returns its seconds."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    size: int,
    rounds: int,
    warm: bool = True,
    **case: Any,
) -> Comparison:
    """Run every candidate once per round, in rotating order, and record its seconds.

    :param warm: run each candidate once before, untimed, so that no round compiles
    """
    clocked = {name: timed(work) for name, work in candidates.items()}
    return interleave_clocked(clocked, size=size, rounds=rounds, warm=warm, **case)


def interleave_clocked(
    candidates: Mapping[str, Callable[[], float]],
    *,
    size: int,
    rounds: int,
    warm: bool = True,
    **case: Any,
) -> Comparison:
    """Do as :func:`interleave`, with candidates that return their own seconds, by any clock."""
    names = list(candidates)
    if warm:
        for name in names:
            candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for at in range(rounds):
        shift = at % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(candidates[name]())
    return Comparison(case, size, seconds)
