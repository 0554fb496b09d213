"""Merge: the same table in less room, from any image, again and again."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pytest

import gpudedup as gd
from gpudedup.engines.cpu.engine import CpuEngine
from gpudedup.engines.reading import gather as gather_rows
from gpudedup.errors import ImageError, OutputError, UsageError
from gpudedup.images.opening import open_image
from gpudedup.merged import merging
from gpudedup.merged.merging import merge_images

from .common import (
    PAGE,
    as_others_see,
    frames_of,
    pages_of,
    sha,
    slots_of,
    table,
    write_dump,
)

LETTERS = [1, 2, 0, 1, 3, 0, 4, 2, 5, 1, 6, 0, 7, 3, 3]


def test_the_layout(tmp_path: Path) -> None:
    dump, merged = write_dump(tmp_path / "d", LETTERS), tmp_path / "m"
    done = merge_images(dump, merged)
    assert (done.pages, done.frames, done.kept, done.mappings) == (15, 8, 0, 5)
    assert done.size == merged.stat().st_size
    assert stat.S_IMODE(merged.stat().st_mode) == 0o600
    assert frames_of(merged) == [bytes(p) for p in pages_of([1, 2, 0, 3, 4, 5, 6, 7])]
    assert slots_of(merged) == [0, 1, 2, 0, 3, 2, 4, 1, 5, 0, 6, 2, 7, 3, 3]
    with open_image(merged) as image:
        assert (image.format, image.pages, image.stored) == ("merged", 15, 8)
        assert [e.offset % 4096 for e in image.extents] == [0]
        assert image.absent.as_dict() == {"holes": 5, "excluded": 6, "unreadable": 0}
        pages = np.empty((15, PAGE), np.uint8)
        image.read_pages(0, pages)
        assert (pages == pages_of(LETTERS)).all()
        offsets = [image.offset_of(row) for row in (0, 3, 14)]
        first = image.extents[0].offset
        assert offsets == [first, first, first + 3 * PAGE]


def test_other_readers_see_the_same_table(tmp_path: Path) -> None:
    dump, merged = tmp_path / "d.arrow", tmp_path / "m.arrow"
    gd.generate(gd.Recipe(500, PAGE, group_sizes=(2, 5), owners=4), dump)
    merge_images(dump, merged)
    assert merged.stat().st_size < dump.stat().st_size
    assert as_others_see(dump) == as_others_see(merged)
    assert polars.read_ipc(dump).equals(polars.read_ipc(merged))
    query = (
        "SELECT mapping.owner, index, frame, node, flags, content, count(*) OVER (PARTITION BY"
        " content) FROM dump ORDER BY ALL"
    )
    answers = []
    for path in (dump, merged):
        with pa.memory_map(str(path)) as source, duckdb.connect() as connection:
            connection.register("dump", pa.ipc.open_file(source).read_all())
            answers.append(connection.execute(query).fetchall())
    assert answers[0] == answers[1]
    # A reader of the stream, which has no footer, sees the same rows.
    with merged.open("rb") as file:
        file.seek(8)
        assert pa.ipc.open_stream(file).read_all().to_pylist() == as_others_see(dump)


@pytest.mark.parametrize("frames", [None, [3, None, 3, 9, 9, None, 2, 2, 2, 1, 1, 0, 4, 5, 6]])
def test_a_scan_counts_as_before(tmp_path: Path, frames: list[int | None] | None) -> None:
    dump, merged = write_dump(tmp_path / "d", LETTERS, frame=frames), tmp_path / "m"
    other = write_dump(tmp_path / "o", [1, 9, 0, 9, 8], frame=[4, 4, 5, 5, 1])
    merge_images(dump, merged)
    for before, after in (
        ([dump], [merged]),
        ([dump, other], [merged, other]),
        ([other, dump, other], [other, merged, other]),
        ([dump, dump], [merged, merged]),
    ):
        one, two = gd.scan(before, backend="cpu"), gd.scan(after, backend="cpu")
        assert one.totals == two.totals
        assert one.sharing("owner") == two.sharing("owner")
        assert one.by("kind") == two.by("kind")
        for name in ("pages", "contents"):
            first, second = getattr(one, name), getattr(two, name)
            assert first.drop_columns("input").equals(second.drop_columns("input")), name


def test_a_scan_reads_each_frame_once(tmp_path: Path) -> None:
    dump, merged = write_dump(tmp_path / "d", LETTERS), tmp_path / "m"
    merge_images(dump, merged)
    told: list[tuple[int, int]] = []
    with open_image(merged) as image:
        store = gd.scan(image, backend="cpu", progress=lambda a, b: told.append((a, b)))
        assert store.population.source().pages == image.stored == 8
    assert all(total == 8 for _, total in told)


def test_import_and_the_memory_manager_read_it(tmp_path: Path) -> None:
    dump, merged, back = write_dump(tmp_path / "d", LETTERS), tmp_path / "m", tmp_path / "b"
    merge_images(dump, merged)
    gd.import_images(merged, back)
    assert as_others_see(back) == as_others_see(dump)
    managers = [gd.MemoryManager.from_image(path) for path in (dump, merged)]
    for manager in managers:
        manager.check()
    one, two = managers
    assert one.counters == two.counters
    for first, second in zip(one.mappings, two.mappings, strict=True):
        index = range(first.pages)
        assert (one.read(first, index) == two.read(second, index)).all()


def test_several_inputs_are_as_imported_together(tmp_path: Path) -> None:
    first = write_dump(tmp_path / "1", LETTERS, frame=[*range(14), None])
    raw = tmp_path / "2.mem"
    raw.write_bytes(pages_of([1, 0, 8, 8]).tobytes())
    merged, imported = tmp_path / "m", tmp_path / "i"
    merge_images([first, raw], merged, page_size=PAGE)
    gd.import_images([first, raw], imported, page_size=PAGE)
    assert as_others_see(merged) == as_others_see(imported)
    with open_image(merged) as one, open_image(imported) as two:
        assert one.absent == two.absent
        left, right = dict(one.metadata), dict(two.metadata)  # type: ignore[attr-defined]
    assert left.pop("gpudedup.merged")
    assert left.pop("gpudedup.source") == "merge of 1, 2.mem"
    assert right.pop("gpudedup.source") == "import of 1, 2.mem"
    assert left["gpudedup.frame_base"] == "[0, 14]"
    for record in (left, right):
        record.pop("gpudedup.time")
    assert left == right


def test_only_new_frames_are_added(tmp_path: Path) -> None:
    a = write_dump(tmp_path / "a", LETTERS, frame=list(range(15)))
    b = write_dump(tmp_path / "b", [9, 2, 9, 10, 0], frame=[0, 1, 2, 3, 4])
    store, both, at_once = tmp_path / "store", tmp_path / "both", tmp_path / "at once"
    merge_images(a, store)
    before = frames_of(store)
    done = merge_images([store, b], both)
    assert (done.frames, done.kept) == (10, 8)
    assert frames_of(both)[:8] == before
    merge_images([a, b], at_once)
    assert as_others_see(both) == as_others_see(at_once)
    assert frames_of(both) == frames_of(at_once)
    # The merged dump may stand anywhere among the inputs.
    merge_images([b, store], both, force=True)
    assert frames_of(both)[:8] == before
    merge_images([b, a], at_once, force=True)
    assert as_others_see(both) == as_others_see(at_once)
    # The output may replace the merged dump itself.
    merge_images([store, b], store, force=True)
    assert frames_of(store)[:8] == before
    assert len(frames_of(store)) == 10
    # Two merged dumps: the frames of the second keep their order too.
    other = tmp_path / "other"
    merge_images(b, other)
    merge_images([tmp_path / "both", other], at_once, force=True)
    assert frames_of(at_once) == frames_of(tmp_path / "both")


def test_pages_that_changed_during_the_capture_stay_apart(tmp_path: Path) -> None:
    """Rows of one physical frame with different bytes: each keeps its own."""
    dump = write_dump(tmp_path / "d", [1, 2, 1, 3], frame=[5, 5, 5, 5])
    done = merge_images(dump, tmp_path / "m")
    assert slots_of(tmp_path / "m") == [0, 1, 0, 2]
    assert as_others_see(tmp_path / "m") == as_others_see(dump)
    assert len(done.notes) == 1
    assert done.notes[0].startswith("2 pages differ from an earlier one of the same physical frame")


@pytest.mark.parametrize(("chunk", "rows"), [(1, 1), (3 * PAGE, 4), (1 << 20, 1 << 20)])
def test_in_pieces_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, rows: int
) -> None:
    monkeypatch.setattr(merging, "PIECE_BYTES", chunk)
    monkeypatch.setattr(merging, "BATCH_ROWS", rows)
    a = write_dump(tmp_path / "a", LETTERS)
    merge_images([a, a], tmp_path / "m")
    rest = as_others_see(a)
    assert as_others_see(tmp_path / "m") == rest + rest


@pytest.mark.parametrize("page_size", [512, 4096, 2 << 20])
def test_every_page_size(tmp_path: Path, page_size: int) -> None:
    raw = tmp_path / "r.mem"
    pages = np.random.default_rng(0).integers(0, 256, (5, page_size), dtype=np.uint8)
    raw.write_bytes(pages[[0, 1, 0, 2, 4, 4]].tobytes())
    done = merge_images(raw, tmp_path / "m", page_size=page_size)
    assert (done.frames, done.page_size) == (4, page_size)
    assert table(tmp_path / "m")["content"].to_pylist() == [
        pages[n].tobytes() for n in (0, 1, 0, 2, 4, 4)
    ]


def test_an_image_without_rows(tmp_path: Path) -> None:
    empty = write_dump(tmp_path / "d", [])
    done = merge_images(empty, tmp_path / "m")
    assert (done.pages, done.frames) == (0, 0)
    assert as_others_see(tmp_path / "m") == []
    assert gd.scan(tmp_path / "m").totals.pages == 0
    assert not gd.verify(tmp_path / "m").damage
    gd.restore(tmp_path / "m", tmp_path / "b")
    assert sha(tmp_path / "b") == sha(empty)


def test_arrays(tmp_path: Path) -> None:
    done = merge_images(pages_of(LETTERS), tmp_path / "m")
    assert done.frames == 8
    assert slots_of(tmp_path / "m") == slots_of_letters(LETTERS)


def slots_of_letters(letters: list[int]) -> list[int]:
    order = list(dict.fromkeys(letters))
    return [order.index(letter) for letter in letters]


def test_what_cannot_be_read_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "r.mem"
    raw.write_bytes(pages_of([1, 2, 3, 1, 4]).tobytes() + b"rest")
    real = CpuEngine.partition

    def fail(self: Any, store: Any, **more: Any) -> Any:
        found = real(self, store, **more)
        if store.pages == 5:
            found.classes[2], found.representative[2] = 4, 2
        return found

    monkeypatch.setattr(CpuEngine, "partition", fail)
    done = merge_images(raw, tmp_path / "m", backend="cpu", page_size=PAGE)
    assert done.absent.unreadable == 2
    assert done.losses == [
        f"{raw}: offset 2560: the last 4 bytes are less than a page",
        f"{raw}: offset 1024: 1 page could not be read",
    ]
    assert [row["index"] for row in as_others_see(tmp_path / "m")] == [0, 1, 3, 4]
    assert slots_of(tmp_path / "m") == [0, 1, 0, 2]


def test_a_page_that_changes_meanwhile_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "r.mem"
    raw.write_bytes(pages_of([1, 2, 3]).tobytes())
    real = gather_rows

    def gather(*arguments: Any) -> int:
        with raw.open("r+b") as file:
            file.seek(PAGE + 9)
            file.write(b"other")
        return real(*arguments)

    monkeypatch.setattr(merging, "gather", gather)
    with pytest.raises(ImageError, match="offset 512: the page changed while it was read"):
        merge_images(raw, tmp_path / "m", page_size=PAGE)
    assert [p.name for p in tmp_path.iterdir()] == ["r.mem"]
    monkeypatch.setattr(merging, "gather", lambda *_: 2)
    with pytest.raises(ImageError, match="offset 1024: the page cannot be read any more"):
        merge_images(raw, tmp_path / "m", page_size=PAGE)
    assert [p.name for p in tmp_path.iterdir()] == ["r.mem"]


def test_an_output_is_not_replaced_unasked(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "d", LETTERS)
    (tmp_path / "m").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        merge_images(dump, tmp_path / "m")
    assert (tmp_path / "m").read_text() == "precious"
    merge_images(dump, tmp_path / "m", force=True)
    assert len(frames_of(tmp_path / "m")) == 8


def test_arguments(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "d", LETTERS)
    raw = tmp_path / "r.mem"
    raw.write_bytes(bytes(8192))
    with pytest.raises(UsageError, match="no input"):
        merge_images([], tmp_path / "m")
    with pytest.raises(ImageError, match="page size"):
        merge_images([dump, raw], tmp_path / "m")
    with pytest.raises(UsageError, match="threads 0"):
        merge_images(dump, tmp_path / "m", backend="cpu", threads=0)
    assert not (tmp_path / "m").exists()


def test_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    raw = tmp_path / "r.mem"
    raw.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    (small_disk / "m").write_text("old")
    with pytest.raises(OutputError) as caught:
        merge_images(raw, small_disk / "m", force=True)
    free = os.statvfs(small_disk).f_bfree * os.statvfs(small_disk).f_frsize
    needed = 256 * (4096 + 16)
    assert str(caught.value) == f"{small_disk / 'm'}: needs {needed} bytes, {free} are free"
    # Room for the frames, but not for what else is in a merged dump.
    os.truncate(raw, free - 4096)
    with pytest.raises(OutputError) as caught:
        merge_images(raw, small_disk / "m", force=True)
    assert str(caught.value) == f"{small_disk / 'm'}: {os.strerror(errno.ENOSPC)}"
    assert (small_disk / "m").read_text() == "old"
    assert [p.name for p in small_disk.iterdir()] == ["m"]
