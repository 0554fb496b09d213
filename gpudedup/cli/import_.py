"""``gpudedup import``."""

from __future__ import annotations

from typing import Annotated

import typer

from gpudedup.cli.common import Force, Format, PageSize, finish, progress


def import_(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Put into one dump.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DUMP")],
    format: Format = None,
    page_size: PageSize = None,
    force: Force = False,
) -> None:
    """Turn images of memory into one dump."""
    import gpudedup
    from gpudedup.report.text import written

    with progress("importing") as watch:
        done = gpudedup.import_images(
            inputs, output, format=format, page_size=page_size, force=force, progress=watch
        )
    typer.echo(written(output, done.pages, done.mappings, done.absent))
    finish(done.losses, done.notes)
