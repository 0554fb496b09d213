"""One exception family; each member knows the exit code of the command line.

A message is one line; about an input: file, byte offset (where there is one), reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from os import PathLike, fspath
from typing import Any


class ExitCode(IntEnum):
    """Exit codes of ``gpudedup``."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTLY_UNREADABLE = 3
    ENGINE_UNUSABLE = 4
    INTERRUPTED = 130


class GpudedupError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = ExitCode.FAILED


class UsageError(GpudedupError):
    """Arguments that contradict each other or lie outside their range."""

    exit_code = ExitCode.USAGE


class UnsupportedHereError(GpudedupError):
    """The requested engine, device or way to watch writes does not work on this machine."""

    exit_code = ExitCode.ENGINE_UNUSABLE


EngineUnusableError = UnsupportedHereError
"""The name of 0.1."""


class BusyError(GpudedupError):
    """Exclusive access to pages that are pinned was refused.

    :ivar done: of an atomic addition: (n,) bool, rows that were added; None: nothing was done
    """

    done: Any = None


class RevokedError(GpudedupError):
    """Exclusive access was used after another access revoked it, or after its release."""


class InvariantError(GpudedupError):
    """The memory manager's bookkeeping contradicts itself: a bug."""


class WrongResultError(GpudedupError):
    """A result differs from the known answer: a bug, or a machine that computes wrongly."""


class DeviceError(GpudedupError):
    """Work on a device failed; it has no result."""


class ThreadError(GpudedupError):
    """The system starts no more threads; what was begun is as before, and can be repeated."""


class ImageError(GpudedupError):
    """An input cannot be read as what it claims to be.

    :param path: file, or another name of the input such as ``pid 42``
    :param reason: what is wrong
    :param offset: byte offset in the file, where there is one
    """

    def __init__(self, path: str | PathLike[str], reason: str, offset: int | None = None) -> None:
        self.path = fspath(path)
        self.reason = reason
        self.offset = offset
        at = "" if offset is None else f" offset {offset}:"
        super().__init__(f"{self.path}:{at} {reason}")


class DamagedError(ImageError):
    """An input does not match the digests that are kept in it; nothing was made of it.

    :param frames: frames that do not match, ascending; empty: what is damaged is no frame
    """

    exit_code = ExitCode.PARTLY_UNREADABLE

    def __init__(
        self,
        path: str | PathLike[str],
        reason: str,
        offset: int | None = None,
        frames: Sequence[int] = (),
    ) -> None:
        self.frames = tuple(frames)
        super().__init__(path, reason, offset)


class TraceError(GpudedupError):
    """A trace cannot be read as one, or does not fit the image that it runs on.

    :param path: file, or another name of the trace
    :param reason: what is wrong
    :param row: number of the first wrong event from 0, where there is one
    """

    def __init__(self, path: str | PathLike[str], reason: str, row: int | None = None) -> None:
        self.path = fspath(path)
        self.reason = reason
        self.row = row
        at = "" if row is None else f" row {row}:"
        super().__init__(f"{self.path}:{at} {reason}")


class OutputError(GpudedupError):
    """An output cannot be written; no part of a file was left behind."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        self.path = fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")
