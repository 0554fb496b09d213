"""Notes of an ELF core: the owner of the memory, and which files are mapped where.

Layouts are those of Linux's fs/binfmt_elf.c and include/linux/elfcore.h for 64-bit machines; gdb
writes the same. QEMU and the kernel's vmcore use names of their own.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from gpudedup.errors import ImageError
from gpudedup.images.files import text

_NOTE = struct.Struct("<III")
_PRPSINFO, _AUXV, _FILE = 3, 6, 0x46494C45
_AT_RANDOM, _AT_SYSINFO_EHDR = 25, 33


@dataclass(slots=True)
class Notes:
    """Facts about the source from the notes.

    :param process: True after a note that only processes have
    :param machine: True after a note that only machines have
    :param owner: name and pid of the process, ``sleep[42]``; empty: unknown
    :param domain: user of the process, ``uid:1000``; empty: unknown
    :param vdso: address of the vDSO; 0: unknown
    :param stack: an address in the first thread's stack; 0: unknown
    :param starts: first address of each stretch that maps a file, ascending
    :param ends: first address beyond each stretch
    :param names: path of each stretch's file
    """

    process: bool = False
    machine: bool = False
    owner: str = ""
    domain: str = ""
    vdso: int = 0
    stack: int = 0
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def file_at(self, start: int, end: int) -> str | None:
        """Return the path of the file mapped at all addresses ``start .. end - 1``."""
        at = bisect_right(self.starts, start) - 1
        return self.names[at] if at >= 0 and end <= self.ends[at] else None

    def add(self, data: bytes, path: str, offset: int, *, cut: bool) -> None:
        """Add the notes of one segment.

        :param data: bytes of the segment
        :param path, offset: file, for errors, and byte offset of ``data`` in the file
        :param cut: True if ``data`` is only part of the segment: the last note may be incomplete
        :raises ImageError: if a note exceeds the segment, or a list of files exceeds its note
        """
        at = 0
        while at + _NOTE.size <= len(data):
            name_size, size, kind = _NOTE.unpack_from(data, at)
            name_at = at + _NOTE.size
            content_at = name_at + (name_size + 3 & ~3)
            if content_at + size > len(data):
                if cut:
                    return
                reason = f"a note of {name_size} + {size} bytes exceeds its segment"
                raise ImageError(path, reason, offset + at)
            name = data[name_at : name_at + name_size].rstrip(b"\0")
            if name in (b"QEMU", b"VMCOREINFO"):
                self.machine = True
            elif name == b"CORE" and kind in (_PRPSINFO, _AUXV, _FILE):
                self.process = True
                content = data[content_at : content_at + size]
                if kind == _PRPSINFO:
                    self._add_process(content)
                elif kind == _AUXV:
                    self._add_auxv(content)
                else:
                    self._add_files(content, path, offset + content_at)
            at = content_at + (size + 3 & ~3)

    def _add_process(self, content: bytes) -> None:
        """NT_PRPSINFO: uid at 16, pid at 24, name at 40."""
        if len(content) >= 56:
            uid, _, pid = struct.unpack_from("<IIi", content, 16)
            name = content[40:56].partition(b"\0")[0]
            self.owner, self.domain = f"{text(name)}[{pid}]", f"uid:{uid}"

    def _add_auxv(self, content: bytes) -> None:
        """NT_AUXV: pairs of tag and value."""
        for tag, value in struct.iter_unpack("<QQ", content[: len(content) // 16 * 16]):
            if tag == _AT_SYSINFO_EHDR:
                self.vdso = value
            elif tag == _AT_RANDOM:
                self.stack = value

    def _add_files(self, content: bytes, path: str, offset: int) -> None:
        """NT_FILE: count, page size, then (start, end, page) of each, then the paths."""
        count = int.from_bytes(content[:8], "little")
        if len(content) < 16 or 16 + 24 * count > len(content):
            raise ImageError(path, f"NT_FILE of {count} files exceeds its note", offset)
        names = content[16 + 24 * count :].split(b"\0", count)
        if len(names) <= count:
            reason = f"NT_FILE of {count} files has only {len(names) - 1} paths"
            raise ImageError(path, reason, offset)
        ranges = np.frombuffer(content, "<u8", 3 * count, 16).reshape(count, 3)
        order = np.argsort(ranges[:, 0], kind="stable")
        self.starts, self.ends = ranges[order, 0].tolist(), ranges[order, 1].tolist()
        self.names = [text(names[n]) for n in order]
