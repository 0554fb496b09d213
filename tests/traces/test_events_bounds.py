"""Small traces made to take much memory: refused, or read within the limit of docs/limits.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gpudedup.images.dumps import ipc
from gpudedup.images.dumps.flatbuffer import Table
from gpudedup.schema import trace_schema
from gpudedup.traces.events import as_trace

from ..bounded import bounded
from .common import PAGE, event, trace_of, write_image, write_trace


def read(path: Path) -> str:
    """Read a trace in a child; check that it grew no more than is stated."""
    before = "from gpudedup.errors import TraceError\nfrom gpudedup.traces.events import as_trace"
    run = "sum(len(events) for events in as_trace(path).pieces())"
    said, grown = bounded(path, before, run, "TraceError")
    assert grown < ipc.UNPACKED_BYTES + ipc.UNPACKED_TIMES * path.stat().st_size
    return said.replace(f"{path}: ", "")


def equal_events(n: int, **columns: Any) -> pa.RecordBatch:
    """Return a batch of n events, all fields 0 but those given."""
    schema = trace_schema(PAGE)
    made = {
        f.name: pa.array(np.zeros(n, f.type.to_pandas_dtype())) for f in schema if f.name[0] != "o"
    }
    words = pa.DictionaryArray.from_arrays(np.zeros(n, np.int8), pa.array(["read"]))
    made = {"operation": words, **made, **columns}
    fields = [pa.field(name, made[name].type) for name in schema.names]
    return pa.RecordBatch.from_arrays(
        [made[name] for name in schema.names], schema=pa.schema(fields)
    )


def write(path: Path, *batches: pa.RecordBatch, **options: Any) -> Path:
    how = pa.ipc.IpcWriteOptions(**options)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, batches[0].schema, options=how) as file,
    ):
        for one in batches:
            file.write_batch(one)
    return path


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_trace(tmp_path: Path, codec: str) -> None:
    """Compression is allowed; what unpacks to thousands of times its size is not unpacked."""
    fair = write(tmp_path / "fair", equal_events(1_000_000), compression=codec)
    assert read(fair) == "done: 1000000"
    many = write(tmp_path / "many", *[equal_events(4_000_000)] * 10, compression="zstd")
    assert many.stat().st_size < 1 << 20
    assert read(many).startswith("refused: unpacked it has ")


def test_a_compressed_dictionary(tmp_path: Path) -> None:
    words = pa.array(["read", "\0" * (600 << 20)])
    codes = pa.DictionaryArray.from_arrays(np.zeros(3, np.int8), words)
    path = write(tmp_path / "trace", equal_events(3, operation=codes), compression="zstd")
    assert path.stat().st_size < 1 << 20
    assert read(path).startswith("refused: unpacked it has ")


@pytest.mark.parametrize("stated", [-2, 1 << 62, (1 << 63) - 1])
def test_a_length_that_is_made_up(tmp_path: Path, stated: int) -> None:
    """The first eight bytes of each compressed buffer say to how many it unpacks."""
    path = write(tmp_path / "trace", equal_events(50_000), compression="zstd")
    data = bytearray(path.read_bytes())
    at = data.rindex((8 * 50_000).to_bytes(8, "little"))
    data[at : at + 8] = stated.to_bytes(8, "little", signed=True)
    path.write_bytes(data)
    said = read(path)
    assert said.startswith("refused: unpacked it has " if stated > 0 else "refused: a compressed")


def test_one_batch_that_is_listed_again_and_again(tmp_path: Path) -> None:
    path = write(tmp_path / "trace", equal_events(1_000), *[equal_events(1)] * 500)
    data = memoryview(path.read_bytes())
    start, footer = ipc._footer(str(path), data)
    dictionaries, batches = (list(ipc._places(Table(footer), which)) for which in (2, 3))
    changed = ipc.with_places(bytes(footer), dictionaries, batches[:1] * len(batches))
    path.write_bytes(bytes(data[:start]) + changed + bytes(data[start + len(footer) :]))
    assert read(path) == "refused: the footer puts record batch 1 where 0 lies"


def test_empty_batches(tmp_path: Path) -> None:
    none, two = equal_events(0), equal_events(2)
    path = write(tmp_path / "trace", *[none] * 20_000, two, *[none] * 20_000, two)
    assert read(path) == "done: 4"
    assert [events.row for events in as_trace(path).pieces()] == [0, 2]


def test_many_words_and_many_batches(tmp_path: Path) -> None:
    """Only the words that a batch uses are looked at."""
    words = pa.array(["read", *(f"no word {n}" for n in range(20_000)), "write"])
    codes = pa.DictionaryArray.from_arrays(np.array([20_001, 0, 0], np.int16), words)
    path = write(tmp_path / "trace", *[equal_events(3, operation=codes)] * 50)
    assert read(path) == "done: 150"
    assert next(as_trace(path).pieces()).operation.tolist() == [1, 0, 0]


@pytest.mark.parametrize("operation", ["splice", "pin", "pin_write", "unpin", "acquire_exclusive"])
def test_a_mapping_made_long_and_held(tmp_path: Path, operation: str) -> None:
    events = [event("truncate", 0, 1 << 32, 0), event(operation, 0, 0, (1 << 32) - 1)]
    path = write_trace(tmp_path / "trace", trace_of(events))
    image = write_image(tmp_path / "image", [("anon", [1, 2])])
    before = f"""
from gpudedup.errors import GpudedupError
from gpudedup.traces.replay import replay
replay({str(image)!r}, {str(image)!r} + ".short")"""
    write_trace(tmp_path / "image.short", trace_of([event("truncate", 0, 9, 0), event("pin")]))
    said, grown = bounded(path, before, f"replay({str(image)!r}, path).events", "GpudedupError")
    assert said == (
        f"refused: {path}: row 1: {operation}: {(1 << 32) - 1} pages at one time: at most "
        f"{1 << 24} can be held"
    )
    assert grown < ipc.UNPACKED_BYTES
