"""Shared by commands: sizes as arguments, progress, notes, the exit code of losses."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpudedup.errors import ExitCode
from gpudedup.report.units import printable

if TYPE_CHECKING:
    from gpudedup.engines.base import Progress

QUIET_SECONDS = 1.0
"""Seconds until progress is shown."""


def clipped(text: str, width: int = 300) -> str:
    """Return at most the first ``width`` characters of what may quote a long argument."""
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def byte_count(text: str) -> int:
    """Return the bytes of ``4GiB``, ``512M``, ``4096``: units are powers of 1024.

    :raises typer.BadParameter: if it is no size
    """
    if len(text) > 60:
        raise typer.BadParameter(f"{clipped(text, 60)!r} is not a size such as 4096, 512MiB or 4G")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGTPE]?)(?:iB|B)?)", text.strip(), re.IGNORECASE)
    if not match:
        raise typer.BadParameter(f"{text!r} is not a size such as 4096, 512MiB or 4G")
    value = Fraction(match[1]) * 1024 ** " KMGTPE".index(match[2].upper() or " ")
    if value != int(value):
        raise typer.BadParameter(f"{text!r} is not a whole number of bytes")
    if value >= 1 << 63:
        raise typer.BadParameter(f"{text!r} is more than 2^63 - 1 bytes")
    return int(value)


def numbers(text: str) -> list[int]:
    """Return the integers of ``0,1``.

    :raises typer.BadParameter: if it is no such list
    """
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise typer.BadParameter(f"{clipped(text, 60)!r} is not a list of numbers such as 0,1")
    return [int(word) for word in text.split(",")]


PageSize = Annotated[
    int | None,
    typer.Option(
        parser=byte_count,
        metavar="SIZE",
        help="Bytes of a page where the format does not record them: a power of two from 512 to 2M."
        "  [default: 4096]",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        metavar="arrow|elf|raw",
        help="Format of all inputs; arrow: dumps, also merged ones.  [default: recognised]",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda",
        help="What compares pages; auto: a GPU if one can be used, else the CPU.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads of the CPU.  [default: one per core]")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]


def say(message: str) -> None:
    """Print one line to stderr; names in it may hold anything, escape sequences too."""
    typer.echo(f"gpudedup: {printable(' '.join(message.split()))}", err=True)


def finish(losses: Iterable[str], notes: Iterable[str], *, lost: bool = False) -> None:
    """Print notes and losses; exit with the code of a loss if there are any, or if ``lost``."""
    for note in notes:
        say(f"note: {note}")
    lines = list(losses)
    for line in lines:
        say(f"unreadable: {line}")
    if lines or lost:
        raise typer.Exit(ExitCode.PARTLY_UNREADABLE)


@contextmanager
def progress(label: str) -> Iterator[Progress | None]:
    """Give a function to call with pages done and in all; None if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    started, bar = time.monotonic(), None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            if time.monotonic() - started < QUIET_SECONDS:
                return
            bar = _bar()
            bar.start()
            bar.add_task(label, total=total)
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield show
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    from rich import progress as rich
    from rich.console import Console

    return rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
