"""The options of a merge."""

from __future__ import annotations

from typing import Annotated

import typer

Kinds = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,...",
        help="Kinds of memory that may share frames: anon, file, shmem, guest, device, kernel."
        "  [default: anon,guest]",
    ),
]
WithinDomain = Annotated[
    bool, typer.Option("--within-domain", help="Pages of different security domains never share.")
]
WithinNode = Annotated[
    bool, typer.Option("--within-node", help="Pages of different NUMA nodes never share.")
]
MaxPageSharing = Annotated[int, typer.Option(metavar="N", help="Most pages to a frame, as KSM's.")]
UseZeroPages = Annotated[
    bool, typer.Option("--use-zero-pages", help="Pages of zeros need no frame, as KSM's.")
]
