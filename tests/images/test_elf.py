"""ELF cores: a synthetic one for every rule."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gpudedup.errors import ImageError
from gpudedup.images import elf
from gpudedup.images.base import PageColumns
from gpudedup.images.elf import ElfImage, open_elf

PAGE = 4096
LOAD, NOTE = 1, 4

# type, flags, offset, vaddr, paddr, filesz, memsz, align: fields of a program header, by place
Header = tuple[int, int, int, int, int, int, int, int]


def load(
    offset: int, address: int, filesz: int, memsz: int | None = None, flags: int = 6, paddr: int = 0
) -> Header:
    return (LOAD, flags, offset, address, paddr, filesz, filesz if memsz is None else memsz, 1)


def elf_header(count: int, **fields: int) -> bytes:
    """An ELF header; fields: class, order, type, phoff, shoff, phentsize, shentsize."""
    ident = b"\x7fELF" + bytes((fields.get("bits", 2), fields.get("order", 1), 1)) + bytes(9)
    return ident + struct.pack(
        "<HHIQQQIHHHHHH",
        fields.get("type", 4),
        62,
        1,
        0,
        fields.get("phoff", 64),
        fields.get("shoff", 0),
        0,
        64,
        fields.get("phentsize", 56),
        count,
        fields.get("shentsize", 0),
        0,
        0,
    )


def note(name: bytes, kind: int, content: bytes) -> bytes:
    padded = name + bytes(1 + -(len(name) + 1) % 4)
    return (
        struct.pack("<III", len(name) + 1, len(content), kind)
        + padded
        + content
        + bytes(-len(content) % 4)
    )


def prpsinfo(name: bytes, pid: int, uid: int) -> bytes:
    content = struct.pack("<4xxxxxQIIiiii16s80s", 0, uid, 0, pid, 1, 1, 1, name, name)
    return note(b"CORE", 3, content.ljust(136, b"\0"))


def file_note(*files: tuple[int, int, bytes]) -> bytes:
    ranges = b"".join(struct.pack("<QQQ", start, end, 0) for start, end, _ in files)
    names = b"".join(name + b"\0" for *_, name in files)
    return note(b"CORE", 0x46494C45, struct.pack("<QQ", len(files), PAGE) + ranges + names)


def auxv(**values: int) -> bytes:
    tags = {"random": 25, "vdso": 33}
    pairs = [struct.pack("<QQ", tags[name], value) for name, value in values.items()]
    return note(b"CORE", 6, b"".join(pairs) + bytes(16))


def core(loads: list[Header], notes: bytes = b"", size: int = 0, **fields: int) -> bytes:
    """A core of ``size`` bytes; byte n is n // 8 + n % 8 after the notes, which follow the headers.

    Offsets of segments are as given; choose them beyond the notes.
    """
    headers = list(loads)
    if notes:
        at = 64 + 56 * (len(loads) + 1)
        headers.insert(0, (NOTE, 0, at, 0, 0, len(notes), 0, 4))
    head = elf_header(len(headers), **fields)
    head += b"".join(struct.pack("<IIQQQQQQ", *h) for h in headers) + notes
    size = size or max((h[2] + h[5] for h in headers), default=0)
    return head + pattern(len(head), size)


def pattern(start: int, stop: int) -> bytes:
    place = np.arange(start, max(start, stop), dtype=np.uint64)
    return (place // 8 + place % 8).astype(np.uint8).tobytes()


@contextmanager
def opened(tmp_path: Path, data: bytes, page_size: int = PAGE) -> Iterator[ElfImage]:
    path = tmp_path / "a.core"
    path.write_bytes(data)
    with open_elf(str(path), page_size) as image:
        yield image


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def refused(tmp_path: Path, data: bytes) -> ImageError:
    before = open_files()
    with pytest.raises(ImageError) as caught, opened(tmp_path, data):
        pass
    assert open_files() == before
    assert str(tmp_path / "a.core") in str(caught.value)
    return caught.value


def all_pages(image: ElfImage) -> npt.NDArray[np.uint8]:
    pages = np.empty((image.pages, image.page_size), np.uint8)
    image.read_pages(0, pages)
    return pages


def joined(image: ElfImage) -> PageColumns:
    """All rows in one piece; their numbers must be consecutive."""
    pieces = list(image.columns())
    row = 0
    for piece in pieces:
        assert piece.row == row
        row += len(piece)
    assert row == image.pages
    frames = [p.frame for p in pieces if p.frame is not None]
    return PageColumns(
        0,
        np.concatenate([p.mapping for p in pieces]),
        np.concatenate([p.index for p in pieces]),
        np.concatenate(frames) if frames else None,
    )


def addresses(image: ElfImage) -> list[int]:
    columns = joined(image)
    return [
        image.mappings[mapping].start + int(index) * image.page_size
        for mapping, index in zip(columns.mapping, columns.index, strict=True)
    ]


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
            assert f"offset {len(whole)}: the file ends here; {cut} pages of 1 " in image.losses[0]
        if parts:
            inside = (address + filesz) % page_size
            place = offset if address % page_size else offset + filesz - inside
            assert f"offset {place}: {parts} pages" in image.losses[-1]
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
        assert "the file ends here; 11 pages of 3 segments are missing" in line


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
    error = refused(tmp_path, data[: start + 20])
    assert error.offset == 40
    assert "section header 0" in error.reason


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
