"""A process in ``/proc``: its name, user and mappings.

Formats: Linux's Documentation/filesystems/proc.rst. ``smaps`` is read rather than ``maps``, for its
VmFlags and its count of resident pages; a kernel without ``smaps`` has no ``pagemap`` either.
OSError passes through: FileNotFoundError or ProcessLookupError if the process is gone,
PermissionError if it may not be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gpudedup.arguments import as_number
from gpudedup.errors import UsageError
from gpudedup.images.files import text
from gpudedup.processes.tracer import thread_states

_HEADER = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) \S+ [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) \d+ *(.*)\n")
_RESIDENT = (b"Rss:", b"Swap:", b"Shared_Hugetlb:", b"Private_Hugetlb:")
_ANONYMOUS = re.compile(r"\[(heap|stack|stack:\d+|anon:.*)\]")
_MEMORY_FILES = ("/memfd:", "/SYSV", "/dev/zero (deleted)")
_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "hugetlbfs"})


@dataclass(frozen=True, slots=True)
class Status:
    """Identity of a process.

    :param pid: process id, also where :func:`read_status` was passed a thread's
    :param name: ``comm``, at most 15 bytes; the kernel escapes newlines
    :param uid: effective user
    :param lacks: why it has no memory that can be read; empty if it has
    """

    pid: int
    name: str
    uid: int
    lacks: str

    @property
    def owner(self) -> str:
        """Return ``name[pid]``."""
        return f"{self.name}[{self.pid}]"


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping of a process.

    :param first: number of the first page
    :param pages: number of pages
    :param kind: one of :data:`gpudedup.schema.KINDS`
    :param name: path, ``[heap]``, ...; empty if unnamed; the kernel escapes newlines
    :param flags: VmFlags, two letters each
    :param resident: pages in memory or in swap when ``smaps`` was read, without zero pages
    """

    first: int
    pages: int
    kind: str
    name: str
    flags: str
    resident: int

    @property
    def excluded(self) -> bool:
        """Return True for device registers (reads have side effects), [vvar] clocks, [vsyscall]."""
        special = self.name.startswith(("[vvar", "[vsyscall]"))
        return special or not {"pf", "io"}.isdisjoint(self.flags.split())


def read_status(pid: int) -> Status:
    """Return the status of process ``pid``, or of the process of thread ``pid``.

    :raises UsageError: unless ``pid`` is from 1 to 2**31 - 1
    """
    if not 0 < as_number(pid, "pid") < 1 << 31:
        raise UsageError(f"pid {pid}: not from 1 to 2**31 - 1")
    fields = _status(pid)
    if (process := int(fields[b"Tgid"])) != pid:
        # Files of the process itself are of its main thread, which may have ended.
        fields = _status(process)
    lacks = ""
    if fields[b"State"].startswith((b"Z", b"X")):
        others = [state for state in thread_states(process).values() if state not in "ZX"]
        lacks = "a zombie: it has ended, and its parent has not asked how"
        if others:
            lacks = "its main thread has ended, and its memory is out of reach with it"
    elif b"VmSize" not in fields:
        lacks = "no memory of its own (a kernel thread)"
    return Status(
        pid=process, name=text(fields[b"Name"]), uid=int(fields[b"Uid"].split()[1]), lacks=lacks
    )


def _status(pid: int) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    with Path(f"/proc/{pid}/status").open("rb") as file:
        for line in file:
            key, _, value = line.partition(b":")
            fields[key] = value.strip()
    return fields


def read_vmas(pid: int, page_size: int) -> list[Vma]:
    """Return all mappings of a process in ascending order; none once it exits."""
    vmas: list[Vma] = []
    filesystems = _filesystems(pid)
    with Path(f"/proc/{pid}/smaps").open("rb") as file:
        start = end = resident = 0
        name = filesystem = ""
        for line in file:
            if header := _HEADER.fullmatch(line):
                start, end, major, minor = (int(header[i], 16) for i in range(1, 5))
                name, filesystem = text(header[5]), filesystems.get((major, minor), "")
                resident = 0
            elif line.startswith(_RESIDENT):
                resident += int(line.split()[1]) * 1024 // page_size
            elif line.startswith(b"VmFlags:"):
                flags = text(line[len(b"VmFlags:") :].strip())
                kind = kind_of(name, flags, filesystem)
                first, pages = start // page_size, (end - start) // page_size
                vmas.append(Vma(first, pages, kind, name, flags, min(resident, pages)))
    return vmas


def kind_of(name: str, flags: str, filesystem: str) -> str:
    """Return the kind of a mapping, one of :data:`gpudedup.schema.KINDS`.

    :param filesystem: type of the file system of ``name``; empty: unknown
    """
    words = flags.split()
    private = "anon" if "sh" not in words else "shmem"
    if name.startswith("["):
        if _ANONYMOUS.fullmatch(name):
            return "anon"
        return "shmem" if name.startswith("[anon_shmem:") else "kernel"
    if "pf" in words or "io" in words:
        return "device"
    if name in ("", "/dev/zero", "/anon_hugepage (deleted)"):
        return private
    if not name.startswith("/"):
        return "kernel"  # anon_inode:[io_uring], socket:[4242]: rings that the kernel made
    if name.startswith(_MEMORY_FILES) or filesystem in _MEMORY_FILESYSTEMS:
        return "shmem"
    return "device" if name.startswith("/dev/") else "file"


def _filesystems(pid: int) -> dict[tuple[int, int], str]:
    """Return the type of every mounted file system by device number."""
    found: dict[tuple[int, int], str] = {}
    with Path(f"/proc/{pid}/mountinfo").open("rb") as file:
        for line in file:
            mount, _, rest = line.partition(b" - ")
            major, _, minor = mount.split()[2].partition(b":")
            found[int(major), int(minor)] = text(rest.split()[0])
    return found
