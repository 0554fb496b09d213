"""``gpudedup trace``: its commands ``generate``, ``record`` and ``info``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gpudedup.cli.common import Force, finish, progress
from gpudedup.traces.mixes import MIXES

app = typer.Typer(
    help="Make traces of events on pages, generated or recorded.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MIXES_HELP = "\n\n".join(
    f"{name}, on {' and '.join(mix.kinds)} memory: {mix.about}." for name, mix in MIXES.items()
)


@app.command(epilog=f"Mixes, in shares of the events:\n\n{MIXES_HELP}")
def generate(
    output: Annotated[str, typer.Option("--output", "-o", metavar="TRACE", help="File to write.")],
    image: Annotated[str, typer.Option(metavar="IMAGE", help="Image whose pages events touch.")],
    mix: Annotated[str, typer.Option(metavar="MIX", help="One of the mixes below.")],
    events: Annotated[int, typer.Option(metavar="N", help="Events of the trace.")],
    seed: Annotated[int, typer.Option(metavar="N", help="Other seeds make other traces.")] = 0,
    nodes: Annotated[int, typer.Option(metavar="N", help="NUMA nodes that loads come from.")] = 2,
    devices: Annotated[int, typer.Option(metavar="N", help="Devices that act.")] = 1,
    skew: Annotated[
        int,
        typer.Option(
            metavar="K",
            help="A share x^(1/K) of the accesses goes to the hottest x of the pages; 1: evenly.",
        ),
    ] = 4,
    span: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Pages of an event, at most; loads, stores and file writes of the host have one.",
        ),
    ] = 16,
    burst: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Events of one operation on one mapping in a row."
            "  [default: 1, device-atomics 64]",
        ),
    ] = None,
    children: Annotated[int, typer.Option(metavar="N", help="Forks alive, at most.")] = 16,
    merge_every: Annotated[
        int, typer.Option(metavar="N", help="Events from one merge to the next; 0: none.")
    ] = 0,
    force: Force = False,
) -> None:
    """Make a trace of a stated mix of events for an image.

    Which page an event touches is drawn from those that the image has. Equal arguments make equal
    traces.
    """
    import gpudedup
    from gpudedup.report.replay import summarised
    from gpudedup.traces.summary import summary

    wanted = gpudedup.Mix(
        mix, events, seed, nodes, devices, skew, span, burst, children, merge_every
    )
    with progress("generating") as watch:
        gpudedup.generate_trace(image, output, wanted, force=force, progress=watch)
    typer.echo(summarised(output, summary(output)), nl=False)


@app.command()
def record(
    pid: Annotated[int, typer.Option("--pid", "-p", metavar="PID", help="A process.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="TRACE", help="File to write.")],
    image: Annotated[
        str | None,
        typer.Option(
            metavar="DUMP",
            help="The capture, to be written.  [default: t.image.arrow for a TRACE t.arrow]",
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="From one look to the next, 0.001 or more.")
    ] = 0.1,
    duration: Annotated[
        float, typer.Option(metavar="SECONDS", help="To record, unless the process ends.")
    ] = 5.0,
    method: Annotated[
        str,
        typer.Option(
            metavar="auto|soft-dirty|write-protect",
            help="How writes are seen; auto: write-protect, or else soft-dirty.",
        ),
    ] = "auto",
    force: Force = False,
) -> None:
    """Record which pages a running process writes.

    The process is captured first, and held still meanwhile. From then on its private memory is
    watched: the trace says which pages were written between two looks, not what was written. Memory
    that it maps later is not watched. Replay the trace on the capture: gpudedup replay DUMP TRACE.

    write-protect (Linux 6.7 or later, x86-64) makes the process open a userfaultfd, by ptrace, and
    loses nothing; soft-dirty needs a kernel that keeps these bits. If neither works: code 4.
    """
    import gpudedup
    from gpudedup.report.replay import recorded

    with progress("recording") as watch:
        done = gpudedup.record_trace(
            pid, output, image=image, interval=interval, duration=duration, method=method,
            force=force, progress=watch,
        )  # fmt: skip
    typer.echo(recorded(output, done), nl=False)
    finish(done.losses, done.notes)


@app.command()
def info(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="An Arrow file of events.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count the events of a trace, and the pages they touch."""
    from gpudedup.report.replay import summarised
    from gpudedup.traces.summary import summary

    found = summary(trace)
    if as_json:
        typer.echo(json.dumps({"schema_version": 1, "path": trace, **asdict(found)}))
    else:
        typer.echo(summarised(trace, found), nl=False)
