"""A damaged merged dump: nothing is made of it, and it never gets a valid digest."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import gpudedup as gd
from gpudedup.errors import DamagedError, ExitCode, GpudedupError, ImageError
from gpudedup.images.dumps import merged_seal
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.dumps.merged_seal import digests_of
from gpudedup.images.opening import open_image
from gpudedup.merged import merging, restoring
from gpudedup.merged.opened import open_merged_image
from gpudedup.mm.manager import MemoryManager

from .common import PAGE, as_others_see, sha, write_dump
from .test_restoring import as_merged_by_pyarrow

LETTERS = [1, 2, 0, 1, 3, 0, 4, 2, 5, 1, 6, 0, 7, 3, 3]


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    a = write_dump(tmp_path / "a", LETTERS)
    b = write_dump(tmp_path / "b", [20, 21, 1])
    gd.merge_images([a, b], tmp_path / "m")
    return tmp_path / "m"


def overwrite(path: Path, offset: int, data: bytes = b"\xff\x00\xff") -> None:
    """Overwrite bytes, at least one of them with another value."""
    with path.open("r+b") as file:
        file.seek(offset)
        if file.read(len(data)) == data:
            data = data[::-1]
        file.seek(offset)
        file.write(data)


def place_of(path: Path, frame: int) -> int:
    with open_image(path) as image:
        return image.offset_of_stored(frame)


def restore(merged: Path, out: Path) -> None:
    gd.restore(merged, out, force=True)


def restore_raw(merged: Path, out: Path) -> None:
    gd.restore_raw(merged, out, force=True)


def merge(merged: Path, out: Path) -> None:
    gd.merge_images(merged, out, force=True, backend="cpu")


def merge_with_another(merged: Path, out: Path) -> None:
    gd.merge_images([merged.with_name("b"), merged], out, force=True, backend="cpu")


def merge_over_itself(merged: Path, out: Path) -> None:
    gd.merge_images([merged, merged.with_name("b")], merged, force=True, backend="cpu")


def import_(merged: Path, out: Path) -> None:
    gd.import_images(merged, out, force=True)


WRITERS = [restore, restore_raw, merge, merge_with_another, merge_over_itself, import_]


@pytest.mark.parametrize("write", WRITERS)
def test_three_overwritten_bytes_of_a_frame(
    merged: Path, tmp_path: Path, write: Callable[[Path, Path], None]
) -> None:
    offset = place_of(merged, 4)
    overwrite(merged, offset + 100)
    out = tmp_path / "out"
    if write is restore_raw:
        out.mkdir()
        (out / "a[1].raw").write_text("precious")
    else:
        out.write_text("precious")
    before = everything(tmp_path)
    with pytest.raises(DamagedError) as caught:
        write(merged, out)
    assert caught.value.exit_code == ExitCode.PARTLY_UNREADABLE
    assert caught.value.frames == (4,)
    # Letter 4 is at one row: the seventh, index 18 of the second mapping.
    assert str(caught.value) == (
        f"{merged}: offset {offset}: frame 4 does not match its digest; 1 page has it:"
        " 18 of 'a[1]' '/lib/a'; nothing was written"
    )
    assert everything(tmp_path) == before
    assert gd.verify(merged).damaged_frames == 1


def everything(folder: Path) -> dict[str, str]:
    """Return the hash of each file below a folder, by name; of folders the empty word."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): "" if p.is_dir() else sha(p) for p in paths}


@pytest.mark.parametrize("write", WRITERS)
def test_three_overwritten_bytes_anywhere(
    merged: Path, tmp_path: Path, write: Callable[[Path, Path], None]
) -> None:
    """Also of the page table, which would give a page another's bytes, and of the seal.

    Not of the first bytes: without "ARROW1" there it is a raw image, as good as any.
    """
    rng = random.Random(13)
    whole = merged.read_bytes()
    first, frames = place_of(merged, 0), 10
    rest = [*range(8, first, 97), *range(first + frames * PAGE, len(whole) - 3, 5)]
    for offset in [*rest, *(rng.randrange(first, first + frames * PAGE) for _ in range(10))]:
        overwrite(merged, offset, rng.randbytes(3))
        damaged = sha(merged)
        with pytest.raises(GpudedupError) as caught:
            write(merged, tmp_path / "out")
        message = str(caught.value)
        assert message.startswith(f"{merged}: ")
        assert "\n" not in message
        assert not (tmp_path / "out").exists()
        assert sha(merged) == damaged
        merged.write_bytes(whole)
    if write is not restore_raw:
        write(merged, tmp_path / "out")


def test_many_damaged_frames_are_counted(tmp_path: Path) -> None:
    gd.merge_images(write_dump(tmp_path / "d", [*range(60), *range(60)]), tmp_path / "m")
    for frame in range(10, 40):
        overwrite(tmp_path / "m", place_of(tmp_path / "m", frame) + frame)
    with pytest.raises(DamagedError) as caught:
        gd.restore(tmp_path / "m", tmp_path / "out")
    assert caught.value.frames == tuple(range(10, 40))
    assert (
        "30 frames do not match their digests: 10, 11, 12 and 27 more; 60 pages have them:"
        " 30 of 'a[1]' '[heap]', 33 of 'a[1]' '/lib/a', 36 of 'b[2]' '[heap]' and 57 more;"
    ) in str(caught.value)


def test_an_input_without_damaged_frames_can_be_restored(merged: Path, tmp_path: Path) -> None:
    overwrite(merged, place_of(merged, 2) + 7)
    with pytest.raises(DamagedError, match="frame 2 "):
        gd.restore(merged, tmp_path / "out", input="a")
    gd.restore(merged, tmp_path / "out", input="b")
    assert sha(tmp_path / "out") == sha(tmp_path / "b")
    assert gd.restore_raw(merged, tmp_path / "raw", input=1)


def test_a_manager_takes_no_damaged_page(merged: Path) -> None:
    overwrite(merged, place_of(merged, 2) + 7)
    with open_image(merged) as image, pytest.raises(DamagedError, match="frame 2 "):
        MemoryManager.from_image(image)


@pytest.mark.parametrize("pages", [1, 3])
def test_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    monkeypatch.setattr(restoring, "PIECE_BYTES", pages * PAGE)
    gd.merge_images(write_dump(tmp_path / "d", range(1, 60)), tmp_path / "m")
    overwrite(tmp_path / "m", place_of(tmp_path / "m", 50))
    overwrite(tmp_path / "m", place_of(tmp_path / "m", 20))
    for call in (gd.restore, gd.restore_raw):
        with pytest.raises(DamagedError) as caught:
            call(tmp_path / "m", tmp_path / "out")
        assert caught.value.frames == (20, 50)
        assert not (tmp_path / "out").exists()


def test_a_file_by_others_has_no_digests(tmp_path: Path, merged: Path) -> None:
    """As the docs allow: also one that keeps our metadata."""
    for path in (as_merged_by_pyarrow(tmp_path / "theirs"), tmp_path / "copy"):
        if path.name == "copy":
            with pa.memory_map(str(merged)) as source:
                ours = pa.ipc.open_file(source)
                with pa.ipc.new_file(str(path), ours.schema) as copy:
                    for at in range(ours.num_record_batches):
                        copy.write_batch(ours.get_batch(at))
        with open_merged_image(path) as image:
            assert image.sealed() is None
        gd.restore(path, tmp_path / "out", force=True)
        assert as_others_see(tmp_path / "out") == as_others_see(path)
        assert gd.restore_raw(path, tmp_path / "raw", force=True)
        gd.merge_images(path, tmp_path / "again", force=True)
        assert not gd.verify(tmp_path / "again").damage


@pytest.mark.parametrize("most", [merged_seal.MOST_KEPT, 0])
def test_digests_of_frames_far_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(merged_seal, "MOST_KEPT", most)
    pages = np.zeros((5000, PAGE), np.uint8)
    pages[:, :8] = np.arange(5000, dtype=np.uint64)[:, np.newaxis].view(np.uint8)
    gd.merge_images(pages, tmp_path / "m")
    from gpudedup.compiled.digests import digest_pages

    expected = digest_pages(pages)
    with open_merged_image(tmp_path / "m") as image:
        seal = image.sealed()
        assert seal
        assert (seal.kept is None) == (most == 0)
        for wanted in ([], [4999], [0, 1, 2], [3000, 7, 4999, 7, 8, 0], [4999, 4998], [1024, 0]):
            frames = np.array(wanted, np.int64)
            assert (digests_of(image, seal, frames) == expected[frames]).all()
    overwrite(tmp_path / "m", place_of(tmp_path / "m", 4000))
    with open_merged_image(tmp_path / "m") as image:
        out = np.empty((5000, PAGE), np.uint8)
        image.read_pages(0, out[:4000])
        assert (out[:4000] == pages[:4000]).all()
        with pytest.raises(DamagedError, match="frame 4000 "):
            image.read_pages(3999, out[:2])


# Rows that name mappings, or frame numbers, of another input.


def contradicting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> Path:
    """Write a merged dump of two inputs whose seal is right and whose rows are not."""
    a = write_dump(tmp_path / "a", LETTERS, frame=range(100, 115))
    b = write_dump(tmp_path / "b", [2, 9, 10], frame=range(3))
    real = merging._rows
    with monkeypatch.context() as patched:
        patched.setattr(merging, "_rows", lambda *given: map(change, real(*given)))
        gd.merge_images([a, b], tmp_path / "m")
    return tmp_path / "m"


def test_rows_that_name_mappings_of_another_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = contradicting(
        tmp_path, monkeypatch, lambda piece: replace(piece, mapping=np.int32(9) - piece.mapping)
    )
    line = f"{merged}: row 0 is of input 0, its mapping is not: mapping 9"
    other = f"{merged}: row 15 is of input 1, its mapping is not: mapping 4"
    for call, expected in (
        (lambda: gd.restore(merged, tmp_path / "out", input=0), line),
        (lambda: gd.restore(merged, tmp_path / "out", input=1), other),
        (lambda: gd.restore_raw(merged, tmp_path / "out"), line),
        (lambda: gd.restore_raw(merged, tmp_path / "out", input=1), line),
        (lambda: gd.merge_images(merged, tmp_path / "out"), line),
    ):
        with pytest.raises(ImageError) as caught:
            call()
        assert str(caught.value) == expected
        assert caught.value.exit_code == ExitCode.FAILED
        assert not (tmp_path / "out").exists()
    found = gd.verify(merged)
    assert (found.damage, found.damaged_frames) == ([line], 0)
    # All of it is one dump still: its rows name mappings that it has.
    gd.restore(merged, tmp_path / "out")
    assert gd.scan(tmp_path / "out").totals.pages == 18


def test_frame_numbers_below_their_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = contradicting(
        tmp_path, monkeypatch, lambda piece: replace(piece, frame=piece.frame - np.uint64(100))
    )
    line = f"{merged}: row 15 is of input 1, whose frames are numbered from 115: frame 15"
    with pytest.raises(ImageError) as caught:
        gd.restore(merged, tmp_path / "out", input=1)
    assert str(caught.value) == line
    assert not (tmp_path / "out").exists()
    assert gd.verify(merged).damage == [line]


def test_what_is_right_is_told_to_be_right(merged: Path) -> None:
    with open_merged_image(merged) as image:
        assert isinstance(image, MergedImage)
        assert image.sealed() is image.sealed() is not None
    assert gd.verify(merged).damage == []
