"""``gpudedup restore``."""

from __future__ import annotations

from typing import Annotated

import typer

from gpudedup.cli.common import Force, finish, progress


def restore(
    merged: Annotated[str, typer.Argument(metavar="MERGED", help="A merged dump.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DUMP|FOLDER",
            show_default=False,
            help="Dump to write; with --raw a folder.",
        ),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(metavar="NAME|N", help="Only this one of the inputs; see --list."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="A raw image for each owner, in a folder.")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Only list the inputs, numbered from 0.")
    ] = False,
    force: Force = False,
) -> None:
    """Give back what a merged dump was made of, byte for byte.

    It writes a dump with the rows, columns and metadata from before. With --raw it writes a raw
    image for each owner: a machine's memory at its addresses; of a process one mapping after
    another, which a .maps file beside it lists. What is absent becomes a hole.

    Pages are compared with the digests kept in the file; damage ends with code 3, and nothing is
    written.
    """
    import gpudedup
    from gpudedup.errors import UsageError
    from gpudedup.report.merged import inputs, restored
    from gpudedup.report.text import written

    if list_:
        with gpudedup.open_merged(merged) as dump:
            typer.echo(inputs(dump), nl=False)
        return
    if output is None:
        raise UsageError("missing option --output (-o)")
    with progress("restoring") as watch:
        if raw:
            files = gpudedup.restore_raw(merged, output, input=input, force=force, progress=watch)
            typer.echo(restored(files), nl=False)
            return
        done = gpudedup.restore(merged, output, input=input, force=force, progress=watch)
    typer.echo(written(output, done.pages, done.mappings, done.absent))
    finish(done.losses, done.notes)
