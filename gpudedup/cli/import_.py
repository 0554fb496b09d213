"""``gpudedup import``."""

from __future__ import annotations

from typing import Annotated

import typer

from gpudedup.cli.common import Force, Format, PageSize, finish, progress


def import_(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Dumps, ELF cores, raw files.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DUMP", help="File to write.")],
    format: Format = None,
    page_size: PageSize = None,
    force: Force = False,
) -> None:
    """Write images of memory, of any format, to one dump."""
    import gpudedup
    from gpudedup.report.text import written

    with progress("importing") as watch:
        done = gpudedup.import_images(
            inputs, output, format=format, page_size=page_size, force=force, progress=watch
        )
    typer.echo(written(output, done.pages, done.mappings, done.absent))
    finish(done.losses, done.notes)
