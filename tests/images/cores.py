"""Synthetic ELF cores, and the addresses of an opened core's pages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gpudedup.images.elf import ElfImage, open_elf

from .common import joined

PAGE = 4096
LOAD, NOTE = 1, 4

# Fields of a program header, in order: type, flags, offset, vaddr, paddr, filesz, memsz, align.
Header = tuple[int, int, int, int, int, int, int, int]


def load(
    offset: int, address: int, filesz: int, memsz: int | None = None, flags: int = 6, paddr: int = 0
) -> Header:
    return (LOAD, flags, offset, address, paddr, filesz, filesz if memsz is None else memsz, 1)


def elf_header(count: int, **fields: int) -> bytes:
    """Return an ELF header; fields: bits, order, type, phoff, shoff, phentsize, shentsize."""
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
    """Return a core of ``size`` bytes: headers, notes, then :func:`pattern`.

    Segments lie at the offsets given, which must lie beyond the notes.
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
    """Return bytes ``start .. stop - 1`` of a file whose byte n is n // 8 + n % 8, modulo 256."""
    place = np.arange(start, max(start, stop), dtype=np.uint64)
    return (place // 8 + place % 8).astype(np.uint8).tobytes()


@contextmanager
def opened(tmp_path: Path, data: bytes, page_size: int = PAGE) -> Iterator[ElfImage]:
    path = tmp_path / "a.core"
    path.write_bytes(data)
    with open_elf(str(path), page_size) as image:
        yield image


def addresses(image: ElfImage) -> list[int]:
    columns = joined(image)
    return [
        image.mappings[mapping].start + int(index) * image.page_size
        for mapping, index in zip(columns.mapping, columns.index, strict=True)
    ]
