"""ELF cores: of processes (gcore, the kernel) and of machines (QEMU, ``/proc/vmcore``).

A core is a machine's if it has a note of QEMU or a VMCOREINFO, or, without a note of a process, if
a segment has a physical address other than 0. A machine's pages lie at physical addresses, which
give their frames; a process's addresses are virtual and its frames unknown.

A page begins at a multiple of the page size *in the address space*, as on hardware; its offset in
the file does not matter. Each page that a segment touches is one of four: a row, if the file has
all its bytes; *excluded*, if the writer left it out (``p_memsz`` beyond ``p_filesz``);
*unreadable*, if the file is cut off; and unreadable too if the segment begins, or its bytes end,
within the page: with pages larger than the source's own, every mapping not aligned to them.

Bytes that a writer skips read as zero: pages never touched (the kernel leaves holes for them, newer
gdb for pages of zeros too) and pages that gdb could not read. A core does not distinguish them from
pages of zeros, nor the modified (by now anonymous) pages of a private mapping of a file from the
rest: all are of kind ``file``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpudedup.errors import ImageError
from gpudedup.images.base import Absent, Extent, Image
from gpudedup.images.elf_notes import Notes
from gpudedup.images.files import FileBytes, open_regular, text
from gpudedup.images.losses import Loss
from gpudedup.images.rows import COLUMN_ROWS, Mapping, PageColumns, of_one_mapping

TABLE_LIMIT = 256 << 20
"""Bytes of program headers, or of notes, at most: 4 M mappings, or 20,000 threads with AMX."""

REPEAT_LIMIT = 1024
"""Times that a machine's segments may map the file. Each CPU's page table may map it once or twice;
without a limit a small crafted file would mean endless work."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION_SIZE = 64
_TOP = 1 << 64
_CORE = 4
_LOAD, _NOTES = 1, 4
_COUNT_IN_SECTION = 0xFFFF
_VSYSCALL = 0xFFFFFFFFFF600000
_NO_ADDRESS = _TOP - 1
_SHMEM = ("/dev/zero (deleted)", "/memfd:", "/SYSV", "/dev/shm/")


@dataclass(slots=True)
class ElfImage(Image):
    """An ELF core; each extent is one segment with rows.

    :param mapping_of: mapping number of each extent
    :param frame_of: frame of the first row of each extent; None: unknown
    """

    mapping_of: Sequence[int] = ()
    frame_of: Sequence[int | None] = ()

    @property
    def format(self) -> str:
        """Return ``elf``."""
        return "elf"

    def columns(self) -> Iterator[PageColumns]:
        """Yield the metadata of all rows, one segment at a time."""
        for extent, mapping, frame in zip(
            self.extents, self.mapping_of, self.frame_of, strict=True
        ):
            for first in range(0, extent.pages, COLUMN_ROWS):
                stop = min(first + COLUMN_ROWS, extent.pages)
                index = np.arange(first, stop, dtype=np.uint64)
                yield PageColumns(
                    extent.row + first,
                    of_one_mapping(mapping, stop - first),
                    index,
                    None if frame is None else index + np.uint64(frame),
                )


class _Segment(NamedTuple):
    """A program header; ``header`` is its offset in the file."""

    header: int
    kind: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int

    @property
    def words(self) -> str:
        """Return the protection in the words of VmFlags."""
        return " ".join(w for bit, w in ((4, "rd"), (2, "wr"), (1, "ex")) if self.flags & bit)


def open_elf(path: str, page_size: int) -> ElfImage:
    """Open ``path`` as an ELF core with pages of ``page_size`` bytes.

    :raises ImageError: if it cannot be opened, is no 64-bit little-endian core, or is inconsistent
    """
    fd, size = open_regular(path)
    try:
        return _read_core(FileBytes(path, fd, size), page_size)
    except BaseException:
        os.close(fd)
        raise


def _read_core(file: FileBytes, page_size: int) -> ElfImage:
    segments = _read_segments(file)
    _check_sizes(file, segments)
    loads = [s for s in segments if s.kind == _LOAD]
    cut_notes: list[str] = []
    notes = _read_notes(file, [s for s in segments if s.kind == _NOTES], cut_notes)
    machine = notes.machine or (
        not notes.process and any(s.paddr not in (0, _NO_ADDRESS) for s in loads)
    )
    _check_places(file, loads, machine)
    image = ElfImage(path=file.path, fd=file.fd, page_size=page_size, notes=cut_notes)
    _place_rows(file, image, loads, machine)
    stem = text(os.fsencode(Path(file.path).stem))
    if machine:
        image.source = "core of a machine"
        image.mappings = tuple(
            Mapping(stem, "", "guest", "memory", _start(s, True, page_size), s.words) for s in loads
        )
    else:
        image.source = "core of a process"
        image.mappings = _process_mappings(loads, notes, stem, page_size)
        image.notes.append(
            f"{file.path}: a process core tells no frames: memory that processes share counts in"
            " each core; what was never touched or could not be read counts as zero"
        )
    return image


def _read_segments(file: FileBytes) -> list[_Segment]:
    """Return the PT_LOAD and PT_NOTE segments in the order of their headers."""
    if file.read(0, min(4, file.size)) != b"\x7fELF":
        raise ImageError(file.path, "not an ELF file", 0)
    if file.size < _HEADER.size:
        raise ImageError(file.path, "the file ends within the ELF header", file.size)
    ident, kind, _, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, *_ = _HEADER.unpack(
        file.read(0, _HEADER.size)
    )
    _check_identity(file.path, ident[4], ident[5], kind)
    if phentsize != _SEGMENT.size:
        raise ImageError(file.path, f"program headers of {phentsize} bytes, not 56", 54)
    if phnum == _COUNT_IN_SECTION:
        phnum = _count_in_section(file, shoff, shentsize)
    length = phnum * _SEGMENT.size
    if phoff + length > file.size:
        raise ImageError(
            file.path, f"{phnum} program headers at {phoff} lie beyond the end of the file", 32
        )
    if length > TABLE_LIMIT:
        raise ImageError(file.path, f"{phnum} program headers are too many", 56)
    fields = _SEGMENT.iter_unpack(file.read(phoff, length))
    segments = [
        _Segment(phoff + at * _SEGMENT.size, *header[:-1])
        for at, header in enumerate(fields)
        if header[0] in (_LOAD, _NOTES)
    ]
    if not any(s.kind == _LOAD for s in segments):
        raise ImageError(file.path, "a core without any memory (no PT_LOAD)", 56)
    return segments


def _check_identity(path: str, width: int, order: int, kind: int) -> None:
    """Refuse all but ELFCLASS64, ELFDATA2LSB, ET_CORE."""
    bits = {1: "a 32-bit ELF file"}.get(width, f"an ELF file of unknown class {width}")
    endian = {2: "a big-endian ELF file"}.get(order, f"an ELF file of unknown byte order {order}")
    use = {1: "an object file", 2: "an executable", 3: "a shared object"}
    for place, wrong, what in (
        (4, width != 2, bits),
        (5, order != 1, endian),
        (16, kind != _CORE, use.get(kind, f"an ELF file of type {kind}") + ", not a core"),
    ):
        if wrong:
            raise ImageError(path, f"{what}; only 64-bit little-endian cores are supported", place)


def _count_in_section(file: FileBytes, shoff: int, shentsize: int) -> int:
    """Return the number of program headers if it exceeds 16 bits (PN_XNUM)."""
    if shentsize != _SECTION_SIZE or shoff + _SECTION_SIZE > file.size:
        raise ImageError(
            file.path, f"section header 0 at {shoff}, which counts the segments, is not there", 40
        )
    (info,) = struct.unpack_from("<I", file.read(shoff, _SECTION_SIZE), 44)
    return int(info)


def _check_sizes(file: FileBytes, segments: list[_Segment]) -> None:
    for s in segments:
        if s.kind == _LOAD and s.filesz > s.memsz:
            raise ImageError(file.path, f"p_filesz {s.filesz} > p_memsz {s.memsz}", s.header)
        if s.offset + s.filesz > _TOP:
            raise ImageError(file.path, "p_offset + p_filesz exceeds 64 bits", s.header)


def _check_places(file: FileBytes, loads: list[_Segment], machine: bool) -> None:
    """Refuse addresses beyond 64 bits, and bytes that two segments claim.

    A machine's segments may map the same bytes if they agree on the physical address:
    dump-guest-memory -p writes a segment for each virtual mapping.
    """
    for s in loads:
        if _address(s, machine) + s.memsz > _TOP:
            raise ImageError(file.path, "address + p_memsz exceeds 64 bits", s.header)
    end = place = mapped = 0
    for s in sorted((s for s in loads if s.filesz), key=lambda s: s.offset):
        if s.offset < end and not (machine and s.paddr - s.offset == place):
            raise ImageError(file.path, "the bytes of two segments overlap", s.header)
        place = s.paddr - s.offset
        end = max(end, s.offset + s.filesz)
        mapped += _bytes_there(file, s)
    if mapped > REPEAT_LIMIT * file.size:
        reason = f"segments map the file more than {REPEAT_LIMIT} times"
        raise ImageError(file.path, reason, loads[0].header)


def _bytes_there(file: FileBytes, segment: _Segment) -> int:
    """Return how many of a segment's bytes lie within the file."""
    return max(0, min(segment.filesz, file.size - segment.offset))


def _address(segment: _Segment, machine: bool) -> int:
    """Return a machine's physical address, else the virtual one; /proc/kcore has -1 for none."""
    return segment.paddr if machine and segment.paddr != _NO_ADDRESS else segment.vaddr


def _start(segment: _Segment, machine: bool, page_size: int) -> int:
    """Return the address of the first whole page or, without one, of the first byte."""
    address = _address(segment, machine)
    first = -(-address // page_size) * page_size
    return first if first + page_size <= address + segment.memsz else address


def _place_rows(file: FileBytes, image: ElfImage, loads: list[_Segment], machine: bool) -> None:
    """Fill in extents, absent pages and losses, by the four cases in the module's docstring."""
    size, absent = image.page_size, Absent()
    extents: list[Extent] = []
    mapping_of: list[int] = []
    frame_of: list[int | None] = []
    row = cut = cut_segments = parts = 0
    for number, s in enumerate(loads):
        address = _address(s, machine)
        first = -(-address // size)
        in_file = _bytes_there(file, s)
        whole = max(0, (address + s.filesz) // size - first)
        pages = max(0, (address + in_file) // size - first)
        written = -(-(address + s.filesz) // size) if s.filesz else address // size
        if s.memsz:
            absent.excluded += -(-(address + s.memsz) // size) - written
        parts += written - address // size - whole
        cut += whole - pages
        cut_segments += whole > pages
        if pages:
            extents.append(Extent(row, pages, s.offset + first * size - address))
            mapping_of.append(number)
            frame_of.append(first if machine and s.paddr != _NO_ADDRESS else None)
            row += pages
    absent.unreadable = cut + parts
    image.extents, image.mapping_of, image.frame_of = extents, mapping_of, frame_of
    image.absent = absent
    if cut:
        reason = f"the file ends here; {cut} pages of {cut_segments} segments are missing"
        image.losses.append(Loss(file.path, reason, file.size))
    if parts:
        reason = f"{parts} pages of {size} bytes are not wholly in their segment; this is the first"
        image.losses.append(Loss(file.path, reason, _first_part(loads, machine, size)))


def _first_part(loads: list[_Segment], machine: bool, page_size: int) -> int:
    """Return the file offset of the first bytes that are not a whole page."""
    for s in loads:
        begin = _address(s, machine)
        tail = (begin + s.filesz) % page_size
        if s.filesz and (begin % page_size or tail):
            return s.offset if begin % page_size else s.offset + s.filesz - tail
    raise AssertionError("no segment begins or ends within a page")


def _process_mappings(
    loads: list[_Segment], notes: Notes, stem: str, page_size: int
) -> tuple[Mapping, ...]:
    kernel = _kernel_mappings(loads, notes)
    owner = notes.owner or stem
    mappings = []
    for number, s in enumerate(loads):
        file = notes.file_at(s.vaddr, s.vaddr + s.memsz)
        if number in kernel:
            kind, name = "kernel", kernel[number]
        elif file is not None:
            kind, name = "shmem" if file.startswith(_SHMEM) else "file", file
        elif notes.stack and s.vaddr <= notes.stack < s.vaddr + s.memsz:
            kind, name = "anon", "[stack]"
        else:
            kind, name = "anon", ""
        start = _start(s, False, page_size)
        mappings.append(Mapping(owner, notes.domain, kind, name, start, s.words))
    return tuple(mappings)


def _kernel_mappings(loads: list[_Segment], notes: Notes) -> dict[int, str]:
    """Return the kernel's mappings by segment: [vvar] is read-only memory right below the vDSO."""
    kernel = {n: "[vsyscall]" for n, s in enumerate(loads) if s.vaddr == _VSYSCALL}
    vdso = next((n for n, s in enumerate(loads) if notes.vdso and s.vaddr == notes.vdso), None)
    if vdso is None:
        return kernel
    kernel[vdso] = "[vdso]"
    for n in range(vdso - 1, -1, -1):
        s = loads[n]
        below = s.vaddr + s.memsz == loads[n + 1].vaddr
        if not below or s.words != "rd" or notes.file_at(s.vaddr, s.vaddr + s.memsz) is not None:
            break
        kernel[n] = "[vvar]"
    return kernel


def _read_notes(file: FileBytes, segments: list[_Segment], remarks: list[str]) -> Notes:
    """Parse all notes; append a line to ``remarks`` if the file ends before they do."""
    notes = Notes()
    total = 0
    for s in segments:
        total += s.filesz
        if s.filesz > file.size:
            reason = f"notes of {s.filesz} bytes are larger than the file"
            raise ImageError(file.path, reason, s.header)
        if total > TABLE_LIMIT:
            raise ImageError(file.path, f"notes of {total} bytes are too many", s.header)
        there = _bytes_there(file, s)
        if there < s.filesz and not remarks:
            remarks.append(
                f"{file.path}: offset {file.size}: the file ends before its notes, which name the"
                " process and its mapped files"
            )
        if there:
            data = file.read(s.offset, there)
            notes.add(data, file.path, s.offset, cut=there < s.filesz)
    return notes
