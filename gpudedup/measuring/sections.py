"""What was measured, as it is printed and written: lines of rates, in sections."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from gpudedup.measuring.rounds import Comparison


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of the rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Line:
    """One candidate.

    :param name: what was done
    :param unit: what its rate counts: bytes, pages or digests
    :param amount: how many of them it processes in a round
    :param seconds: of each round
    :param ratios: how many times as fast as another candidate, by its name; the median of the
        rounds' own ratios
    """

    name: str
    unit: str
    amount: int
    seconds: tuple[float, ...]
    ratios: dict[str, Spread] = field(default_factory=dict)

    @property
    def rate(self) -> Spread:
        """Return units per second."""
        return Spread.of([self.amount / each for each in self.seconds])

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, and the rate, as JSON types."""
        return {**asdict(self), "seconds": list(self.seconds), "rate": asdict(self.rate)}


@dataclass(frozen=True, slots=True)
class Section:
    """Candidates that took turns.

    :param part: ``cpu``, ``manager`` or ``gpu``
    :param what: what they did
    :param against: names of the candidates that others are compared with
    """

    part: str
    what: str
    against: tuple[str, ...]
    lines: tuple[Line, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return part, what and lines as JSON types."""
        return {
            "part": self.part,
            "what": self.what,
            "lines": [line.as_dict() for line in self.lines],
        }


def section(
    part: str,
    what: str,
    found: Comparison,
    *,
    against: Collection[str] = (),
    unit: str = "bytes",
    amount: int | None = None,
    others: Mapping[str, tuple[str, int]] | None = None,
    alone: Collection[str] = (),
) -> Section:
    """Return the section of a comparison.

    :param against: candidates that every other one is compared with
    :param amount: units that a candidate processes; None: ``found.size``
    :param others: unit and amount of candidates that process something else
    :param alone: candidates that are compared with none
    """
    usual = unit, found.size if amount is None else amount
    of = {name: (others or {}).get(name, usual) for name in found.seconds}

    def ratios(name: str) -> dict[str, Spread]:
        rates = {key: [of[key][1] / each for each in found.seconds[key]] for key in of}
        return {
            other: Spread.of([a / b for a, b in zip(rates[name], rates[other], strict=True)])
            for other in against
            if name not in (*against, *alone)
        }

    lines = [
        Line(name, *of[name], tuple(samples), ratios(name))
        for name, samples in found.seconds.items()
    ]
    return Section(part, what, tuple(against), tuple(lines))
