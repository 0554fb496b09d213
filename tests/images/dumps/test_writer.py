"""Dumps in other Arrow readers, and a writer that fails."""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pytest

from gpudedup.errors import OutputError
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.rows import UNKNOWN_FRAME, Mapping, PageColumns

from ..common import open_files

MAPPINGS = (
    Mapping("redis[1]", "uid:0", "anon", "[heap]", 0x1000, "rd wr"),
    Mapping("redis[2]", "uid:0", "file", "/bin/redis", 0x7000),
)


def write(path: Path, page_size: int, rows: tuple[int, ...], *, force: bool = False) -> list[bytes]:
    rng = np.random.default_rng(page_size)
    contents: list[bytes] = []
    with DumpWriter(path, page_size, MAPPINGS, source="test", force=force) as dump:
        for n in rows:
            pages = rng.integers(0, 256, (n, page_size), dtype=np.uint8)
            index = np.arange(n, dtype=np.uint64)
            frame = np.where(index % 2 == 0, index, UNKNOWN_FRAME)
            columns = PageColumns(len(contents), (index % 2).astype(np.int32), index, frame)
            dump.write(columns, pages)
            contents += [p.tobytes() for p in pages]
        dump.absent.holes, dump.absent.unreadable = 12345678901, 3
    return contents


@pytest.mark.parametrize("page_size", [512, 4096, 2 << 20])
def test_any_reader_opens_it_and_pages_are_aligned(tmp_path: Path, page_size: int) -> None:
    path = tmp_path / "dump.arrow"
    contents = write(path, page_size, (3, 1, 7))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pa.memory_map(str(path)) as source:
        start = source.read_buffer(1).address
        source.seek(0)
        reader = pa.ipc.open_file(source)
        for at in range(reader.num_record_batches):
            batch = reader.get_batch(at)
            batch.validate(full=True)
            assert (batch.column("content").buffers()[1].address - start) % 4096 == 0
        table = reader.read_all()
        assert table.column("content").to_pylist() == contents
        assert json.loads(table.schema.metadata[b"gpudedup.absent"]) == {
            "holes": 12345678901,
            "excluded": 0,
            "unreadable": 3,
        }
        connection = duckdb.connect()
        connection.register("dump", table)
        answer = connection.execute(
            "select mapping.owner, count(*), count(frame), max(octet_length(content)) "
            "from dump group by 1 order by 1"
        ).fetchall()
        connection.close()
        assert answer == [("redis[1]", 7, 7, page_size), ("redis[2]", 4, 0, page_size)]
        del table, batch, reader
    frame = polars.read_ipc(path)
    assert frame["content"].to_list() == contents


def test_pages_that_come_in_pieces(tmp_path: Path) -> None:
    pages = np.random.default_rng(3).integers(0, 256, (20, 4096), dtype=np.uint8)
    columns = PageColumns(0, np.zeros(20, np.int32), np.arange(20, dtype=np.uint64))
    for name, cuts in (("one", []), ("two", [7]), ("many", range(1, 20))):
        with DumpWriter(tmp_path / name, 4096, MAPPINGS, source="test", exact={"a": "b"}) as dump:
            dump.write_pieces(columns, np.split(pages, cuts))
            dump.write(columns, pages)
            dump.write_pieces(columns.slice(0, 1), [pages[:1]])
    with DumpWriter(tmp_path / "whole", 4096, MAPPINGS, exact={"a": "b"}) as dump:
        for n in (20, 20, 1):
            dump.write(columns.slice(0, n), pages[:n])
    whole = (tmp_path / "whole").read_bytes()
    assert all((tmp_path / name).read_bytes() == whole for name in ("one", "two", "many"))
    with (
        pytest.raises(AssertionError, match="not as many"),
        DumpWriter(tmp_path / "less", 4096, MAPPINGS) as dump,
    ):
        dump.write_pieces(columns, [pages[:19]])
    assert not (tmp_path / "less").exists()


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "dump.arrow"
    write(path, 512, (1,))
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        write(path, 512, (2,))
    with (
        pytest.raises(KeyboardInterrupt),
        DumpWriter(path, 512, MAPPINGS, source="test", force=True),
    ):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["dump.arrow"]
    assert len(write(path, 512, (2,), force=True)) == 2
    assert path.read_bytes() != before


@pytest.mark.parametrize(("pages", "filled"), [(128, False), (1, True)])
def test_a_full_disk_leaves_nothing(small_disk: Path, pages: int, filled: bool) -> None:
    """The disk is full while pages are written, or only when the file is closed."""
    path, filler = small_disk / "dump.arrow", small_disk / "filler"

    def make_dump() -> None:
        index = np.arange(pages, dtype=np.uint64)
        with DumpWriter(path, 4096, MAPPINGS, source="test") as dump:
            dump.write(
                PageColumns(0, np.zeros(pages, np.int32), index), np.ones((pages, 4096), np.uint8)
            )
            if filled:
                fill_up(filler)

    before = open_files()
    with pytest.raises(OutputError) as caught:
        make_dump()
    assert str(caught.value) == f"{path}: {os.strerror(errno.ENOSPC)}"
    assert open_files() == before
    assert not {p.name for p in small_disk.iterdir()} - {"filler"}


def test_an_interrupt_outweighs_that_the_disk_is_full(small_disk: Path) -> None:
    def be_interrupted() -> None:
        with DumpWriter(small_disk / "dump.arrow", 4096, MAPPINGS, source="test"):
            fill_up(small_disk / "filler")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_file_that_cannot_be_opened_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Failed to open local file")

    monkeypatch.setattr(Path, "open", refuse)
    with (
        pytest.raises(OutputError, match=os.strerror(errno.EMFILE)),
        DumpWriter(tmp_path / "dump.arrow", 4096, MAPPINGS, source="test"),
    ):
        pass
    assert not list(tmp_path.iterdir())
