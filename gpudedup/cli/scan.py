"""``gpudedup scan``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated

import typer

from gpudedup.cli.common import Force, Format, PageSize, byte_count, finish, numbers, progress


def scan(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Taken together.")],
    backend: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Of the host.  [default: all cores]")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="N,N...", help="GPUs, as CUDA counts them.  [default: the first]"),
    ] = None,
    device_memory: Annotated[
        int | None,
        typer.Option(
            parser=byte_count,
            metavar="SIZE",
            help="Most to use of each GPU.  [default: nine tenths of what is free]",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Trust the digest, do not compare bytes; say how safe that is.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="RESULT.arrow|.parquet",
            help="Write the page table, and the shared contents to RESULT.contents.*.",
        ),
    ] = None,
    format: Format = None,
    page_size: PageSize = None,
    force: Force = False,
) -> None:
    """Find equal pages in images of memory.

    An image is a dump, an ELF core or a raw file; several are one population. Says how much is
    zero, how much could be shared, and where.

    Works on a GPU if there is one, on the CPU if not, and says which.
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
