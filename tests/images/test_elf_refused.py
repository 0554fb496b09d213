"""ELF cores that contradict themselves: an ImageError of one line that names the offset."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from gpudedup.errors import ImageError
from gpudedup.images import elf

from .common import all_pages, joined, open_files
from .cores import NOTE, PAGE, Header, core, load, note, opened, prpsinfo


def refused(tmp_path: Path, data: bytes) -> ImageError:
    before = open_files()
    with pytest.raises(ImageError) as caught, opened(tmp_path, data):
        pass
    assert open_files() == before
    assert str(tmp_path / "a.core") in str(caught.value)
    return caught.value


GOOD = [load(0x1000, 0x10000, PAGE), load(0x2000, 0x20000, PAGE)]
SECOND = 64 + 56


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        (b"\x7fELG" + bytes(100), 0, "not an ELF file"),
        (b"\x7fE", 0, "not an ELF file"),
        (core(GOOD)[:63], 63, "ends within the ELF header"),
        (core(GOOD, bits=1), 4, "a 32-bit ELF file; only 64-bit little-endian cores"),
        (core(GOOD, bits=9), 4, "unknown class 9"),
        (core(GOOD, order=2), 5, "big-endian"),
        (core(GOOD, type=3), 16, "a shared object, not a core"),
        (core(GOOD, type=77), 16, "type 77, not a core"),
        (core(GOOD, phentsize=32), 54, "program headers of 32 bytes"),
        (core(GOOD, phoff=1 << 63), 32, "beyond the end"),
        (core(GOOD)[:100], 32, "beyond the end"),
        (core([]), 56, "without any memory"),
        (core([GOOD[0], load(0x2000, 0, 2 * PAGE, PAGE)]), SECOND, "p_filesz 8192 > p_memsz 4096"),
        (core([GOOD[0], load(2**64 - PAGE, 0, 2 * PAGE)], size=8192), SECOND, "exceeds 64 bits"),
        (core([GOOD[0], load(0x2000, 2**64 - PAGE, 2 * PAGE)]), SECOND, "address + p_memsz"),
        (core([GOOD[0], load(0x1FFF, 0, PAGE)]), SECOND, "overlap"),
        (core([load(0x2000, 0, PAGE), load(0x1000, 0, 1 << 40)], size=9999), 64, "overlap"),
    ],
)
def test_a_lying_header_is_named(tmp_path: Path, data: bytes, offset: int, reason: str) -> None:
    error = refused(tmp_path, data)
    assert (error.offset, reason in error.reason) == (offset, True), str(error)


@pytest.mark.parametrize(
    ("notes", "offset", "reason"),
    [
        (struct.pack("<III", 5, 4000, 1) + b"CORE\0\0\0\0", 176, "exceeds its segment"),
        (struct.pack("<III", 2**32 - 1, 0, 1), 176, "exceeds its segment"),
        (note(b"CORE", 0x46494C45, struct.pack("<QQ", 2**60, 1)), 196, "files exceeds its note"),
        (note(b"CORE", 0x46494C45, b"1234"), 196, "files exceeds its note"),
        (note(b"CORE", 0x46494C45, struct.pack("<5Q", 1, 1, 0, 1, 0)), 196, "only 0 paths"),
    ],
)
def test_a_lying_note_is_named(tmp_path: Path, notes: bytes, offset: int, reason: str) -> None:
    error = refused(tmp_path, core(GOOD[:1], notes))
    assert (error.offset, reason in error.reason) == (offset, True), str(error)


def test_notes_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie: Header = (NOTE, 0, 0x1000, 0, 0, 1 << 50, 0, 4)
    error = refused(tmp_path, core([GOOD[0], lie], size=0x2000))
    assert (error.offset, "larger than the file" in error.reason) == (SECOND, True)
    monkeypatch.setattr(elf, "TABLE_LIMIT", 200)
    error = refused(tmp_path, core(GOOD[:1], prpsinfo(b"x", 1, 0) * 2))
    assert (error.offset, "too many" in error.reason) == (64, True)
    monkeypatch.setattr(elf, "TABLE_LIMIT", 100)
    error = refused(tmp_path, core(GOOD))
    assert (error.offset, "too many" in error.reason) == (56, True)


def test_a_machines_segments_may_share_bytes_at_one_address(tmp_path: Path) -> None:
    def machine(paddr: int) -> bytes:
        return core([load(0x1000, 0, 4 * PAGE, paddr=PAGE), load(0x2000, 0, PAGE, paddr=paddr)])

    with opened(tmp_path, machine(2 * PAGE)) as image:
        frame = joined(image).frame
        assert frame is not None
        assert frame.tolist() == [1, 2, 3, 4, 2]
        pages = all_pages(image)
        assert (pages[4] == pages[1]).all()
    assert "overlap" in refused(tmp_path, machine(3 * PAGE)).reason


def test_mapping_the_file_without_end_is_refused(tmp_path: Path) -> None:
    loads = [load(0x40000, n << 30, 64 * PAGE, paddr=1 << 20) for n in range(3000)]
    assert "more than 1024 times" in refused(tmp_path, core(loads)).reason
