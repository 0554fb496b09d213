"""Verify finds every changed bit of a merged dump."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gpudedup as gd
from gpudedup.errors import ExitCode, GpudedupError, ImageError, UsageError
from gpudedup.images.dumps.merged import MergedImage
from gpudedup.images.opening import open_image
from gpudedup.merged import verifying
from gpudedup.merged.opened import open_merged_image

from .common import PAGE, write_dump
from .test_restoring import as_merged_by_pyarrow

LETTERS = [1, 2, 0, 1, 3, 0, 4, 2, 5, 1, 6, 0, 7, 3, 3]


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    gd.merge_images(write_dump(tmp_path / "d", LETTERS, frame=list(range(15))), tmp_path / "m")
    return tmp_path / "m"


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << at % 8)]))


def test_an_intact_one(merged: Path) -> None:
    found = gd.verify(merged, threads=2)
    assert (found.pages, found.frames, found.mappings, found.damage) == (15, 8, 5, [])


def damage(path: Path) -> list[str]:
    """Return the lines of damage, or the reason why the file is refused."""
    try:
        return gd.verify(path, threads=1).damage
    except GpudedupError as error:
        return [str(error)]


def test_a_flipped_bit_anywhere_is_found(merged: Path) -> None:
    size = merged.stat().st_size
    with open_image(merged) as image:
        first = image.extents[0].offset
        stop = first + image.stored * PAGE
    # Every byte outside the frames but padding, and some bytes in frames.
    places = [*range(700), *range(first, stop, 97), *range(stop, size)]
    for at in places:
        flip(merged, at)
        lines = damage(merged)
        assert lines, at
        assert all(line.startswith(f"{merged}: ") and line.isprintable() for line in lines)
        if first <= at < stop:
            frame = (at - first) // PAGE
            offset = first + frame * PAGE
            assert lines == [f"{merged}: offset {offset}: frame {frame} does not match its digest"]
        flip(merged, at)
    assert not gd.verify(merged).damage


def code_of(run: Callable[[], object]) -> int:
    """Return the exit code with which a command ends that does ``run``."""
    try:
        found = run()
    except GpudedupError as error:
        return error.exit_code
    is_damaged = isinstance(found, verifying.Verified) and found.damage
    return ExitCode.PARTLY_UNREADABLE if is_damaged else ExitCode.DONE


def test_it_ends_as_a_restore_does(merged: Path, tmp_path: Path) -> None:
    """With code 1 where the file cannot be opened, with 3 where it is damaged."""
    with open_image(merged) as image:
        first = image.extents[0].offset
        stop = first + image.stored * PAGE
    codes = Counter[int]()
    for at in [*range(0, 700, 7), *range(first, stop, 997), *range(stop, merged.stat().st_size, 3)]:
        flip(merged, at)
        code = code_of(lambda: gd.verify(merged, threads=1))
        assert code == code_of(lambda: gd.restore(merged, tmp_path / "back", force=True)), at
        codes[code] += 1
        flip(merged, at)
    assert set(codes) == {ExitCode.FAILED, ExitCode.PARTLY_UNREADABLE}


def test_a_disk_that_fails_is_damage(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any read of the page table: frames are verified nevertheless."""
    with open_image(merged) as image:
        stop = image.extents[0].offset + image.stored * PAGE
    genuine, failing = os.pread, [False]

    def fail(fd: int, size: int, offset: int) -> bytes:
        if failing[0] and offset == stop:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return genuine(fd, size, offset)

    def opened(path: Path) -> MergedImage:
        image = open_merged_image(path)
        failing[0] = True
        return image

    monkeypatch.setattr(os, "pread", fail)
    monkeypatch.setattr(verifying, "open_merged_image", opened)
    found = gd.verify(merged)
    assert found.damage[0] == f"{merged}: offset {stop}: {os.strerror(errno.EIO)}"
    assert (found.frames, found.damaged_frames) == (8, 0)


def test_the_padding_counts_too(merged: Path) -> None:
    with open_image(merged) as image:
        first = image.extents[0].offset
    flip(merged, first - 1)
    assert "SHA-256 differs" in gd.verify(merged).damage[0]


@pytest.mark.parametrize("chunk", [1, 3 * PAGE])
@pytest.mark.parametrize("threads", [1, 3])
def test_many_damaged_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, threads: int
) -> None:
    monkeypatch.setattr(verifying, "CHUNK_BYTES", chunk)
    gd.merge_images(write_dump(tmp_path / "d", range(60)), tmp_path / "m")
    with open_image(tmp_path / "m") as image:
        for frame in range(10, 40):
            flip(tmp_path / "m", image.offset_of_stored(frame) + frame)
    told: list[tuple[int, int]] = []
    found = gd.verify(tmp_path / "m", threads=threads, progress=lambda a, b: told.append((a, b)))
    assert found.damaged_frames == 30
    assert len(found.damage) == 21
    assert [line.split(": ")[2].split()[1] for line in found.damage[:20]] == [
        str(n) for n in range(10, 30)
    ]
    assert found.damage[20] == f"{tmp_path / 'm'}: and 10 more such frames"


def test_what_has_no_seal(tmp_path: Path) -> None:
    merged = as_merged_by_pyarrow(tmp_path / "m")
    with pytest.raises(ImageError, match=r"offset \d+: no seal: not written by gpudedup"):
        gd.verify(merged)
    with pytest.raises(UsageError, match="threads 0"):
        gd.verify(merged, threads=0)


def test_digests_are_those_of_the_reference(merged: Path) -> None:
    import xxhash

    data = merged.read_bytes()
    end = data.rindex(b"GDSEAL01") + 8
    digests = data[end - 48 - 8 * 16 : end - 48]
    with open_image(merged) as image:
        frames = np.empty((8, PAGE), np.uint8)
        image.read_stored(np.arange(8), frames)
    assert digests == b"".join(xxhash.xxh3_128_digest(frame.tobytes()) for frame in frames)
