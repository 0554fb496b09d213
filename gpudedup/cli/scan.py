"""``gpudedup scan``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated

import typer

from gpudedup.cli.common import (
    Backend,
    Force,
    Format,
    PageSize,
    Threads,
    byte_count,
    finish,
    numbers,
    progress,
)


def scan(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Several are one population.")
    ],
    backend: Backend = "auto",
    threads: Threads = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="N,N...", help="GPUs, by CUDA's numbers.  [default: 0]"),
    ] = None,
    device_memory: Annotated[
        int | None,
        typer.Option(
            parser=byte_count,
            metavar="SIZE",
            help="Bytes to use of each GPU, at most.  [default: nine tenths of the free ones]",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare equal pages byte by byte; or trust their digests and say how safe it is.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="RESULT.arrow|.parquet",
            help="Write a row for each page, and the shared contents to RESULT.contents.*.",
        ),
    ] = None,
    format: Format = None,
    page_size: PageSize = None,
    force: Force = False,
) -> None:
    """Find equal pages in images of memory.

    An image is a dump, a merged dump, an ELF core or a raw file. Says how much is zero, how much
    could be shared, and where; and whether a GPU or the CPU compared.
    """
    import gpudedup
    from gpudedup.report.files import result_files
    from gpudedup.report.text import text

    with (
        result_files(output, force=force) if output else nullcontext() as write,
        progress("scanning") as watch,
    ):
        result = gpudedup.scan(
            inputs,
            backend=backend,
            threads=threads,
            devices=None if devices is None else numbers(devices),
            device_memory=device_memory,
            verify=verify,
            format=format,
            page_size=page_size,
            progress=watch,
        )
        if write:
            write(result)
    typer.echo(json.dumps(result.as_dict()) if as_json else text(result), nl=as_json)
    finish(result.losses, result.notes)
