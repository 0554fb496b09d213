"""Tables and files that are no traces are refused with one line; rows are counted over all."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import gpudedup as gd
from gpudedup.errors import TraceError
from gpudedup.schema import OPERATIONS, Operation, trace_schema
from gpudedup.traces.events import as_trace, chunks
from gpudedup.traces.operations import RULES
from gpudedup.traces.replay import replay

from .common import PAGE, event, trace_of, write_image, write_trace

MAPPINGS = [("anon", [1, 2, 3]), ("file", [1, 1])]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "image.arrow", MAPPINGS)


def pieces(table: pa.Table) -> list[Any]:
    return list(as_trace(table).pieces())


def refused(image: Path, table: pa.Table) -> str:
    with pytest.raises(TraceError) as caught:
        replay(image, table, nodes=2, devices=1, device_engine="cpu")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("trace: ")


def test_rows_are_counted_over_batches(image: Path, tmp_path: Path) -> None:
    table = trace_of([event("read")] * 5 + [event("read", 9)])
    path = tmp_path / "trace.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table, max_chunksize=2)
    with pytest.raises(TraceError) as caught:
        replay(image, path)
    assert str(caught.value) == f"{path}: row 5: read: no mapping 9, there are 2"


def test_words_and_nulls(image: Path) -> None:
    table = trace_of([event("read"), event("write")])
    words = pa.array(["read", "rite\n"])
    for column in (words, words.dictionary_encode(), words.cast(pa.large_string())):
        wrong = table.set_column(0, "operation", column).replace_schema_metadata(None)
        assert refused(image, wrong).startswith("row 1: operation 'rite': not one of read, write")
    holed = table.set_column(2, "index", pa.array([1, None], pa.uint64()))
    assert refused(image, holed) == "row 1: column index has nulls"
    for right in (pa.array(["read", "write"]), pa.array(["write", "read"]).dictionary_encode()):
        replay(image, table.set_column(0, "operation", right))


def test_other_tables_are_refused(image: Path, tmp_path: Path) -> None:
    table = trace_of([event("read")])
    assert refused(image, table.drop_columns(["seed"])) == "not a trace: no column seed"
    twice = table.append_column("node", table.column("node"))
    assert refused(image, twice) == "not a trace: several columns node"
    wide = table.set_column(1, "mapping", pa.array([0], pa.int64()))
    assert refused(image, wide) == "column mapping: int64, not int32"
    coded = table.set_column(0, "operation", pa.array([1]))
    assert refused(image, coded) == "column operation: int64, not strings"
    other = table.replace_schema_metadata({"gpudedup.version": "2"})
    assert refused(image, other) == "trace version '2'; this gpudedup reads 1"
    strange = table.replace_schema_metadata({"gpudedup.page_size": "many"})
    assert refused(image, strange) == "metadata says pages of 'many' bytes"
    far = trace_of([event("read")], 4096)
    assert refused(image, far).startswith("pages of 4096 bytes, those of ")
    with pytest.raises(TraceError, match=r"image.arrow: not a trace: no column operation"):
        replay(image, image)
    path = tmp_path / "cut.arrow"
    for content, reason in ((b"", "empty"), (b"ARROW1\0\0" + b"x" * 99, "not a readable Arrow")):
        path.write_bytes(content)
        with pytest.raises(TraceError, match=reason):
            replay(image, path)
    with pytest.raises(TraceError, match="No such file"):
        replay(image, tmp_path / "none.arrow")


@pytest.mark.parametrize(
    "text", ["[]", "3", "-512", '"512"', "null", "5.12e2", "[" * 9999, "9" * 9999]
)
def test_metadata_that_are_no_page_size(image: Path, text: str) -> None:
    table = trace_of([event("read")]).replace_schema_metadata({"gpudedup.page_size": text})
    assert refused(image, table) == f"metadata says pages of {text!r} bytes"


def test_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.arrow", trace_of([event("write", 0, 1)] * 50))
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole)
        trace = as_trace(path)
        os.truncate(path, size)
        with pytest.raises(TraceError, match=re.escape(f"{path}: ")):
            list(trace.pieces())


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_trace(tmp_path / "t.arrow", trace_of([event("write", 0, 1)] * 50))

    def fail(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(TraceError, match=re.escape(f"{path}: Input/output error")):
        as_trace(path)


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_no_crash(image: Path, tmp_path: Path, seed: int) -> None:
    whole = write_trace(tmp_path / "t.arrow", trace_of([event("write", 0, 1)] * 50)).read_bytes()
    rng = np.random.default_rng(seed)
    damaged = bytearray(whole)
    for at in rng.integers(0, len(whole), 8):
        damaged[at] = rng.integers(0, 256)
    path = tmp_path / "damaged.arrow"
    path.write_bytes(damaged[: rng.integers(1, len(whole) + 1)] if seed % 2 else damaged)
    # Some damage is in bytes that no reader uses, or makes another valid trace.
    with suppress(gd.GpudedupError):
        replay(image, path, nodes=1, devices=0)


def test_every_operation_has_a_rule_and_a_place() -> None:
    assert len(RULES) == len(OPERATIONS) == len(Operation)
    assert [OPERATIONS[operation].upper() for operation in Operation] == [
        operation.name for operation in Operation
    ]
    assert trace_schema(PAGE).field("operation").type.index_type == pa.int8()


def test_chunks_cover_all_pages() -> None:
    table = trace_of([event("read", 0, 5, 3, seed=1), event("read", 0, 9, 0), event("read", 0, 2)])
    (events,) = pieces(table)
    for most in (1, 2, 9):
        found = list(chunks(events, most))
        assert max(len(part) for part in found) <= most
        assert np.concatenate([part.index for part in found]).tolist() == [5, 6, 7, 2]
        assert np.concatenate([part.seed for part in found]).tolist() == [1, 1, 1, 0]
    assert list(chunks(events.slice(1, 2), 4)) == list(chunks(events.slice(0, 0), 4)) == []
