"""``gpudedup verify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gpudedup.cli.common import Threads, progress, say
from gpudedup.errors import ExitCode


def verify(
    merged: Annotated[str, typer.Argument(metavar="MERGED", help="A merged dump.")],
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a merged dump against the digests that are kept in it.

    Each frame has a digest; one hash is of everything else. Rows must belong to their input, too.
    Each damaged place is a line with its offset; damage ends with code 3.
    """
    import gpudedup
    from gpudedup.report.merged import intact

    with progress("verifying") as watch:
        found = gpudedup.verify(merged, threads=threads, progress=watch)
    if as_json:
        typer.echo(json.dumps({"schema_version": 1, "path": merged, **asdict(found)}))
    elif not found.damage:
        typer.echo(intact(merged, found))
    for line in found.damage:
        say(line)
    if found.damage:
        raise typer.Exit(ExitCode.PARTLY_UNREADABLE)
