"""ELF cores: a synthetic one for every rule."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from gpudedup.errors import ImageError
from gpudedup.images import elf
from gpudedup.images.elf import open_elf

from .common import all_pages, joined
from .cores import (
    NOTE,
    PAGE,
    Header,
    addresses,
    auxv,
    core,
    elf_header,
    file_note,
    load,
    note,
    opened,
    prpsinfo,
)


def test_a_process(tmp_path: Path) -> None:
    notes = (
        prpsinfo(b"redis-server", 812, 1000)
        + auxv(vdso=0x7F00_0000_3000, random=0x7FFF_0000_0123)
        + file_note((0x400000, 0x402000, b"/usr/bin/redis"), (0x500000, 0x501000, b"/dev/shm/x"))
    )
    loads = [
        load(0x1238, 0x400000, PAGE, 2 * PAGE, flags=5),
        load(0x2238, 0x500000, PAGE),
        load(0x3238, 0x600000, 3 * PAGE),
        load(0x6238, 0x7F00_0000_1000, 2 * PAGE, flags=4),
        load(0x8238, 0x7F00_0000_3000, PAGE, flags=5),
        load(0x9238, 0x7FFF_0000_0000, PAGE),
        load(0xA238, 0xFFFF_FFFF_FF60_0000, PAGE, flags=1),
    ]
    data = core(loads, notes)
    with opened(tmp_path, data) as image:
        assert image.format == "elf"
        assert {(m.owner, m.domain) for m in image.mappings} == {("redis-server[812]", "uid:1000")}
        assert [(m.kind, m.name, m.flags) for m in image.mappings] == [
            ("file", "/usr/bin/redis", "rd ex"),
            ("shmem", "/dev/shm/x", "rd wr"),
            ("anon", "", "rd wr"),
            ("kernel", "[vvar]", "rd"),
            ("kernel", "[vdso]", "rd ex"),
            ("anon", "[stack]", "rd wr"),
            ("kernel", "[vsyscall]", "ex"),
        ]
        assert [m.start for m in image.mappings] == [s[3] for s in loads]
        assert image.absent.as_dict() == {"holes": 0, "excluded": 1, "unreadable": 0}
        columns = joined(image)
        assert columns.frame is None
        assert columns.mapping.tolist() == [0, 1, 2, 2, 2, 3, 3, 4, 5, 6]
        assert columns.index.tolist() == [0, 0, 0, 1, 2, 0, 1, 0, 0, 0]
        assert all_pages(image).tobytes() == data[0x1238:]
        content = [page for b in image.batches() for page in b.column("content").to_pylist()]
        assert b"".join(content) == data[0x1238:]


def test_a_file_must_cover_the_whole_segment(tmp_path: Path) -> None:
    notes = file_note((0x10000, 0x11000, b"/half"), (0x8000, 0x9000, b"/below\xff"))
    data = core([load(0x1000, 0x10000, 2 * PAGE), load(0x3000, 0x8000, PAGE)], notes)
    with opened(tmp_path, data) as image:
        assert [(m.kind, m.name) for m in image.mappings] == [("anon", ""), ("file", "/below\\xff")]
        assert image.mappings[0].owner == "a"


MACHINES = {
    "QEMU": (note(b"CORE", 1, bytes(336)) + note(b"QEMU", 0, bytes(440)), 0),
    "vmcore": (note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n"), 0),
    "kcore": (prpsinfo(b"vmlinux", 0, 0) + note(b"VMCOREINFO", 0, b""), 0),
    "p_paddr only": (b"", 0x10000),
}


@pytest.mark.parametrize("maker", MACHINES)
def test_a_machine_has_frames(tmp_path: Path, maker: str) -> None:
    notes, base = MACHINES[maker]
    loads = [
        load(0x1010, 0xFFFF_8880_0000_0000, 4 * PAGE, paddr=base),
        load(0x5010, 0xFFFF_FFFF_8100_0000, 2 * PAGE, 3 * PAGE, flags=0, paddr=base + PAGE),
    ]
    with opened(tmp_path, core(loads, notes)) as image:
        assert {(m.owner, m.kind, m.name) for m in image.mappings} == {("a", "guest", "memory")}
        assert [m.start for m in image.mappings] == [base, base + PAGE]
        frame = joined(image).frame
        assert frame is not None
        first = base // PAGE
        assert frame.tolist() == [first, first + 1, first + 2, first + 3, first + 1, first + 2]
        assert image.absent.excluded == 1
        assert not image.notes


def test_without_physical_address_no_frame(tmp_path: Path) -> None:
    loads = [
        load(0x1000, 0xFFFF_C000_0000_0000, PAGE, paddr=2**64 - 1),
        load(0x2000, 0xFFFF_8880_0000_0000, PAGE, paddr=0x5000),
    ]
    with opened(tmp_path, core(loads, note(b"VMCOREINFO", 0, b""))) as image:
        assert [c.frame is None for c in image.columns()] == [True, False]
        assert image.mappings[0].start == 0xFFFF_C000_0000_0000


def test_a_process_note_outweighs_physical_addresses(tmp_path: Path) -> None:
    data = core([load(0x1000, 0x400000, PAGE, paddr=0x9000)], prpsinfo(b"x", 1, 0))
    with opened(tmp_path, data) as image:
        assert image.mappings[0].kind == "anon"
        assert image.mappings[0].start == 0x400000


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 8192, 65536, 2 << 20])
@pytest.mark.parametrize(
    ("address", "filesz", "memsz"),
    [
        (0x400000, 5 * PAGE, 9 * PAGE),
        (0x3FF000, 0x41000, 0x41000),
        (0x9FC00, 0x700, 0x700),
        (0x401234, 0x2800, 0x5000),
        (0x401234, 0x10, 0x10),
        (0x400000, 0, 3 * PAGE),
        (0x400800, 0, 0),
        (2**64 - 0x3000, 0x3000, 0x3000),
    ],
)
@pytest.mark.parametrize("there", [1.0, 0.61, 0.0])
def test_every_page_is_counted_once(
    tmp_path: Path, page_size: int, address: int, filesz: int, memsz: int, there: float
) -> None:
    offset = 0x1238
    in_file = int(filesz * there)
    whole = core([load(offset, address, filesz, memsz)], size=offset + in_file)
    with opened(tmp_path, whole, page_size) as image:
        touched = range(address // page_size, -(-(address + memsz) // page_size)) if memsz else ()
        rows, excluded, cut, parts = [], 0, 0, 0
        for page in touched:
            begin, end = page * page_size, (page + 1) * page_size
            if begin >= address + filesz or not filesz:
                excluded += 1
            elif begin < address or end > address + filesz:
                parts += 1
            elif end > address + in_file:
                cut += 1
            else:
                rows.append(begin)
        assert addresses(image) == rows if rows else not image.pages
        assert image.absent.as_dict() == {
            "holes": 0,
            "excluded": excluded,
            "unreadable": cut + parts,
        }
        assert len(image.losses) == bool(cut) + bool(parts)
        if cut:
            assert f"offset {len(whole)}: the file ends here; {cut} pages of 1 " in str(
                image.losses[0]
            )
        if parts:
            inside = (address + filesz) % page_size
            place = offset if address % page_size else offset + filesz - inside
            assert f"offset {place}: {parts} pages" in str(image.losses[-1])
        for row, begin in enumerate(rows):
            at = offset + begin - address
            page_bytes = np.empty((1, page_size), np.uint8)
            image.read_pages(row, page_bytes)
            assert page_bytes.tobytes() == whole[at : at + page_size]


def test_a_cut_file_keeps_what_is_there(tmp_path: Path) -> None:
    loads = [load(0x1000 + n * 4 * PAGE, n << 20, 4 * PAGE) for n in range(1, 5)]
    data = core(loads, prpsinfo(b"x", 1, 0))
    with opened(tmp_path, data[: loads[1][2] + PAGE + 100]) as image:
        assert addresses(image) == [*range(1 << 20, (1 << 20) + 4 * PAGE, PAGE), 2 << 20]
        assert image.absent.unreadable == 3 + 8
        (line,) = image.losses
        assert "the file ends here; 11 pages of 3 segments are missing" in str(line)


def test_notes_may_be_cut_off(tmp_path: Path) -> None:
    notes = prpsinfo(b"x", 7, 0) + file_note((0x400000, 0x401000, b"/a"))
    at = 0x1000 + PAGE
    headers: list[Header] = [(NOTE, 0, at, 0, 0, len(notes), 0, 1), load(0x1000, 0x400000, PAGE)]
    data = core(headers, size=at) + notes
    with opened(tmp_path, data) as image:
        assert (image.mappings[0].owner, image.mappings[0].name) == ("x[7]", "/a")
        assert len(image.notes) == 1
    for size in (at, at + 5, len(data) - 9):
        with opened(tmp_path, data[:size]) as image:
            assert image.pages == 1
            assert image.mappings[0].owner == ("x[7]" if size > at + 160 else "a")
            assert f"offset {size}: the file ends before its notes" in image.notes[0]


def test_more_segments_than_16_bits_count(tmp_path: Path) -> None:
    count = 70_000
    start = 64 + 56 * count
    loads = [load(start + 64 + n, n * PAGE, 0, PAGE) for n in range(count - 1)]
    loads.append(load(start + 64, 1 << 40, PAGE))
    head = elf_header(0xFFFF, shoff=start, shentsize=64)
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    body = b"".join(struct.pack("<IIQQQQQQ", *h) for h in loads)
    data = head + body + section + bytes(PAGE)
    with opened(tmp_path, data) as image:
        assert (len(image.mappings), image.pages) == (count, 1)
        assert image.absent.excluded == count - 1
        assert next(image.columns()).mapping.tolist() == [count - 1]
    with (
        pytest.raises(ImageError, match="offset 40: section header 0"),
        opened(tmp_path, data[: start + 20]),
    ):
        pass


def test_columns_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "COLUMN_ROWS", 3)
    with opened(tmp_path, core([load(0x1000, 0, 8 * PAGE, paddr=0x10000)])) as image:
        assert [len(c) for c in image.columns()] == [3, 3, 2]
        columns = joined(image)
        assert columns.index.tolist() == list(range(8))
        assert columns.frame is not None
        assert columns.frame.tolist() == list(range(16, 24))


def test_a_huge_sparse_core_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "huge.core"
    path.write_bytes(core([load(0x1000, 0, 1 << 42, paddr=PAGE)], size=0x1000))
    os.truncate(path, 0x1000 + (1 << 42))
    with open_elf(str(path), PAGE) as image:
        assert image.pages == 1 << 30
        assert len(next(image.columns())) == 1 << 20
