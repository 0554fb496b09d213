"""``gpudedup merge``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gpudedup.cli.common import Backend, Force, Format, PageSize, Threads, finish, progress
from gpudedup.cli.policy import WithinDomain, WithinNode, kinds_option


def merge(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE", help="May be merged dumps, too.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="MERGED", help="File to write.")],
    kinds: Annotated[str | None, kinds_option("all")] = None,
    within_domain: WithinDomain = False,
    within_node: WithinNode = False,
    max_page_sharing: Annotated[
        int | None, typer.Option(metavar="N", help="Pages to a frame, 2 or more.  [default: any]")
    ] = None,
    zero_pages: Annotated[
        bool,
        typer.Option(
            "--zero-pages/--no-zero-pages",
            help="All zero pages share one frame, whatever the options above; or as these allow.",
        ),
    ] = True,
    backend: Backend = "auto",
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    format: Format = None,
    page_size: PageSize = None,
    force: Force = False,
) -> None:
    """Write images to one file in which equal pages are kept once.

    This merged dump is the same table as a dump, for any Arrow reader; every command here reads it,
    and restore gives the originals back. Pages that may not share keep a frame of their own. A
    merged dump among the inputs keeps its frames; only new ones are added.
    """
    import gpudedup
    from gpudedup.merged.merging import NO_LIMIT
    from gpudedup.mm.policy import MergePolicy
    from gpudedup.report.merged import merged, merged_record
    from gpudedup.schema import KINDS

    policy = MergePolicy(
        kinds=KINDS if kinds is None else tuple(kinds.split(",")),
        within_domain=within_domain,
        max_page_sharing=NO_LIMIT if max_page_sharing is None else max_page_sharing,
        merge_across_nodes=not within_node,
        use_zero_pages=zero_pages,
    )
    with progress("merging") as watch:
        done = gpudedup.merge_images(
            inputs,
            output,
            policy=policy,
            backend=backend,
            threads=threads,
            format=format,
            page_size=page_size,
            force=force,
            progress=watch,
        )
    if as_json:
        typer.echo(json.dumps(merged_record(output, done)))
    else:
        typer.echo(merged(output, done), nl=False)
    finish(done.losses, done.notes)
