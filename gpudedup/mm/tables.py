"""The manager's state as Arrow tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from gpudedup.mm.mapping import Mapping
from gpudedup.mm.memory.memory import Memory
from gpudedup.mm.state.arrays import LEAF_BITS, LEAF_PAGES, Geometry, State
from gpudedup.schema import ALIASES, FRAMES, MANAGER_MAPPINGS, MANAGER_PAGES


def frames_table(memory: Memory) -> pa.Table:
    """Return all frames, of schema :data:`gpudedup.schema.FRAMES`; a copy."""
    return _fields(memory.state, FRAMES, memory.frames_numbered)


def pages_table(memory: Memory) -> pa.Table:
    """Return all pages, of schema :data:`gpudedup.schema.MANAGER_PAGES`; a copy."""
    return _fields(memory.state, MANAGER_PAGES, len(memory.state.frame))


def aliases_table(memory: Memory) -> pa.Table:
    """Return pages that have a frame, of schema :data:`gpudedup.schema.ALIASES`; a copy."""
    s = memory.state
    page = np.flatnonzero(s.frame).astype(np.uint32)
    leaf, frame = page >> LEAF_BITS, s.frame[page]
    index = s.leaf_place[leaf].astype(np.uint64) * LEAF_PAGES + page % LEAF_PAGES
    node = s.chunk_node[frame >> int(s.geometry[Geometry.CHUNK_BITS])]
    columns = [page, s.leaf_mapping[leaf], index, frame, node, s.flags[page]]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=ALIASES)


def mappings_table(memory: Memory, mappings: list[Mapping]) -> pa.Table:
    """Return all mappings, of schema :data:`gpudedup.schema.MANAGER_MAPPINGS`; a copy."""
    rows = [
        {
            "mapping": m.number,
            "name": m.name,
            "kind": m.kind,
            "owner": m.owner,
            "domain": m.domain,
            "node": m.node,
            "pages": m.pages,
            "populated": int(memory.state.populated[m.number]),
        }
        for m in mappings
    ]
    return pa.Table.from_pylist(rows, MANAGER_MAPPINGS)


def _fields(state: State, schema: pa.Schema, rows: int) -> pa.Table:
    arrays = [pa.array(getattr(state, f.name)[:rows].copy(), f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)
