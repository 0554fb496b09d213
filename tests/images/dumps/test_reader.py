"""Dumps of any writer, and other readers of our dumps."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pytest

from gpudedup.errors import ImageError
from gpudedup.images.dumps.batches import mapping_dictionary, record_batch
from gpudedup.images.dumps.flatbuffer import Table
from gpudedup.images.dumps.ipc import blocks
from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, Mapping
from gpudedup.scanning.scan import scan
from gpudedup.scanning.synthetic import Recipe, generate

from .arrow_files import (
    MAPPINGS,
    PAGE,
    batch,
    contents,
    opened,
    ours,
    plain,
    rows,
    table,
    with_column,
)

SIZES = [512 << n for n in range(13)]


@pytest.mark.parametrize("page_size", SIZES)
def test_every_page_size(tmp_path: Path, page_size: int) -> None:
    written = ours(tmp_path / "dump", (2, 1), page_size)
    with opened(tmp_path / "dump") as image:
        assert (image.page_size, image.pages, image.format) == (page_size, 3, "arrow")
        assert image.mappings == MAPPINGS
        assert [(e.row, e.pages, e.offset % 4096) for e in image.extents] == [(0, 2, 0), (2, 1, 0)]
        assert table(image).equals(written)


def test_batches_of_all_lengths(tmp_path: Path) -> None:
    counts = (5, 1, 70, 1, 1, 300, 2)
    written = ours(tmp_path / "dump", counts)
    with opened(tmp_path / "dump") as image:
        assert [e.pages for e in image.extents] == list(counts)
        assert [len(c) for c in image.columns()] == list(counts)
        assert [len(b) for b in image.batches()] == [380]
        assert table(image).combine_chunks().equals(written.combine_chunks())
        pages = np.empty((72, PAGE), np.uint8)
        image.read_pages(5, pages)
        expected = written.column("content").slice(5, 72).to_pylist()
        assert [page.tobytes() for page in pages] == expected


def test_empty_batches_are_passed_over(tmp_path: Path) -> None:
    empty = batch(0, 1).slice(0, 0)
    plain(tmp_path / "dump", [empty, batch(0, 2), empty, empty, batch(2, 1), empty])
    with opened(tmp_path / "dump") as image:
        assert [(e.row, e.pages) for e in image.extents] == [(0, 2), (2, 1)]
        assert [(c.row, len(c)) for c in image.columns()] == [(0, 2), (2, 1)]


@pytest.mark.parametrize("batches", [0, 1])
def test_a_dump_without_rows(tmp_path: Path, batches: int) -> None:
    schema = batch(0, 1).schema
    with pa.OSFile(str(tmp_path / "dump"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for _ in range(batches):
            writer.write_batch(batch(0, 1).slice(0, 0))
    with opened(tmp_path / "dump") as image:
        assert (image.pages, list(image.columns()), list(image.batches())) == (0, [], [])
        assert len(image.mappings) == 2 * batches
    assert scan(tmp_path / "dump", backend="cpu").totals.pages == 0


def test_columns_outlive_the_file(tmp_path: Path) -> None:
    ours(tmp_path / "dump", (3, 4))
    with opened(tmp_path / "dump") as image:
        pass
    assert image.fd == -1
    (tmp_path / "dump").unlink()
    assert [len(c) for c in image.columns()] == [3, 4]


def test_plain_pyarrow_needs_no_alignment_of_ours(tmp_path: Path) -> None:
    batches = [batch(0, 3), batch(3, 2)]
    plain(tmp_path / "dump", batches)
    with opened(tmp_path / "dump") as image:
        assert any(e.offset % 4096 for e in image.extents)
        assert table(image).combine_chunks().equals(pa.Table.from_batches(batches).combine_chunks())
        assert image.source == ""
        assert image.absent.as_dict() == {"holes": 0, "excluded": 0, "unreadable": 0}


def test_format_version_4(tmp_path: Path) -> None:
    for legacy in (False, True):
        plain(
            tmp_path / "dump",
            [batch(0, 3)],
            metadata_version=pa.ipc.MetadataVersion.V4,
            use_legacy_format=legacy,
        )
        with opened(tmp_path / "dump") as image:
            assert table(image).equals(pa.Table.from_batches([batch(0, 3)]))


def test_a_batch_that_is_part_of_a_larger_one(tmp_path: Path) -> None:
    part = batch(0, 40).slice(11, 21)
    plain(tmp_path / "dump", [part])
    with opened(tmp_path / "dump") as image:
        assert table(image).equals(pa.Table.from_batches([part]))


B16, VIEWS = pa.binary(16), pa.list_(pa.string_view())
WORDS = pa.array(["a", "b", "a"])
KINDS = pa.array([0, 1, 0], pa.int8())
CHILDREN = [pa.array(["a", "b"]), pa.array([1])]


def test_further_columns_and_another_order(tmp_path: Path) -> None:
    known = pa.Table.from_batches([batch(0, 3)])
    more = {
        "strings": pa.array(["a", None, "ccc"]),
        "lists": pa.array([[1], [2, 3], None]),
        "structs": pa.array([{"x": 1}, {"x": None}, None]),
        "nothing": pa.nulls(3),
        "words": pa.array(["a", "b", "a"]).dictionary_encode(),
        "decimals": pa.array([1, 2, 3], pa.decimal128(20)),
        "half": pa.array([True, False, None]),
        "views": pa.array(["a", "longer than twelve bytes", None], pa.string_view()),
        "lists of views": pa.array([["longer than twelve bytes"], None, []], VIEWS),
        "list views": pa.array([[1], [2, 3], None], pa.list_view(pa.int8())),
        "three": pa.array([[1, 2, 3], None, [4, 5, 6]], pa.list_(pa.int8(), 3)),
        "large": pa.array(["a", None, "ccc"], pa.large_string()),
        "maps": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32())),
        "runs": pa.RunEndEncodedArray.from_arrays([2, 3], ["a", None]),
        "dense": pa.UnionArray.from_dense(KINDS, pa.array([0, 0, 1], pa.int32()), CHILDREN),
        "sparse": pa.UnionArray.from_sparse(KINDS, [pa.array(["a"] * 3), pa.array([1, 2, 3])]),
        "identities": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"-" * 16] * 3, B16)),
        "words in lists": pa.ListArray.from_arrays([0, 1, 2, 3], WORDS.dictionary_encode()),
    }
    everything = known
    for name, values in more.items():
        everything = everything.append_column(name, values)
    # Before the known columns, so that each must be counted right to find those behind it.
    names = [name for name in more if name not in ("strings", "structs")]
    names += ["content", "strings", "frame", "node", "structs"]
    names += [name for name in everything.column_names if name not in names]
    (mixed,) = everything.select(names).to_batches()
    plain(tmp_path / "dump", [mixed, mixed])
    with opened(tmp_path / "dump") as image:
        both = pa.concat_tables([known, known]).combine_chunks()
        assert table(image).combine_chunks().equals(both)


def test_fields_may_be_nullable_where_no_value_is_null(tmp_path: Path) -> None:
    one = batch(0, 3)
    old = one.column("mapping")
    free = pa.struct([pa.field(f.name, f.type) for f in old.type.value_type])
    codes = pa.DictionaryArray.from_arrays(old.indices, old.dictionary.cast(free))
    loose = with_column(one, "mapping", codes)
    loose = loose.cast(pa.schema([pa.field(f.name, f.type) for f in loose.schema]))
    plain(tmp_path / "dump", [loose])
    with opened(tmp_path / "dump") as image:
        assert image.mappings == MAPPINGS
        assert table(image).equals(pa.Table.from_batches([one]))


def test_mappings_that_were_added_later(tmp_path: Path) -> None:
    later = (*MAPPINGS, Mapping("third[3]", "", "shmem", "/dev/shm/x", 0))
    added = record_batch(rows(3, 3), contents(3, 3), mapping_dictionary(later))
    codes = pa.array([2, 1, 0], pa.int32())
    mapping = pa.DictionaryArray.from_arrays(codes, mapping_dictionary(later))
    added = with_column(added, "mapping", mapping, nullable=False)
    plain(tmp_path / "dump", [batch(0, 3), added], emit_dictionary_deltas=True)
    with opened(tmp_path / "dump") as image:
        assert image.mappings == later
        assert np.concatenate([c.mapping for c in image.columns()]).tolist() == [0, 1, 0, 2, 1, 0]


TYPES = {"mapping": "<i4", "index": "<u8", "frame": "<u8", "node": "<i2", "flags": "<u4"}
COLUMNS = [*TYPES, "content"]
UNKNOWN = {"frame": UNKNOWN_FRAME, "node": UNKNOWN_NODE}


def test_buffers_at_other_places(tmp_path: Path) -> None:
    """The values of every column but the first begin 8 bytes earlier than pyarrow wrote them."""
    path = plain(tmp_path / "dump", [batch(0, 4)])
    data = bytearray(path.read_bytes())
    slots = buffer_slots(data)
    places = {name: int.from_bytes(data[at : at + 8], "little") for name, at in slots.items()}
    body = data.index(contents(0, 4).tobytes()) - places["content"]
    for name in COLUMNS:
        if name != "mapping":
            places[name] -= 8
        data[slots[name] : slots[name] + 8] = places[name].to_bytes(8, "little")
    path.write_bytes(data)
    expected = {
        name: np.frombuffer(data, kind, 4, body + places[name]) for name, kind in TYPES.items()
    }
    with opened(path) as image:
        (columns,) = image.columns()
        assert image.extents[0].offset == body + places["content"]
        pages = np.empty((4, PAGE), np.uint8)
        image.read_pages(0, pages)
    assert pages.tobytes() == data[body + places["content"] :][: 4 * PAGE]
    for name, values in expected.items():
        found = getattr(columns, name)
        known = found != UNKNOWN[name] if name in UNKNOWN else np.full(4, True)
        assert known.any()
        assert found[known].tolist() == values[known].tolist()


def test_buffers_at_odd_places_are_refused(tmp_path: Path) -> None:
    path = plain(tmp_path / "dump", [batch(0, 4)])
    for name, at in buffer_slots(bytearray(path.read_bytes())).items():
        plain(path, [batch(0, 4)])
        with path.open("r+b") as file:
            file.seek(at)
            place = int.from_bytes(file.read(8), "little")
            file.seek(at)
            file.write((place + 4).to_bytes(8, "little"))
        with pytest.raises(ImageError, match="record batch 0 is damaged"), opened(path):
            pytest.fail(name)


def buffer_slots(data: bytearray) -> dict[str, int]:
    """Return where the message of the only batch holds the offset of each column's values."""
    (block,) = blocks("dump", memoryview(data))
    start = block.offset + 8
    message = Table(memoryview(data)[start:])
    header = message.target(2)
    assert header is not None
    vector = Table(message.data, header).target(2)
    assert vector is not None
    # A buffer is offset and length, 8 bytes each; a column's second buffer has its values.
    return {name: start + vector + 4 + 32 * n + 16 for n, name in enumerate(COLUMNS)}


def test_other_tools_count_the_same(tmp_path: Path) -> None:
    """Groups of equal pages, counted by SQL, by a data frame and by a scan."""
    path = tmp_path / "dump"
    # DuckDB 2.0.0 fails on dictionaries of 2**k - 1 structs, so there are four owners.
    generate(Recipe(2000, PAGE, group_sizes=(2, 5), owners=4), path)
    totals = scan(path, backend="cpu").totals
    zero = bytes(PAGE)
    lazy = polars.scan_ipc(path).filter(polars.col("content") != zero)
    groups = lazy.group_by("content").len("n").filter(polars.col("n") > 1)
    found = groups.select(polars.len(), polars.col("n").sum()).collect().row(0)
    assert found == (totals.shared_contents, totals.shared_contents + totals.sharing_frames)
    with pa.memory_map(str(path)) as source, duckdb.connect() as connection:
        connection.register("dump", pa.ipc.open_file(source).read_all())
        answer = connection.execute(
            "select count(*), sum(n) from (select count(*) n from dump where content != ?"
            " group by content having n > 1)",
            [zero],
        ).fetchone()
        owners = connection.execute(
            "select mapping.owner, count(*) from dump group by 1 order by 1"
        ).fetchall()
    assert answer == found
    assert owners == [(f"synthetic[{n}]", count) for n, count in enumerate([500] * 4)]
