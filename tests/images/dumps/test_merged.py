"""Merged dumps of any writer, and damaged ones."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpudedup.compiled.digests import digest_pages
from gpudedup.errors import ImageError
from gpudedup.images.dumps.ipc import blocks, dictionary_parts
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.dumps.merged_writer import MergedWriter
from gpudedup.images.dumps.reader import open_arrow
from gpudedup.images.opening import open_image
from gpudedup.schema import dump_schema

from ..common import holds_together, open_files
from .arrow_files import MAPPINGS, PAGE, batch, contents, plain, rows, with_column
from .test_reader_fuzz import NUMBERS, damage

CODES = [3, 1, 3, 5, 0, 1]


def encoded(
    codes: list[int] | None = None, kind: Any = None, frames: int = 6, n: int = 6
) -> pa.RecordBatch:
    """Return a batch whose column ``content`` is a dictionary of frames."""
    one = batch(0, n)
    pages = contents(0, frames)
    store = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(PAGE), frames, [None, pa.py_buffer(pages)]
    )
    index = pa.array(CODES if codes is None else codes, kind or pa.int32())
    content = pa.DictionaryArray.from_arrays(index, store, safe=False)
    return with_column(one, "content", content, nullable=False)


def ours(path: Path, frames: int = 6, counts: tuple[int, ...] = (4, 2)) -> Path:
    pages = contents(0, frames)
    with MergedWriter(path, force=True) as file:
        file.begin(PAGE, MAPPINGS, frames, {"gpudedup.table": "dump"})
        file.write_frames(pages, digest_pages(pages))
        row = 0
        for n in counts:
            stored = (np.arange(row, row + n) * 5) % max(1, frames)
            columns = rows(row, n)
            columns = type(columns)(
                row, columns.mapping, columns.index, columns.frame, columns.node, columns.flags,
                stored,
            )  # fmt: skip
            file.write_rows(columns)
            row += n
    return path


def table(path: Path) -> pa.Table:
    with open_image(path) as image:
        return pa.Table.from_batches(image.batches(), dump_schema(PAGE))


def decoded(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as source:
        result: list[dict[str, Any]] = pa.ipc.open_file(source).read_all().to_pylist()
    return result


KINDS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("kind", KINDS)
def test_indices_of_every_type(tmp_path: Path, kind: str) -> None:
    path = plain(tmp_path / "m", [encoded(kind=getattr(pa, kind)())])
    with open_image(path) as image:
        assert (image.format, image.pages, image.stored) == ("merged", 6, 6)
    assert table(path).to_pylist() == decoded(path)


def test_dictionaries_in_parts(tmp_path: Path) -> None:
    """Deltas of both dictionaries; the frames of each part are an extent of their own."""
    first, second = encoded([0, 1, 1], frames=3, n=3), encoded([5, 2, 0, 3], frames=6, n=4)
    path = plain(tmp_path / "m", [first, second], emit_dictionary_deltas=True)
    with open_image(path) as image:
        assert [(e.row, e.pages) for e in image.extents] == [(0, 3), (3, 3)]
    assert table(path).to_pylist() == decoded(path)


def test_a_dictionary_that_was_replaced_is_not_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid, match="Dictionary replacement"):
        plain(tmp_path / "m", [encoded([0, 1, 1], frames=3, n=3), encoded()][::-1])


def test_further_columns_and_another_order(tmp_path: Path) -> None:
    one = encoded()
    for name, values in {
        "strings": pa.array(["a", None, "ccc"] * 2),
        "words": pa.array(["a", "b", "a"] * 2).dictionary_encode(),
        "lists": pa.array([[1], [2, 3], None] * 2),
    }.items():
        one = one.append_column(name, values)
    names = ["lists", "content", "words", "frame", "node", "mapping", "strings", "flags", "index"]
    path = plain(tmp_path / "m", [one.select(names), one.select(names)])
    known = ["mapping", "index", "frame", "node", "flags", "content"]
    expected = [{name: row[name] for name in known} for row in decoded(path)]
    assert table(path).to_pylist() == expected


def test_old_formats(tmp_path: Path) -> None:
    for legacy in (False, True):
        path = plain(
            tmp_path / "m",
            [encoded()],
            metadata_version=pa.ipc.MetadataVersion.V4,
            use_legacy_format=legacy,
        )
        assert table(path).to_pylist() == decoded(path)


@pytest.mark.parametrize("counts", [(), (0,), (0, 0, 3), (1, 0, 5, 0), (1,) * 9, (70_000,)])
def test_ours(tmp_path: Path, counts: tuple[int, ...]) -> None:
    path = ours(tmp_path / "m", counts=counts)
    with open_image(path) as image:
        assert isinstance(image, MergedImage)
        assert image.pages == sum(counts)
        assert image.mappings == MAPPINGS
        assert [len(piece) for piece in image.columns()] == [n for n in counts if n]
        for start, stop in ((0, 1), (1, 4), (2, 9), (0, image.pages), (3, 3)):
            pieces = list(image.columns_between(start, min(stop, image.pages)))
            assert sum(map(len, pieces)) == max(0, min(stop, image.pages) - start)
    assert table(path).to_pylist() == decoded(path) if sum(counts) < 100 else True


def test_no_frames(tmp_path: Path) -> None:
    path = ours(tmp_path / "m", frames=0, counts=())
    with open_image(path) as image:
        assert (image.pages, image.stored, image.mappings) == (0, 0, MAPPINGS)
    assert decoded(path) == []


def test_columns_outlive_the_file(tmp_path: Path) -> None:
    with open_image(ours(tmp_path / "m")) as image:
        pass
    (tmp_path / "m").unlink()
    assert [len(c) for c in image.columns()] == [4, 2]


def refused(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught, open_arrow(str(path)) as image:
        list(image.columns())
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    return caught.value


@pytest.mark.parametrize("codes", [[0, 6, 1, 0, 0, 0], [0, -1, 0, 0, 0, 0], [2**31 - 1] * 6])
def test_a_frame_that_is_not_there(tmp_path: Path, codes: list[int]) -> None:
    path = plain(tmp_path / "m", [encoded(), encoded(codes)])
    error = refused(path)
    assert error.reason == "record batch 1: column content: not in the dictionary"
    assert error.offset == blocks("", memoryview(path.read_bytes()))[1].offset
    with (
        open_image(path) as image,
        pytest.raises(ImageError, match="not in the dictionary"),
    ):
        image.read_pages(6, np.empty((6, PAGE), np.uint8))


def test_a_frame_number_beyond_63_bits(tmp_path: Path) -> None:
    path = plain(tmp_path / "m", [encoded([2**64 - 1] * 6, pa.uint64())])
    assert "not in the dictionary" in refused(path).reason


def test_nulls(tmp_path: Path) -> None:
    one = encoded()
    store = one.column("content").dictionary
    for name, values, reason in (
        (
            "content",
            pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 2, 3, 4], pa.int32()), store),
            "record batch 0: column content has nulls",
        ),
        (
            "content",
            pa.DictionaryArray.from_arrays(
                one.column("content").indices,
                pa.array([*store.to_pylist()[:5], None], pa.binary(PAGE)),
            ),
            "dictionary batch 1: column content has nulls",
        ),
        ("index", pa.array([1, None, 3, 4, 5, 6], pa.uint64()), "record batch 0: column index"),
    ):
        path = plain(tmp_path / "m", [with_column(one, name, values)])
        assert refused(path).reason.startswith(reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda values: values[1].update(owner=None), "a mapping has nulls"),
        (lambda values: values[1].update(kind="heap\n"), r"a mapping of kind 'heap\\n', not one"),
    ],
)
def test_a_mapping_that_says_nothing(
    tmp_path: Path, change: Callable[[list[Any]], None], reason: str
) -> None:
    one = encoded()
    old = one.column("mapping")
    values = old.dictionary.to_pylist()
    change(values)
    free = pa.struct([pa.field(f.name, f.type) for f in old.dictionary.type])
    codes = pa.DictionaryArray.from_arrays(old.indices, pa.array(values, free))
    path = plain(tmp_path / "m", [with_column(one, "mapping", codes)])
    with pytest.raises(ImageError, match=reason):
        open_arrow(str(path))


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed(tmp_path: Path, codec: str) -> None:
    path = plain(tmp_path / "m", [encoded()], compression=codec)
    assert "is compressed; a dump is read in place" in refused(path).reason


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.binary(1000)])
def test_a_dictionary_of_something_else(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array(["x" * 1000] * 6).cast(pa.binary()).cast(kind)
    content = pa.DictionaryArray.from_arrays(pa.array(CODES, pa.int32()), values)
    path = plain(tmp_path / "m", [with_column(encoded(), "content", content)])
    assert refused(path).reason.startswith("column content: ")


def test_a_cut_file(tmp_path: Path) -> None:
    """Cut the file at every byte."""
    path = ours(tmp_path / "m", frames=1, counts=(1,))
    whole = path.read_bytes()
    gc.collect()
    before = open_files()
    for size in range(len(whole) - 1, 0, -1):
        os.truncate(path, size)
        with pytest.raises(ImageError, match=f"offset {size}: cut off"):
            open_arrow(str(path))
    gc.collect()
    assert open_files() == before


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = ours(tmp_path / "m", counts=(3, 3))
    with open_image(path) as image:
        columns = image.columns()
        next(columns)
        place = image.offset_of(0)
        os.truncate(path, place)
        with pytest.raises(ImageError, match=f"offset {place}: the file became shorter"):
            next(columns)
        with pytest.raises(ImageError, match=f"offset {place}: the file became shorter"):
            image.read_stored(np.array([0, 3]), np.empty((2, PAGE), np.uint8))


def test_frames_told_larger_than_the_file(tmp_path: Path) -> None:
    path = ours(tmp_path / "m")
    data = bytearray(path.read_bytes())
    part = dictionary_parts("", memoryview(data), "content", PAGE)[0]
    head = data[part.offset : part.first]
    for number in (6, 6 * PAGE):
        for at in range(0, len(head) - 8, 4):
            if int.from_bytes(head[at : at + 8], "little") == number:
                for bad in (1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
                    changed = bytearray(data)
                    place = part.offset + at
                    changed[place : place + 8] = bad.to_bytes(8, "little")
                    check(path, bytes(changed))


@cache
def seeds(folder: Path) -> dict[str, bytes]:
    path = folder / "m"
    made = {"ours": ours(path).read_bytes()}
    made["plain"] = plain(path, [encoded(), encoded()]).read_bytes()
    parts = [encoded([0, 1, 1], frames=3, n=3), encoded([5, 2, 0, 3], n=4)]
    made["parts"] = plain(path, parts, emit_dictionary_deltas=True).read_bytes()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merged")
    (path / "fuzz").touch()
    return path


def telling(data: bytes) -> list[int]:
    """Return the offsets of bytes that are neither in frames nor in the padding before them."""
    kept = set(range(len(data)))
    for piece in (contents(0, 6).tobytes(), contents(0, 3).tobytes(), bytes(200)):
        at = data.find(piece)
        while at >= 0:
            kept -= set(range(at, at + len(piece)))
            at = data.find(piece, at + len(piece))
    return sorted(kept)


@pytest.mark.parametrize("kind", ["ours", "plain", "parts"])
def test_a_flipped_bit_anywhere(folder: Path, kind: str) -> None:
    whole = seeds(folder)[kind]
    # Every byte of our file; a sample of pyarrow's files, which differ from ours in few.
    for at in telling(whole)[:: 1 if kind == "ours" else 5]:
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        check(folder / "fuzz", bytes(data))


@given(data=st.data(), kind=st.sampled_from(["ours", "plain", "parts"]))
@example(data=None, kind="ours")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_merged_dump_or_an_image_error(folder: Path, data: Any, kind: str) -> None:
    made = seeds(folder)
    whole, places = made[kind], telling(made[kind])
    changes = []
    for _ in range(data.draw(st.integers(1, 4)) if data else 0):
        at = data.draw(st.sampled_from(places))
        how = data.draw(st.sampled_from(["flip", "number", "number", "cut", "insert", "splice"]))
        if how == "flip":
            changes.append(("flip", at, 1, bytes([1 << data.draw(st.integers(0, 7))])))
        elif how == "number":
            width = data.draw(st.sampled_from([1, 2, 4, 8]))
            number = data.draw(NUMBERS) & ((1 << 8 * width) - 1)
            piece = number.to_bytes(width, "little")
            changes.append((how, at // width * width, width, piece))
        elif how == "splice":
            other = made[data.draw(st.sampled_from(sorted(made)))]
            begin = data.draw(st.integers(0, len(other) - 1))
            piece = other[begin : begin + data.draw(st.integers(1, 256))]
            changes.append((how, at, data.draw(st.sampled_from([0, len(piece)])), piece))
        elif how == "insert":
            changes.append((how, at, 0, data.draw(st.binary(min_size=1, max_size=64))))
        else:
            changes.append((how, at, data.draw(st.integers(1, 64)), b""))
    check(folder / "fuzz", damage(whole, changes) or b"A")


def check(path: Path, data: bytes) -> None:
    # Not write_bytes: ext4 flushes a file that was emptied first.
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    size = len(data)
    refusal = f"{path}: "
    try:
        with open_arrow(str(path)) as image:
            if isinstance(image, MergedImage):
                stored = 0
                for extent in image.extents:
                    assert extent.row == stored
                    assert 0 <= extent.offset <= extent.offset + extent.pages * PAGE <= size
                    stored += extent.pages
                assert image.stored == stored
                for piece in image.columns():
                    assert piece.stored is not None
                    assert 0 <= piece.stored.min() <= piece.stored.max() < stored
                for one in image.batches():
                    one.validate(full=True)
                list(image.mappings)
            else:
                holds_together(image, size)
    except ImageError as error:
        refusal = str(error)
    assert refusal.startswith(f"{path}: ")
    assert refusal.isprintable()
