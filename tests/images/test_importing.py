"""Several images in one dump: only frame and mapping numbers change, where they must."""

from __future__ import annotations

import errno
import gc
import json
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from gpudedup.errors import ImageError, OutputError, UsageError
from gpudedup.images import base, importing
from gpudedup.images.base import Image
from gpudedup.images.dumps.reader import open_arrow
from gpudedup.images.dumps.writer import DumpWriter
from gpudedup.images.elf import open_elf
from gpudedup.images.importing import import_images
from gpudedup.images.opening import open_image
from gpudedup.images.raw import open_raw
from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, Mapping, PageColumns
from gpudedup.scanning.scan import scan

from .common import open_files

PAGE = 512
FIXTURES = Path(__file__).parent / "fixtures"
U = int(UNKNOWN_FRAME)

MAPPINGS = (
    Mapping("redis[1]", "uid:0", "anon", "[heap]", 0x1000, "rd wr"),
    Mapping("redis[2]", "uid:7", "file", "/bin/redis", 0x7000),
)


def pages_of(*letters: str) -> npt.NDArray[np.uint8]:
    return np.array([[ord(letter)] * PAGE for letter in letters], np.uint8)


def write_dump(path: Path, frames: list[int] | None, letters: str, *, batch: int = 3) -> Path:
    """Write a dump with nulls in every nullable column; return ``path``."""
    n = len(letters)
    number = np.arange(n)
    columns = PageColumns(
        0,
        (number % 2).astype(np.int32),
        (number * 10).astype(np.uint64),
        None if frames is None else np.array(frames, np.uint64),
        np.where(number % 3, 1, UNKNOWN_NODE).astype(np.int16),
        (number << 2).astype(np.uint32),
    )
    with DumpWriter(path, PAGE, MAPPINGS, source="test") as dump:
        for first in range(0, n, batch):
            dump.write(
                columns.slice(first, first + batch), pages_of(*letters[first : first + batch])
            )
        dump.absent.holes, dump.absent.excluded, dump.absent.unreadable = 5, 6, 7
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as source:
        result: list[dict[str, Any]] = pa.ipc.open_file(source).read_all().to_pylist()
    return result


def metadata(path: Path) -> dict[str, str]:
    with open_arrow(str(path)) as image:
        assert image.metadata
        return image.metadata


def test_a_dump_comes_out_as_it_went_in(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_dump(old, [3, U, 3, 0, U - 1, 9, U], "abcabcd")
    done = import_images(old, new)
    assert (done.pages, done.mappings, done.losses, done.notes) == (7, 2, [], [])
    assert done.absent.as_dict() == {"holes": 5, "excluded": 6, "unreadable": 7}
    assert rows(new) == rows(old)
    with pa.memory_map(str(new)) as source:
        assert pa.ipc.open_file(source).num_record_batches == 1
    about = metadata(new)
    assert json.loads(about["gpudedup.absent"]) == done.absent.as_dict()
    assert about["gpudedup.source"] == "import of old"
    assert "gpudedup.frame_base" not in about


def test_equal_frames_of_different_images_are_different(tmp_path: Path) -> None:
    frames = [[4, 4, U, 0], None, [4, 1, 2, 3]]
    paths = [write_dump(tmp_path / f"{n}", f, "aabc") for n, f in enumerate(frames)]
    done = import_images(paths, tmp_path / "all")
    assert (done.pages, done.mappings, done.notes) == (12, 6, [])
    assert done.absent.as_dict() == {"holes": 15, "excluded": 18, "unreadable": 21}
    table = rows(tmp_path / "all")
    assert [row["frame"] for row in table] == [4, 4, None, 0, *[None] * 4, 9, 6, 7, 8]
    assert [row["mapping"] for row in table] == [r["mapping"] for p in paths for r in rows(p)]
    assert metadata(tmp_path / "all")["gpudedup.frame_base"] == "[0, 5, 5]"
    with open_image(tmp_path / "all") as image:
        codes = np.concatenate([c.mapping for c in image.columns()])
        assert codes.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5]
    together, imported = scan(paths, backend="cpu"), scan(tmp_path / "all", backend="cpu")
    assert imported.totals == together.totals
    assert together.totals.frames == 11
    assert imported.by("owner") == together.by("owner")


def test_the_original_frame_can_be_told(tmp_path: Path) -> None:
    frames = [[7, 2, 1000], [0, 7, 3], [5, 0, 7]]
    paths = [write_dump(tmp_path / f"{n}", f, "abc") for n, f in enumerate(frames)]
    import_images(paths, tmp_path / "all")
    bases = np.array(json.loads(metadata(tmp_path / "all")["gpudedup.frame_base"]))
    new = np.array([row["frame"] for row in rows(tmp_path / "all")])
    image = np.searchsorted(bases, new, side="right") - 1
    assert image.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (new - bases[image]).tolist() == [f for image in frames for f in image]


def test_frames_that_exceed_64_bits_together_are_numbered_anew(tmp_path: Path) -> None:
    frames = [[U - 1, 5, U - 1, U, 7, 5], [U - 1, 0, U, 0, 1, U - 2]]
    paths = [write_dump(tmp_path / f"{n}", f, "aabbcc", batch=2) for n, f in enumerate(frames)]
    done = import_images(paths, tmp_path / "all")
    assert "numbered anew" in done.notes[0]
    new = [row["frame"] for row in rows(tmp_path / "all")]
    assert new == [2, 0, 2, None, 1, 0, 6, 3, None, 3, 4, 5]
    assert metadata(tmp_path / "all")["gpudedup.frame_base"] == "[null, null]"


def test_the_last_number_that_fits(tmp_path: Path) -> None:
    paths = [
        write_dump(tmp_path / "low", [0, 9], "ab"),
        write_dump(tmp_path / "high", [U - 11, 0], "cd"),
    ]
    import_images(paths, tmp_path / "all")
    assert [row["frame"] for row in rows(tmp_path / "all")] == [0, 9, U - 1, 10]


def test_a_core_of_gdb(tmp_path: Path) -> None:
    path = tmp_path / "paged.core"
    path.write_bytes(lzma.decompress((FIXTURES / "gcore.core.xz").read_bytes()))
    done = import_images(path, tmp_path / "dump")
    table = rows(tmp_path / "dump")
    with open_elf(str(path), 4096) as image:
        assert done.pages == image.pages == len(table) == 49
        assert done.notes == image.notes
        assert done.absent == image.absent
        assert [row["mapping"]["start"] + row["index"] * 4096 for row in table] == [
            image.mappings[m].start + int(i) * 4096
            for c in image.columns()
            for m, i in zip(c.mapping, c.index, strict=True)
        ]
        pages = np.empty((image.pages, 4096), np.uint8)
        image.read_pages(0, pages)
    assert b"".join(row["content"] for row in table) == pages.tobytes()
    assert {row["frame"] for row in table} == {None}
    # One record batch, not one for each mapping.
    with pa.memory_map(str(tmp_path / "dump")) as source:
        assert pa.ipc.open_file(source).num_record_batches == 1


@pytest.mark.parametrize("batch_pages", [1, 2, 5, 1000])
def test_batches_are_full_whatever_the_mappings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_pages: int
) -> None:
    path = tmp_path / "paged.core"
    path.write_bytes(lzma.decompress((FIXTURES / "gcore.core.xz").read_bytes()))
    monkeypatch.setattr(base, "BATCH_BYTES", batch_pages * 4096)
    full = [batch_pages] * (49 // batch_pages) + [49 % batch_pages] * (49 % batch_pages > 0)
    with open_elf(str(path), 4096) as image:
        batches = list(image.batches())
        import_images(image, tmp_path / "dump")
    assert [len(batch) for batch in batches] == full
    with pa.memory_map(str(tmp_path / "dump")) as source:
        reader = pa.ipc.open_file(source)
        assert [len(reader.get_batch(n)) for n in range(reader.num_record_batches)] == full
        assert reader.read_all().equals(pa.Table.from_batches(batches))


def test_holes_of_a_raw_image_stay_absent(tmp_path: Path) -> None:
    path = tmp_path / "guest.mem"
    with path.open("wb") as file:
        file.write(pages_of(*"abcdefgh").tobytes())
        file.seek(1 << 20)
        file.write(pages_of(*"ijklmnop").tobytes() + b"tail")
    done = import_images(path, tmp_path / "dump", page_size=PAGE)
    assert done.pages + done.absent.holes == (1 << 20) // PAGE + 8
    assert done.absent.unreadable == len(done.losses) == 1
    table = rows(tmp_path / "dump")
    assert [row["index"] for row in table] == [row["frame"] for row in table]
    content = {row["index"]: row["content"] for row in table}
    for number, letter in enumerate("abcdefgh"):
        assert content[number] == letter.encode() * PAGE
        assert content[2048 + number] == bytes([ord(letter) + 8]) * PAGE


def test_an_image_of_holes_only_is_an_empty_dump(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    path.touch()
    os.truncate(path, 1 << 20)
    done = import_images(path, tmp_path / "dump")
    if done.pages:
        pytest.skip("the file system has no holes")
    assert (done.absent.holes, done.losses) == (256, [])
    with open_image(tmp_path / "dump") as image:
        assert (image.pages, image.absent.holes) == (0, 256)


def break_pages(monkeypatch: pytest.MonkeyPatch, page_size: int, bad: set[int]) -> None:
    """Make reads fail that touch the pages ``bad`` of a file."""
    preadv = os.preadv

    def failing(fd: int, buffers: list[memoryview], offset: int) -> int:
        end = offset + sum(len(b) for b in buffers)
        if bad & set(range(offset // page_size, -(-end // page_size))):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)


@pytest.mark.parametrize("batch_pages", [4, 64])
def test_pages_that_cannot_be_read_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_pages: int
) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", batch_pages * PAGE)
    paths = [tmp_path / "one.mem", tmp_path / "two.mem"]
    for path in paths:
        path.write_bytes(pages_of(*"abcdefghijklmnopqrst").tobytes())
    break_pages(monkeypatch, PAGE, {0, 2, 3, 4, 5, 19})
    reports: list[tuple[int, int]] = []
    done = import_images(
        paths, tmp_path / "dump", page_size=PAGE, progress=lambda *seen: reports.append(seen)
    )
    assert (done.pages, done.absent.unreadable) == (28, 12)
    lost = "pages could not be read: Input/output error"
    assert done.losses == [
        f"{path}: offset {offset}: {pages} {lost}"
        for path in paths
        for offset, pages in ((0, 1), (2 * PAGE, 4), (19 * PAGE, 1))
    ]
    table = rows(tmp_path / "dump")
    good = [1, *range(6, 19)]
    assert [row["index"] for row in table] == good * 2
    assert [row["frame"] for row in table] == good + [n + 20 for n in good]
    assert [row["content"][0] - ord("a") for row in table] == good * 2
    assert json.loads(metadata(tmp_path / "dump")["gpudedup.absent"])["unreadable"] == 12
    assert reports[0] == (0, 40)
    assert reports[-1] == (40, 40)
    assert reports == sorted(reports)


def test_losses_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "guest.mem"
    path.write_bytes(pages_of(*"ab" * 50).tobytes())
    break_pages(monkeypatch, PAGE, set(range(0, 100, 2)))
    done = import_images(path, tmp_path / "dump", page_size=PAGE)
    assert (done.pages, done.absent.unreadable, len(done.losses)) == (50, 50, 21)
    assert f"offset {38 * PAGE}: 1 pages" in done.losses[19]
    assert done.losses[20] == "and 30 more such places"


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "guest.mem"
    path.write_bytes(pages_of(*"abcdefgh").tobytes())
    with open_raw(str(path), PAGE) as image:
        os.truncate(path, 3 * PAGE + 100)
        done = import_images(image, tmp_path / "dump")
    assert (done.pages, done.absent.unreadable) == (3, 5)
    (loss,) = done.losses
    assert loss.startswith(f"{path}: offset {3 * PAGE}: 5 pages could not be read: the file became")


def test_nothing_readable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "guest.mem"
    path.write_bytes(pages_of(*"abcd").tobytes())
    break_pages(monkeypatch, PAGE, set(range(4)))
    with pytest.raises(ImageError) as caught:
        import_images(path, tmp_path / "dump", page_size=PAGE)
    assert str(caught.value) == (
        f"{path}: offset 0: 4 pages could not be read: {os.strerror(errno.EIO)}"
    )
    assert not (tmp_path / "dump").exists()


def test_images_that_do_not_go_together(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "small", None, "ab")
    raw = tmp_path / "guest.mem"
    raw.write_bytes(bytes(8192))
    with pytest.raises(ImageError) as caught:
        import_images([dump, raw], tmp_path / "out")
    assert str(caught.value).startswith(f"{raw}: page size 4096, but {dump} has 512;")
    with pytest.raises(UsageError, match="no image"):
        import_images([], tmp_path / "out")
    with pytest.raises(ImageError, match="gone: No such file"):
        import_images([dump, tmp_path / "gone"], tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        import_images(dump, raw)
    assert raw.read_bytes() == bytes(8192)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["guest.mem", "small"]


def test_paths_are_closed_and_images_stay_open(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "one", None, "ab")
    with open_image(dump) as image:
        gc.collect()
        before = open_files()
        items: list[str | os.PathLike[str] | Image] = [dump, image, str(dump)]
        import_images(items, tmp_path / "all")
        gc.collect()
        assert open_files() == before
        assert len(list(image.batches())) == 1
    assert len(rows(tmp_path / "all")) == 6


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BATCH_BYTES", PAGE)
    dump = write_dump(tmp_path / "one", None, "abcd")

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_images(dump, tmp_path / "all", progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    path = tmp_path / "guest.mem"
    path.write_bytes(np.arange(1 << 18, dtype=np.uint32).tobytes())
    done: list[int] = []
    with pytest.raises(OutputError, match=r"dump: needs 1055232 bytes, \d+ are free"):
        import_images(path, small_disk / "dump", progress=lambda now, total: done.append(now))
    assert not any(done)
    # Room for the pages, but not for what else is in a dump.
    with path.open("r+b") as file:
        file.truncate((os.statvfs(small_disk).f_bfree - 1) * 4096)
    with pytest.raises(OutputError, match="dump: No space left on device"):
        import_images(path, small_disk / "dump")
    assert not list(small_disk.iterdir())


def test_a_dump_may_replace_its_own_input(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "one", [3, U, 3], "aba")
    before = rows(path)
    import_images(path, path, force=True)
    assert rows(path) == before


def test_many_names_and_odd_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff.mem")
    Path(odd).write_bytes(bytes(4096))
    monkeypatch.setattr(importing, "_MAX_NAMES", 2)
    import_images([odd] * 5, tmp_path / "dump")
    assert (
        metadata(tmp_path / "dump")["gpudedup.source"] == r"import of \xff.mem, \xff.mem and 3 more"
    )
    assert rows(tmp_path / "dump")[0]["mapping"]["owner"] == r"\xff.mem"
