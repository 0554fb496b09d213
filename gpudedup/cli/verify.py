"""``gpudedup verify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gpudedup.cli.common import progress, say
from gpudedup.errors import ExitCode


def verify(
    merged: Annotated[str, typer.Argument(metavar="MERGED")],
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Of the host.  [default: all cores]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a merged dump against the digests that are kept in it.

    Every frame, and by a hash everything else in the file; and that rows belong to their input.
    Damage is told with its offset, one line for each place, and ends with code 3.
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
