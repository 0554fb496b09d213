"""Small files made to take much memory: refused, or read within the limit of docs/limits.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from gpudedup.images.dumps import ipc
from gpudedup.images.dumps.batches import mapping_dictionary, record_batch
from gpudedup.images.dumps.flatbuffer import Table
from gpudedup.images.rows import Mapping

from ...bounded import bounded
from .arrow_files import batch, contents, opened, plain, rows

EMPTY = Mapping("", "", "anon", "", 0)


def read(path: Path) -> str:
    """Open a dump and read its rows in a child; check that it grew no more than is stated."""
    before = "from gpudedup.errors import ImageError\n"
    before += "from gpudedup.images.dumps.reader import open_arrow\nimport pyarrow"
    run = "(lambda image: (image.pages, len(image.mappings), len(image.rows)))(open_arrow(path))"
    said, grown = bounded(path, before, run, "ImageError")
    assert grown < ipc.UNPACKED_BYTES + ipc.UNPACKED_TIMES * path.stat().st_size
    return said.replace(f"{path}: ", "")


def with_dictionary(maps: pa.StructArray) -> pa.RecordBatch:
    """Return a batch of one row whose dictionary is ``maps``."""
    return record_batch(rows(0, 1), contents(0, 1), maps)


def places(path: Path) -> tuple[int, bytes, list[ipc.Place], list[ipc.Place]]:
    """Return the footer's offset, the footer, and the places of dictionaries and of batches."""
    data = memoryview(path.read_bytes())
    start, footer = ipc._footer(str(path), data)
    table = Table(footer)
    listed = [list(ipc._places(table, which)) for which in (2, 3)]
    return start, bytes(footer), listed[0], listed[1]


def with_deltas(path: Path, maps: Sequence[Mapping], ends: Sequence[int]) -> Path:
    """Write a batch for each of ``ends``; its dictionary is the first so many of ``maps``."""
    dictionary = mapping_dictionary(maps)
    one = with_dictionary(dictionary.slice(0, 1))
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, one.schema, options=options) as file,
    ):
        for end in ends:
            codes = pa.DictionaryArray.from_arrays(
                pa.array([0], pa.int32()), dictionary.slice(0, end)
            )
            columns = [codes, *one.columns[1:]]
            file.write_batch(pa.RecordBatch.from_arrays(columns, schema=one.schema))
    return path


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_dictionary(tmp_path: Path, codec: str) -> None:
    """The batches are not compressed; of the dictionary 600 MB are zeros."""
    maps = mapping_dictionary([Mapping("\0" * (600 << 20), "", "anon", "", 0), EMPTY])
    packed = plain(tmp_path / "packed", [with_dictionary(maps)], compression=codec)
    # Put an uncompressed batch in the place of the compressed one.
    small = plain(tmp_path / "small", [with_dictionary(mapping_dictionary([EMPTY]))])
    _, footer, dictionaries, _ = places(packed)
    data = packed.read_bytes()[: sum(dictionaries[-1])]
    _, _, _, others = places(small)
    block = small.read_bytes()[others[0].offset : sum(others[0])]
    moved = ipc.Place(len(data), others[0].head, others[0].body)
    footer = ipc.with_places(footer, dictionaries, [moved])
    data += block + footer + len(footer).to_bytes(4, "little") + ipc.MAGIC
    (tmp_path / "dump").write_bytes(data)
    said = read(tmp_path / "dump")
    assert said == (
        f"refused: offset {dictionaries[0].offset}: dictionary batch 0 is compressed; "
        "a dump is read in place"
    )


def test_deltas_are_joined(tmp_path: Path) -> None:
    maps = [Mapping(f"p[{at}]", "", "anon", "", 0) for at in range(5000)]
    path = with_deltas(tmp_path / "dump", maps, range(1, 5001))
    assert read(path) == "done: (5000, 5000, 5000)"
    with opened(path) as image:
        assert image.mappings == tuple(maps)


def test_one_delta_that_is_listed_again_and_again(tmp_path: Path) -> None:
    path = with_deltas(tmp_path / "dump", [EMPTY] * 4000, [*range(1, 1000), 4000])
    start, footer, dictionaries, batches = places(path)
    again = [dictionaries[0]] + dictionaries[-1:] * (len(dictionaries) - 1)
    data = path.read_bytes()
    path.write_bytes(
        data[:start] + ipc.with_places(footer, again, batches) + data[start + len(footer) :]
    )
    assert read(path) == (
        f"refused: offset {start}: the footer puts dictionary batch 2 where 1 lies"
    )


def test_empty_batches(tmp_path: Path) -> None:
    one = batch(0, 3)
    path = plain(tmp_path / "dump", [*[one.slice(0, 0)] * 20_000, one, *[one.slice(0, 0)] * 20_000])
    assert read(path) == "done: (3, 2, 3)"


def test_nothing_but_empty_batches(tmp_path: Path) -> None:
    one = batch(0, 3).slice(0, 0)
    assert read(plain(tmp_path / "dump", [one] * 20_000)) == "done: (0, 2, 0)"
