"""The options of a merge."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def kinds_option(default: str) -> Any:
    """Return the option for kinds of memory; ``default`` is named in the help."""
    return typer.Option(
        metavar="KIND,...",
        help="Kinds of memory that may share frames: anon, file, shmem, guest, device, kernel."
        f"  [default: {default}]",
    )


Kinds = Annotated[str | None, kinds_option("anon,guest")]
WithinDomain = Annotated[
    bool, typer.Option("--within-domain", help="Pages of different security domains never share.")
]
WithinNode = Annotated[
    bool, typer.Option("--within-node", help="Pages of different NUMA nodes never share.")
]
MaxPageSharing = Annotated[
    int, typer.Option(metavar="N", help="Pages to a merged frame, at most: KSM's max_page_sharing.")
]
UseZeroPages = Annotated[
    bool, typer.Option("--use-zero-pages", help="A merge frees the frames of zero pages: KSM's.")
]
