"""``gpudedup info``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say which engines can be used here, and versions."""
    from gpudedup.engines.select import engines
    from gpudedup.report.text import environment
    from gpudedup.versions import versions

    found, used = engines(), versions()
    if as_json:
        record = {
            "schema_version": 1,
            "versions": used,
            "engines": [asdict(engine) for engine in found],
        }
        typer.echo(json.dumps(record))
    else:
        typer.echo(environment(found, used), nl=False)
