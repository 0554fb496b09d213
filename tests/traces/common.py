"""Traces made by hand, images to replay them on, and a model that shares nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

import gpudedup as gd
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import UNKNOWN_FRAME, Mapping, PageColumns
from gpudedup.schema import OPERATIONS, trace_schema

PAGE = 512
GAMMA, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1

Event = dict[str, Any]

MAPPINGS = [
    ("anon", [1, 1, 2, 0, -1, 3, 1, 2]),
    ("anon", [1, 4, 2, 2, 0, 0]),
    ("file", [5, 5, 1, 1, 2, -1, 6]),
    ("shmem", [2] * 4),
]
FILES = ("file", "shmem")
NODES, DEVICES = 2, 2

COMMON = (*(["read", "write"] * 6), "fork", "merge", "pin", "unpin", *OPERATIONS)

POLICIES = [
    gd.MergePolicy(),
    gd.MergePolicy(kinds=("anon", "file", "shmem"), use_zero_pages=True),
    gd.MergePolicy(kinds=("anon", "file"), max_page_sharing=2, merge_across_nodes=False),
]


def event(operation: str, mapping: int = 0, index: int = 0, count: int = 1, **more: Any) -> Event:
    return {"operation": operation, "mapping": mapping, "index": index, "count": count, **more}


def trace_of(events: Sequence[Event], page_size: int = PAGE) -> pa.Table:
    schema = trace_schema(page_size, {"gpudedup.source": "test"})
    rows = [{name: e.get(name) for name in schema.names} for e in events]
    return pa.Table.from_pylist(rows, schema)


def write_trace(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return path


def write_image(path: Path, mappings: Sequence[tuple[str, Sequence[int]]]) -> Path:
    """Write a dump; a mapping is its kind and the fill byte of each page, -1 for a hole."""
    maps = [
        Mapping(f"p[{at}]", "", kind, f"m{at}", at << 32) for at, (kind, _) in enumerate(mappings)
    ]
    rows = [
        (at, index, fill)
        for at, (_, fills) in enumerate(mappings)
        for index, fill in enumerate(fills)
        if fill >= 0
    ]
    columns = PageColumns(
        0,
        np.array([r[0] for r in rows], np.int32),
        np.array([r[1] for r in rows], np.uint64),
        np.full(len(rows), UNKNOWN_FRAME),
        flags=np.zeros(len(rows), np.uint32),
    )
    pages = np.empty((len(rows), PAGE), np.uint8)
    pages[:] = np.array([r[2] for r in rows], np.uint8)[:, None]
    with DumpWriter(path, PAGE, maps, source="test") as dump:
        dump.write(columns, pages)
    return path


def mixed(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def word(seed: int, index: int) -> int:
    return mixed(seed + (index + 1) * GAMMA & MASK)


def whole(seed: int, index: int) -> bytes:
    words = [mixed(word(seed, index) + k * GAMMA & MASK) for k in range(PAGE // 8)]
    return np.array(words, "<u8").tobytes()


class Model:
    """The bytes of each mapping's pages, in a dict; None for a dropped mapping."""

    def __init__(self, mappings: Sequence[tuple[str, Sequence[int]]]) -> None:
        self.size = [len(fills) for _, fills in mappings]
        for at, (_, fills) in enumerate(mappings):
            # An image's mapping ends with its last page.
            while self.size[at] and fills[self.size[at] - 1] < 0:
                self.size[at] -= 1
        self.kind = [kind for kind, _ in mappings]
        self.held: list[dict[int, bytes] | None] = [
            {i: bytes([fill]) * PAGE for i, fill in enumerate(fills) if fill >= 0}
            for _, fills in mappings
        ]

    def page(self, mapping: int, index: int) -> bytes:
        held = self.held[mapping]
        assert held is not None
        return held.get(index, bytes(PAGE))

    def play(self, events: Sequence[Event]) -> None:
        for e in events:
            self._one(e)

    def _one(self, e: Event) -> None:
        operation, m = e["operation"], e["mapping"]
        held, seed = self.held[m], e.get("seed") or 0
        index = range(e["index"], e["index"] + e["count"])
        if operation in ("write", "device_write", "atomic_add"):
            assert held is not None
            for i in index:
                new = word(seed, i)
                if operation == "atomic_add":
                    new += int.from_bytes(self.page(m, i)[:8], "little")
                held[i] = (new & MASK).to_bytes(8, "little") + self.page(m, i)[8:]
        elif operation in ("file_write", "pin_write"):
            assert held is not None
            held.update({i: whole(seed, i) for i in index})
            self.size[m] = max([self.size[m], *(i + 1 for i in index)])
        elif operation in ("fork", "reflink"):
            assert held is not None
            self.held.append(dict(held))
            self.size.append(self.size[m])
            self.kind.append(self.kind[m])
        elif operation == "drop":
            self.held[m] = None
        elif operation == "truncate":
            assert held is not None
            self.size[m] = e["index"]
            self.held[m] = {i: data for i, data in held.items() if i < e["index"]}
        elif operation == "punch":
            assert held is not None
            for i in index:
                held.pop(i, None)


@st.composite
def traces(draw: st.DrawFn) -> list[Event]:
    """Draw events that can be: the model says what there is."""
    model, events = Model(MAPPINGS), []
    pins: dict[bool, list[Event]] = {True: [], False: []}
    for _ in range(draw(st.integers(0, 40))):
        operation = draw(st.sampled_from(COMMON))
        alive = [at for at, held in enumerate(model.held) if held is not None]
        if operation in ("file_write", "reflink"):
            alive = [at for at in alive if model.kind[at] in FILES]
        if operation == "fork":
            alive = [at for at in alive if model.kind[at] not in FILES]
        if not alive or (operation in ("fork", "reflink") and len(model.held) > 9):
            continue
        new = event(operation, draw(st.sampled_from(alive)), seed=draw(st.integers(0, 3)))
        size = model.size[new["mapping"]]
        if operation in ("file_write", "truncate"):
            new["index"], new["count"] = draw(st.integers(0, 70)), draw(st.integers(0, 2))
        elif operation not in ("fork", "reflink", "drop", "merge"):
            new["index"] = draw(st.integers(0, size))
            new["count"] = min(draw(st.sampled_from([1, 1, 1, 3])), size - new["index"])
        node, device = st.integers(0, NODES - 1), st.integers(0, DEVICES - 1)
        if operation in ("read", "cache"):
            new["node"] = draw(node if operation == "cache" else node | st.none())
        if operation in ("device_read", "device_write", "atomic_add", "acquire_exclusive"):
            new["device"] = draw(device)
        if operation in ("migrate", "replicate"):
            place = draw(st.sampled_from(["node", "device"]))
            new[place] = draw(node if place == "node" else device)
        if operation in ("unpin", "close"):
            held = pins[operation == "unpin"]
            if not held:
                continue
            begun = held.pop(draw(st.integers(0, len(held) - 1)))
            new |= {name: begun[name] for name in ("mapping", "index", "count")}
        if operation in ("pin", "pin_write", "splice"):
            pins[operation != "splice"].append(new)
        events.append(new)
        model.play([new])
    return events
