"""``gpudedup replay``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated

import typer

from gpudedup.cli.common import Force, progress
from gpudedup.cli.policy import Kinds, MaxPageSharing, UseZeroPages, WithinDomain, WithinNode


def replay(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Whose pages the events touch.")],
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="An Arrow file of events.")],
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Merge before the first event.")
    ] = True,
    kinds: Kinds = None,
    within_domain: WithinDomain = False,
    within_node: WithinNode = False,
    max_page_sharing: MaxPageSharing = 256,
    use_zero_pages: UseZeroPages = False,
    nodes: Annotated[
        int | None,
        typer.Option(metavar="N", help="NUMA nodes.  [default: as many as image and trace name]"),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(metavar="N", help="Devices that act.  [default: as many as the trace names]"),
    ] = None,
    device_engine: Annotated[
        str,
        typer.Option(
            metavar="auto|cuda|cpu",
            help="cuda: GPUs; cpu: host memory in their place; auto: GPUs if there are as many.",
        ),
    ] = "auto",
    samples: Annotated[int, typer.Option(metavar="N", help="Rows of memory over time.")] = 200,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Run the events also on memory that is never merged; all contents must be equal.",
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="SAMPLES.arrow|.parquet",
            help="Write memory over time, as a table.",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="PLOT.svg|.png|.html", help="Draw memory over time; needs matplotlib."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    force: Force = False,
) -> None:
    """Run a trace's events on the memory of an image, merged first.

    Says what each kind of event broke, copied, invalidated and revoked, and how much memory was in
    use over time. A trace that cannot be read, or does not fit the image, ends with code 1, and the
    message names its row; with --verify contents that differ end with code 1, too.
    """
    import gpudedup
    from gpudedup.report.files import table_file
    from gpudedup.report.plot import plot_file
    from gpudedup.report.replay import replayed

    policy = gpudedup.MergePolicy(
        kinds=("anon", "guest") if kinds is None else tuple(kinds.split(",")),
        within_domain=within_domain,
        max_page_sharing=max_page_sharing,
        merge_across_nodes=not within_node,
        use_zero_pages=use_zero_pages,
    )
    with (
        table_file(output, force=force) if output else nullcontext() as write,
        plot_file(plot, force=force) if plot else nullcontext() as draw,
        progress("replaying") as watch,
    ):
        done = gpudedup.replay(
            image,
            trace,
            policy=policy,
            merge=merge,
            nodes=nodes,
            devices=devices,
            device_engine=device_engine,
            samples=samples,
            verify=verify,
            progress=watch,
        )
        if write:
            write(done.samples)
        if draw:
            draw(done)
    typer.echo(json.dumps(done.as_dict()) if as_json else replayed(done), nl=as_json)
