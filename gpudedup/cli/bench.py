"""``gpudedup bench``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated

import typer

from gpudedup.cli.common import Force, Threads, byte_count, progress


def bench(
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Measure only the CPU and the memory manager.")
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Measure only the GPU; code 4 if none can be used.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer rounds of fewer pages: some 15 seconds.")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            parser=byte_count,
            metavar="SIZE",
            help="Bytes of pages; twice as many of memory are used.  [default: 2G; quick: 512M;"
            " at most a quarter of the free memory]",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rounds of all candidates.  [default: 7; quick: 3]"),
    ] = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="RESULT.json", help="Write the JSON object to a file too."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Measure how fast this machine finds equal pages.

    Scans of pages with a known answer, on the CPU and on GPU 0, beside merely reading and copying
    as many bytes; the memory manager's loads, stores that break COW, and merging. Results are
    checked before they are timed; a wrong one ends with code 1. Says what was not measured, and
    why.
    """
    import gpudedup
    from gpudedup.report.benchmark import benchmarked
    from gpudedup.report.files import json_file
    from gpudedup.versions import versions

    with (
        json_file(output, force=force) if output else nullcontext() as write,
        progress("measuring") as watch,
    ):
        done = gpudedup.benchmark(
            cpu=cpu or not gpu,
            gpu=gpu or (False if cpu else None),
            quick=quick,
            size=size,
            rounds=rounds,
            threads=threads,
            progress=watch,
        )
        used = versions()
        record = {**done.as_dict(), "versions": used}
        if write:
            write(record)
    typer.echo(json.dumps(record) if as_json else benchmarked(done, used), nl=as_json)
