"""Compile the calls that fail, and say which of them is to fail."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "faults.cpp"
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-fno-threadsafe-statics"),
    *("-Wall", "-Wextra", "-Werror"),
)
KINDS = (
    *("open", "read", "write", "truncate", "fsync", "link", "rename", "unlink", "mkdir", "mmap"),
    *("stat", "statfs", "dup", "fcntl", "ioctl", "pipe", "thread", "spawn", "close", "madvise"),
    *("pidfd", "receive", "seek"),
)
"""Names of ``Kind`` in ``faults.cpp``, in its order."""

ROLES = ("command", "helper")
HALF = 0
"""Error of a call that succeeds with half of its bytes, or without its descriptors."""

ERRORS = {
    "open": (errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    "read": (errno.EINTR, errno.EIO, HALF),
    "write": (errno.EINTR, errno.EIO, errno.ENOSPC, HALF),
    "truncate": (errno.EINTR, errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO, errno.ENOSPC),
    "link": (errno.EIO, errno.ENOSPC, errno.EPERM),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "mkdir": (errno.EIO, errno.ENOSPC),
    "mmap": (errno.ENOMEM,),
    "stat": (errno.EIO, errno.ENOMEM),
    "statfs": (errno.EIO, errno.EINTR),
    "dup": (errno.EMFILE,),
    "fcntl": (errno.EIO, errno.EAGAIN),
    "ioctl": (errno.ENOMEM, errno.EINTR),
    "pipe": (errno.EMFILE,),
    "thread": (errno.EAGAIN,),
    "spawn": (errno.EAGAIN, errno.ENOMEM),
    "close": (errno.EIO, errno.EINTR),
    "madvise": (errno.ENOMEM,),
    "pidfd": (errno.EMFILE,),
    "receive": (errno.EINTR, HALF),
    "seek": (errno.EIO,),
}
"""Errors of each kind of call that its manual page names, or that a bad disk gives."""

LASTING = {
    "open": errno.EMFILE, "read": errno.EIO, "write": errno.ENOSPC, "fsync": errno.EIO,
    "mmap": errno.ENOMEM, "stat": errno.EIO, "dup": errno.EMFILE, "thread": errno.EAGAIN,
    "close": errno.EIO,
}  # fmt: skip
"""Errors that all later calls of the kind have too."""

_FOREVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that fails.

    :param role: one of :data:`ROLES`
    :param kind: one of :data:`KINDS`
    :param at: number of the call, from 1
    :param error: errno, or :data:`HALF`
    :param lasting: whether all later calls of the kind fail too
    """

    role: str
    kind: str
    at: int
    error: int
    lasting: bool = False

    def __str__(self) -> str:
        what = errno.errorcode.get(self.error, "half")
        return f"{self.role}, {self.kind} {self.at}{' and on' * self.lasting}: {what}"


def faults(counts: dict[tuple[str, str], int]) -> list[Fault]:
    """Return every fault of a command that makes so many calls, by role and kind."""
    return [
        Fault(role, kind, at, error, lasting)
        for (role, kind), count in counts.items()
        for at in range(1, count + 1)
        for error, lasting in [
            *((error, False) for error in ERRORS[kind]),
            *([(LASTING[kind], True)] if kind in LASTING else []),
        ]
    ]


class _Control(ctypes.Structure):
    """``Control`` of ``faults.cpp``."""

    _fields_ = (
        ("role", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("error", ctypes.c_int64),
        ("delivered", ctypes.c_int64),
        ("counts", (ctypes.c_int64 * len(KINDS)) * len(ROLES)),
    )


class Control:
    """The file by which the calls are steered and counted; ``path`` is new."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._block = _Control.from_buffer(mmap.mmap(fd, ctypes.sizeof(_Control)))
        os.close(fd)

    def set(self, fault: Fault | None) -> None:
        """Set all counts to 0, and which call fails."""
        ctypes.memset(ctypes.addressof(self._block), 0, ctypes.sizeof(_Control))
        if fault:
            self._block.role, self._block.kind = ROLES.index(fault.role), KINDS.index(fault.kind)
            self._block.last = _FOREVER if fault.lasting else fault.at
            self._block.error = fault.error
            self._block.first = fault.at

    @property
    def delivered(self) -> int:
        """Return how many calls failed."""
        return int(self._block.delivered)

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """Return how often each kind was called, by role and kind; those that were."""
        return {
            (role, kind): self._block.counts[i][j]
            for i, role in enumerate(ROLES)
            for j, kind in enumerate(KINDS)
            if self._block.counts[i][j]
        }


def build(compiler: str, folder: Path) -> Path:
    """Compile the calls that fail into ``folder``."""
    library = folder / "faults.so"
    subprocess.run([compiler, *FLAGS, SOURCE, "-o", library, "-ldl"], check=True)
    return library
