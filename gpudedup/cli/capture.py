"""``gpudedup capture``."""

from __future__ import annotations

from typing import Annotated

import typer

from gpudedup.cli.common import Force, finish, progress


def capture(
    pids: Annotated[
        list[int], typer.Option("--pid", "-p", metavar="PID", help="A process; may be repeated.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DUMP", help="File to write.")],
    stop: Annotated[
        bool, typer.Option("--stop", help="Hold the processes still until the dump is written.")
    ] = False,
    force: Force = False,
) -> None:
    """Write the memory of running processes to a dump.

    Made as root, the dump has frame numbers: a scan counts memory that the processes share already
    only once.
    """
    import gpudedup
    from gpudedup.report.text import written

    with progress("capturing") as watch:
        done = gpudedup.capture(pids, output, stop=stop, force=force, progress=watch)
    typer.echo(written(output, done.pages, done.mappings, done.absent))
    finish(done.losses, done.notes, lost=done.absent.unreadable > 0)
