"""A benchmark as text: a table for each section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpudedup.report.text import table
from gpudedup.report.units import plural, printable, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpudedup.measuring.benchmark import Benchmark
    from gpudedup.measuring.sections import Line, Section

_UNITS = {"bytes": (1e9, "GB/s"), "pages": (1e6, "M pages/s"), "digests": (1e6, "M digests/s")}
_PARTS = {"cpu": "CPU", "manager": "Memory manager", "gpu": "GPU"}
_NOTES = (
    "Scans, stores and merges were compared with the known answer before they were timed.",
    "A rate is the median of the rounds, in which the lines of a table take turns; a ratio",
    "(/ read) is the median of the rounds' own. random: all pages differ; mix: 30 % zero, 40 %",
    "unique, 30 % duplicates, shuffled. read: a loop that sums the words; read ahead: the same",
    "with prefetch; apply: the pages that a merge moves, without finding them.",
)
_NAMED = ("gpudedup", "python", "numba")

UNSTEADY = 2
"""A line whose rounds differ by more than this factor is counted in a note."""


def benchmarked(done: Benchmark, versions: Mapping[str, str]) -> str:
    """Return what ``gpudedup bench`` prints, several lines."""
    parts = [_headline(done, versions), *(_section(each) for each in done.sections)]
    return "\n\n".join([*parts, _notes(done)]) + "\n"


def _headline(done: Benchmark, versions: Mapping[str, str]) -> str:
    machine, options = done.machine, done.options
    where = [machine["cpu"], plural(machine["cores"], "core"), f"{machine['memory_gib']} GiB"]
    lines = [
        printable(", ".join([*where, *([done.gpu] if done.gpu else [])])),
        ", ".join([*(f"{name} {versions[name]}" for name in _NAMED), versions["system"]]),
        f"{size(options.size)} of pages of 4 KiB, {plural(options.threads, 'thread')},"
        f" {plural(options.rounds, 'round')}",
    ]
    return "\n".join(lines)


def _section(section: Section) -> str:
    head = ["", "rate", "", "lowest .. highest", *(f"/ {name}" for name in section.against)]
    rows = [_row(line, section.against) for line in section.lines]
    first = section.lines[0]
    amount = size(first.amount) if first.unit == "bytes" else f"{first.amount:,} {first.unit}"
    return f"{_PARTS[section.part]}: {section.what}; {amount}\n" + table(
        head, rows, numbers=(1, 3, *range(4, len(head)))
    )


def _row(line: Line, against: tuple[str, ...]) -> list[str]:
    divisor, unit = _UNITS[line.unit]
    rate, ratios = line.rate, (line.ratios.get(name) for name in against)
    return [
        line.name,
        _number(rate.median / divisor),
        unit,
        f"{_number(rate.lowest / divisor)} .. {_number(rate.highest / divisor)}",
        *("" if ratio is None else f"{ratio.median:.2f}" for ratio in ratios),
    ]


def _number(value: float) -> str:
    """Return three digits; all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _notes(done: Benchmark) -> str:
    lines = [*_NOTES]
    rates = [line.rate for each in done.sections for line in each.lines]
    if unsteady := sum(rate.highest > UNSTEADY * rate.lowest for rate in rates):
        lines.append(
            f"In {unsteady} of {plural(len(rates), 'line')} the rounds differ by more than a factor"
            f" of {UNSTEADY}: other work on the machine?"
        )
    lines += [f"Not measured: {each.what}: {printable(each.reason)}" for each in done.not_measured]
    return "\n".join(lines)
