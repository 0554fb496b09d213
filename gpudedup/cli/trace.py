"""``gpudedup trace``: its commands ``generate``, ``record`` and ``info``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from gpudedup.cli.common import Force, finish, progress
from gpudedup.traces.mixes import MIXES

app = typer.Typer(
    help="Make traces of what happens to pages: to order, or from a running process.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MIXES_HELP = "\n\n".join(
    f"{name}, on {' and '.join(mix.kinds)} memory: {mix.about}." for name, mix in MIXES.items()
)


@app.command(epilog=f"Mixes, in shares of the events:\n\n{MIXES_HELP}")
def generate(
    output: Annotated[str, typer.Option("--output", "-o", metavar="TRACE")],
    image: Annotated[str, typer.Option(metavar="IMAGE", help="Whose pages it touches.")],
    mix: Annotated[str, typer.Option(metavar="MIX", help="One of those below.")],
    events: Annotated[int, typer.Option(metavar="N", help="How many.")],
    seed: Annotated[int, typer.Option(metavar="N")] = 0,
    nodes: Annotated[int, typer.Option(metavar="N", help="That loads come from.")] = 2,
    devices: Annotated[int, typer.Option(metavar="N", help="That take part.")] = 1,
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
            help="Most pages of an event that is no load, store or file write of the host.",
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
    children: Annotated[int, typer.Option(metavar="N", help="Most forks alive.")] = 16,
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
    output: Annotated[str, typer.Option("--output", "-o", metavar="TRACE")],
    image: Annotated[
        str | None,
        typer.Option(
            metavar="DUMP",
            help="Where the capture goes.  [default: TRACE, with .image.arrow]",
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="From one look to the next.")
    ] = 0.1,
    duration: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long, unless the process ends.")
    ] = 5.0,
    method: Annotated[str, typer.Option(metavar="auto|soft-dirty|write-protect")] = "auto",
    force: Force = False,
) -> None:
    """Record which pages a running process writes, and capture it first.

    The process is held still during the capture. From then on its private memory is watched: that a
    page was written between two looks is known, not what. Memory that it maps later is not seen.
    Replay the trace on the capture: gpudedup replay DUMP TRACE.

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
    trace: Annotated[str, typer.Argument(metavar="TRACE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is in a trace."""
    from gpudedup.report.replay import summarised
    from gpudedup.traces.summary import summary

    found = summary(trace)
    if as_json:
        typer.echo(json.dumps({"schema_version": 1, "path": trace, **asdict(found)}))
    else:
        typer.echo(summarised(trace, found), nl=False)
