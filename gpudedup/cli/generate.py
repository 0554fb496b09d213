"""``gpudedup generate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gpudedup.cli.common import Force, byte_count, progress


def generate(
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="File to write.")],
    size: Annotated[
        int, typer.Option(parser=byte_count, metavar="SIZE", help="Bytes of all pages: 4GiB, 512M.")
    ],
    zero: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of zero pages, 0 to 1.")
    ] = 0.3,
    duplicate: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Share of pages that another page equals, 0 to 1."),
    ] = 0.3,
    group_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Pages of a group of equal ones; repeat to mix.  [default: 4]"
        ),
    ] = None,
    page_size: Annotated[
        int,
        typer.Option(parser=byte_count, metavar="SIZE", help="Bytes: a power of two, 512 to 2M."),
    ] = "4096",  # type: ignore[assignment]  # defaults go through the parser too
    seed: Annotated[int, typer.Option(metavar="N", help="Other seeds make other pages.")] = 0,
    owners: Annotated[int, typer.Option(metavar="N", help="Owners that split the pages.")] = 1,
    format: Annotated[
        str, typer.Option(metavar="arrow|raw", help="A dump, or just the bytes of the pages.")
    ] = "arrow",
    force: Force = False,
) -> None:
    """Make a synthetic image whose answer is known.

    Prints what a scan must find, as JSON; a dump has it in its metadata too. Pages that are neither
    zero nor duplicates are unique. Equal arguments make equal pages.
    """
    from typing import Literal, cast

    import gpudedup
    from gpudedup.errors import UsageError
    from gpudedup.schema import check_page_size

    check_page_size(page_size)
    if size % page_size:
        raise UsageError(f"size {size}: not a multiple of the page size {page_size}")
    recipe = gpudedup.Recipe(
        pages=size // page_size,
        page_size=page_size,
        zero=zero,
        duplicate=duplicate,
        group_sizes=tuple(group_size or (4,)),
        owners=owners,
        seed=seed,
    )
    kind = cast(Literal["arrow", "raw"], format)
    with progress("generating") as watch:
        answer = gpudedup.generate(recipe, output, format=kind, force=force, progress=watch)
    typer.echo(json.dumps(asdict(answer)))
