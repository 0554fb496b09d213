"""Arrow files that are no dump, or a damaged one: an ImageError of one line."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gpudedup.errors import ImageError, UsageError
from gpudedup.images.dumps.ipc import blocks
from gpudedup.images.dumps.reader import open_arrow
from gpudedup.images.opening import open_image

from ..common import open_files
from .arrow_files import MAPPINGS, PAGE, batch, opened, ours, plain, with_column


def refused(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught, opened(path) as image:
        list(image.columns())
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    return caught.value


def offset_of(path: Path, number: int) -> int:
    """Return where a record batch begins."""
    return blocks("", memoryview(path.read_bytes()))[number].offset


def with_nulls(name: str) -> pa.RecordBatch:
    one = batch(3, 3)
    old = one.column(name)
    if name == "mapping":
        codes = pa.array([0, None, 1], pa.int32())
        return with_column(one, name, pa.DictionaryArray.from_arrays(codes, old.dictionary))
    return with_column(one, name, pa.array([old[0], None, old[2]], old.type))


@pytest.mark.parametrize("name", ["mapping", "index", "flags", "content"])
def test_nulls(tmp_path: Path, name: str) -> None:
    one = batch(0, 3)
    first = with_column(one, name, one.column(name))
    path = plain(tmp_path / "dump", [first, with_nulls(name)])
    error = refused(path)
    assert error.reason == f"record batch 1: column {name} has nulls"
    assert error.offset == offset_of(path, 1)


WRONG: dict[str, pa.Array] = {
    "mapping": pa.array(["a", "b", "c"]).dictionary_encode(),
    "index": pa.array([1, 2, 3], pa.int64()),
    "frame": pa.array([1.0, 2.0, 3.0]),
    "node": pa.array([0, 0, 0], pa.uint16()),
    "flags": pa.array([0, 0, 0], pa.uint64()),
    "content": pa.array([b"a", b"b", b"c"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_column_of_another_type(tmp_path: Path, name: str) -> None:
    plain(tmp_path / "dump", [with_column(batch(0, 3), name, WRONG[name])])
    error = refused(tmp_path / "dump")
    assert error.reason.startswith(f"column {name}: {WRONG[name].type}, not ")


@pytest.mark.parametrize("name", WRONG)
def test_a_column_is_missing(tmp_path: Path, name: str) -> None:
    one = batch(0, 3)
    plain(tmp_path / "dump", [one.drop_columns(name)])
    reason = f"no column {name}" if name != "content" else "with columns mapping, index, frame"
    assert reason in refused(tmp_path / "dump").reason


def test_a_column_occurs_twice(tmp_path: Path) -> None:
    for name in ("flags", "content", "other"):
        one = batch(0, 3)
        twice = pa.RecordBatch.from_arrays(
            [*one.columns, one.column("index"), one.column("index")],
            names=[*one.schema.names, name, name],
        )
        plain(tmp_path / "dump", [twice])
        assert refused(tmp_path / "dump").reason == f"not a dump: several columns named {name}"


@pytest.mark.parametrize("width", [0, 1, 256, 1000, 4095, 4 << 20])
def test_a_page_size_that_is_none(tmp_path: Path, width: int) -> None:
    pages = pa.array([bytes(width)] * 3, pa.binary(width))
    plain(tmp_path / "dump", [with_column(batch(0, 3), "content", pages)])
    assert f"column content: page size {width}: " in refused(tmp_path / "dump").reason


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed(tmp_path: Path, codec: str) -> None:
    path = plain(tmp_path / "dump", [batch(0, 3)], compression=codec)
    error = refused(path)
    assert error.reason == "record batch 0 is compressed; a dump is read in place"
    assert error.offset == offset_of(path, 0)


def test_compressed_pages_are_never_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small compressed file may hold more pages than fit into memory."""
    pages = pa.array([bytes(1 << 20)] * 64, pa.binary(1 << 20))
    one = batch(0, 64, 1 << 20).slice(0, 64)
    plain(tmp_path / "dump", [with_column(one, "content", pages)], compression="zstd")
    assert (tmp_path / "dump").stat().st_size < 1 << 16
    before = pa.total_allocated_bytes()
    with pytest.raises(ImageError, match="compressed"):
        open_arrow(str(tmp_path / "dump"))
    assert pa.total_allocated_bytes() - before < 1 << 20


METADATA: dict[str, tuple[dict[str | bytes, str | bytes], str]] = {
    "version": ({"gpudedup.version": "2"}, "dump version '2'; this gpudedup reads 1"),
    "no version": ({"gpudedup.version": "\x1b[2J"}, r"dump version '\\x1b\[2J'"),
    "page size": ({"gpudedup.page_size": "4096"}, "pages of '4096' bytes, content has 512"),
    "no text": ({b"gpudedup.source": b"\xff"}, "metadata is not UTF-8"),
    "no JSON": ({"gpudedup.absent": "{"}, "gpudedup.absent: not counts"),
    "a list": ({"gpudedup.absent": "[1]"}, "gpudedup.absent: not counts"),
    "too deep": ({"gpudedup.absent": "[" * 100_000}, "gpudedup.absent: not counts"),
    "negative": ({"gpudedup.absent": '{"holes": -1}'}, "gpudedup.absent: not counts"),
    "infinite": ({"gpudedup.absent": '{"holes": 1e999}'}, "gpudedup.absent: not counts"),
    "huge": ({"gpudedup.absent": '{"holes": 9223372036854775808}'}, "gpudedup.absent: not counts"),
    "a word": ({"gpudedup.absent": '{"holes": "1"}'}, "gpudedup.absent: not counts"),
    "unknown": ({"gpudedup.absent": '{"lost": 1}'}, "gpudedup.absent: not counts"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_contradicts(tmp_path: Path, case: str) -> None:
    metadata, reason = METADATA[case]
    plain(tmp_path / "dump", [batch(0, 3)], metadata=metadata)
    with pytest.raises(ImageError, match=reason):
        open_arrow(str(tmp_path / "dump"))


def test_names_from_the_file_stay_on_one_line(tmp_path: Path) -> None:
    other = pa.record_batch({"a\nb\x1b[31m": [1], "c": [2]})
    plain(tmp_path / "dump", [other])
    assert r"columns a b\x1b[31m, c" in refused(tmp_path / "dump").reason


@pytest.mark.parametrize("codes", [[0, 2, 1], [0, -1, 1], [2**31 - 1, 0, 0]])
def test_a_mapping_that_is_not_there(tmp_path: Path, codes: list[int]) -> None:
    one = batch(0, 3)
    dictionary = one.column("mapping").dictionary
    wrong = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), dictionary, safe=False)
    path = plain(tmp_path / "dump", [one, with_column(one, "mapping", wrong, nullable=False)])
    error = refused(path)
    assert error.reason == "record batch 1: column mapping: not in the dictionary"
    assert error.offset == offset_of(path, 1)


def edit_mapping(change: Callable[[list[Any]], None]) -> pa.RecordBatch:
    one = batch(0, 2)
    old = one.column("mapping")
    values = old.dictionary.to_pylist()
    change(values)
    free = pa.struct([pa.field(f.name, f.type) for f in old.dictionary.type])
    codes = pa.DictionaryArray.from_arrays(old.indices, pa.array(values, free))
    return with_column(one, "mapping", codes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda values: values[1].update(owner=None), "mapping 1 has nulls"),
        (lambda values: values.__setitem__(0, None), "mapping 0 has nulls"),
        (lambda values: values[1].update(kind="heap\n"), r"mapping 1: kind 'heap\\n', not one of"),
    ],
)
def test_a_mapping_that_says_nothing(
    tmp_path: Path, change: Callable[[list[Any]], None], reason: str
) -> None:
    plain(tmp_path / "dump", [edit_mapping(change)])
    with pytest.raises(ImageError, match=reason):
        open_arrow(str(tmp_path / "dump"))


def test_a_cut_file(tmp_path: Path) -> None:
    """Cut the file at every byte."""
    whole = plain(tmp_path / "whole", [batch(0, 1)]).read_bytes()
    path = tmp_path / "dump"
    path.write_bytes(whole)
    gc.collect()
    before = open_files()
    for size in range(len(whole) - 1, 0, -1):
        os.truncate(path, size)
        with pytest.raises(ImageError, match=f"offset {size}: cut off"):
            open_arrow(str(path))
    os.truncate(path, 0)
    with pytest.raises(ImageError, match="offset 0: empty file"):
        open_arrow(str(path))
    gc.collect()
    assert open_files() == before


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    ours(path, (3, 3))
    with opened(path) as image:
        columns = image.columns()
        next(columns)
        place = image.offset_of(4)
        os.truncate(path, place)
        with pytest.raises(ImageError, match=f"offset {place}: the file became shorter"):
            next(columns)
        with pytest.raises(ImageError, match=f"offset {place}: the file became shorter"):
            image.read_pages(3, np.empty((3, PAGE), np.uint8))


def test_batches_that_share_their_bytes(tmp_path: Path) -> None:
    """A footer that lists one batch again and again would mean endless work from a small file."""
    path = plain(tmp_path / "dump", [batch(0, 40), *(batch(n, 1) for n in range(40, 60))])
    data = bytearray(path.read_bytes())
    # A block in the footer: offset, length of the message, length of the body; 24 bytes.
    places = [data.rindex(b.offset.to_bytes(8, "little")) for b in blocks("", memoryview(data))]
    for at in places[1:]:
        data[at : at + 24] = data[places[0] : places[0] + 24]
    path.write_bytes(data)
    assert refused(path).reason == "the footer puts record batch 1 where 0 lies"


def test_not_a_dump_at_all(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    for content, reason in (
        (b"ARROW1\0\0" + bytes(100) + b"ARROW1", "offset"),
        (b"ARROW1\0\0" + b"\xff" * 100 + b"ARROW1", "larger than the file"),
        (b"ARROW1\0\0ARROW1", "cut off"),
        (b"ARROW1\0\0" + bytes(4) + b"ARROW1", "footer"),
    ):
        path.write_bytes(content)
        assert reason in str(refused(path))


def test_another_page_size_than_asked_for(tmp_path: Path) -> None:
    ours(tmp_path / "dump", (2,))
    with pytest.raises(UsageError, match="page size is 512, not 4096"):
        open_image(tmp_path / "dump", page_size=4096)
    with open_image(tmp_path / "dump", page_size=PAGE) as image:
        assert image.mappings == MAPPINGS
