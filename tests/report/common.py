"""Small results made by hand, whose text is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pyarrow as pa

from gpudedup.mm.counters import Counters
from gpudedup.mm.policy import MergeReport
from gpudedup.schema import CAUSES, SAMPLES
from gpudedup.traces.replay import STAGES, Replay

PAGE = 4096

NOISE = "\x1b[31m\n\r\t\x00\u202e"
"""Characters that a terminal must not be sent."""

COUNTERS = Counters(**dict.fromkeys((f.name for f in fields(Counters)), 0))


def table(schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return rows as a table; what they do not name is 0, or null where it may be."""
    filled = [{f.name: None if f.nullable else 0 for f in schema} | row for row in rows]
    return pa.Table.from_pylist(filled, schema)


MERGED = MergeReport(
    pages=1000, frames=900, merged=300, zeroed=2, frames_freed=256, written=0, pinned=0,
    on_device=0, unequal=0, written_back=0, counters=COUNTERS,
)  # fmt: skip


def replay(
    *,
    causes: Sequence[dict[str, Any]] = ({"operation": "read", "events": 1, "pages": 1},),
    samples: Sequence[dict[str, Any]] = ({"bytes": PAGE, "unshared_bytes": PAGE},) * 2,
    **changes: Any,
) -> Replay:
    """Return a replay of one event, but for what is said otherwise."""
    done = Replay(
        trace="t.arrow", image="i.core", page_size=PAGE, mappings=1, nodes=1, devices=(), events=1,
        merged=None, causes=table(CAUSES, causes), samples=table(SAMPLES, samples),
        counters=COUNTERS, digest="0f" * 16, verified=False, timings=dict.fromkeys(STAGES, 0.0),
    )  # fmt: skip
    return replace(done, **changes)
