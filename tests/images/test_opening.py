"""Formats are recognised by content, and refusals are one line."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gpudedup.errors import ImageError, UsageError
from gpudedup.images.opening import UNSUPPORTED, open_image

from .common import open_files
from .cores import core, load
from .dumps.arrow_files import ours
from .dumps.test_merged import ours as merged


def test_the_name_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "dump.arrow"
    path.write_bytes(bytes(8192))
    with open_image(path) as image:
        assert (image.format, image.page_size, image.pages) == ("raw", 4096, 2)
    path.write_bytes(core([load(0x1000, 0x400000, 4096)]))
    with open_image(path) as image:
        assert (image.format, image.page_size, image.pages) == ("elf", 4096, 1)
    path.unlink()
    ours(path, (3,))
    path.rename(tmp_path / "a.mem")
    with open_image(tmp_path / "a.mem") as image:
        assert (image.format, image.page_size, image.pages) == ("arrow", 512, 3)


BEGINNINGS = {
    b"\xff\xff\xff\xff\x10\x03\0\0": "an Arrow stream",
    b"FEA1\0\0\0\0": "Feather version 1",
    b"PAR1\x15\x04": "Parquet",
    b"EMiL\x01\0\0\0": "LiME",
    b"AVML\x02\0\0\0": "AVML",
    b"KDUMP   \x06\0\0\0": "kdump-compressed",
    b"DISKDUMP": "diskdump",
    b"makedumpfile\0\0\0\0": "flattened kdump",
    b"QEVM\0\0\0\x03": "QEMU migration stream",
    b"LibvirtQemudSave": "libvirt save file",
    b"PAGEDU64": "Windows crash dump",
    b"PAGEDUMP": "Windows crash dump",
    b"\x1f\x8b\x08": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ\0": "compressed with xz",
}


def test_every_beginning_is_tested() -> None:
    assert {magic for magic in UNSUPPORTED if any(b.startswith(magic) for b in BEGINNINGS)} == set(
        UNSUPPORTED
    )


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_other_formats_are_told_and_can_be_overruled(tmp_path: Path, beginning: bytes) -> None:
    path = tmp_path / "image"
    for content in (beginning.ljust(8192, b"\x55"), beginning):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=BEGINNINGS[beginning]) as caught:
            open_image(path)
        assert caught.value.offset == 0
    path.write_bytes(beginning.ljust(8192, b"\x55"))
    with open_image(path, format="raw") as image:
        assert image.pages == 2


@pytest.mark.parametrize("content", [b"", b"A", b"ARROW", b"\x7fEL", b"\xff\xff\xff", b"EMi"])
def test_the_beginning_of_a_beginning_is_raw(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(content.ljust(4096, b"x"))
    with open_image(path) as image:
        assert (image.format, image.pages) == ("raw", 1)


@pytest.mark.parametrize("write", [ours, merged])
@pytest.mark.parametrize("overwritten", [1, 8, 600])
def test_a_dump_whose_beginning_was_overwritten(
    tmp_path: Path, write: Callable[..., object], overwritten: int
) -> None:
    """It would be scanned as a raw image, with metadata as pages."""
    path = tmp_path / "dump"
    write(path, counts=(3, 4))
    with path.open("r+b") as file:
        file.write(bytes(overwritten))
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(caught.value) == (
        f"{path}: offset 0: damaged: an Arrow file by its end, but not by its beginning"
        " (--format raw scans its bytes as they lie)"
    )
    with pytest.raises(ImageError, match="offset 0: damaged: an Arrow file begins with ARROW1"):
        open_image(path, format="arrow")
    with open_image(path, format="raw", page_size=512) as image:
        assert image.pages == path.stat().st_size // 512


@pytest.mark.parametrize("write", [ours, merged])
def test_a_dump_whose_end_is_cut_off_is_no_raw_image(
    tmp_path: Path, write: Callable[..., object]
) -> None:
    path = tmp_path / "dump"
    write(path, counts=(3, 4))
    for size in (path.stat().st_size - 1, 5000, 16, 8):
        os.truncate(path, size)
        with pytest.raises(ImageError, match=f"offset {size}: cut off"):
            open_image(path)


def test_a_core_whose_end_is_cut_off_is_no_raw_image(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(core([load(0x1000, 0x400000, 8192)]))
    os.truncate(path, 0x2000)
    with open_image(path) as image:
        assert (image.format, image.pages, image.absent.unreadable) == ("elf", 1, 1)
    os.truncate(path, 0x1000)
    with open_image(path) as image:
        assert (image.format, image.pages, image.absent.unreadable) == ("elf", 0, 2)
    for size in (100, 16, 4):
        os.truncate(path, size)
        with pytest.raises(ImageError, match="offset"):
            open_image(path)


def test_a_format_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    with pytest.raises(ImageError, match="not an ELF file"):
        open_image(path, format="elf")
    with pytest.raises(ImageError, match="an Arrow file ends with ARROW1"):
        open_image(path, format="arrow")
    with pytest.raises(UsageError, match="format 'lime': not one of arrow, elf, raw"):
        open_image(path, format="lime")


@pytest.mark.parametrize("page_size", [0, 1, 256, 511, 513, 4097, 4 << 20, -4096])
@pytest.mark.parametrize("format", [None, "raw"])
def test_an_impossible_page_size(tmp_path: Path, page_size: int, format: str | None) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    before = open_files()
    with pytest.raises(UsageError, match=f"page size {page_size}: not a power of two"):
        open_image(path, format=format, page_size=page_size)
    assert open_files() == before


@pytest.mark.parametrize("format", [None, "raw", "elf", "arrow"])
def test_what_is_no_file(tmp_path: Path, format: str | None) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    before = open_files()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, reason in (
            ("missing", "No such file or directory"),
            ("empty/below", "Not a directory"),
            ("n" * 300, "File name too long"),
            ("loop", "Too many levels of symbolic links"),
            ("directory", "is a directory"),
            ("empty", "offset 0: empty file"),
            ("fifo", "not a regular file"),
            ("socket", "No such device or address"),
        ):
            with pytest.raises(ImageError) as caught:
                open_image(tmp_path / name, format=format)
            assert str(caught.value) == f"{tmp_path / name}: {reason}"
    with pytest.raises(ImageError, match="/dev/null: not a regular file"):
        open_image(os.devnull, format=format)
    assert open_files() == before


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Root may read anything, so the refusal is simulated.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(caught.value) == f"{path}: Permission denied"


def test_a_disk_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    before = open_files()

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(caught.value) == f"{path}: offset 0: {os.strerror(errno.EIO)}"
    assert open_files() == before


def test_a_file_whose_size_cannot_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mem"
    path.write_bytes(bytes(4096))

    def fail(fd: int) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = open_files()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fail)
        with pytest.raises(ImageError) as caught:
            open_image(path)
    assert str(caught.value) == f"{path}: {os.strerror(errno.EIO)}"
    assert open_files() == before
