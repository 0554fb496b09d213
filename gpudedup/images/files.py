"""Open input files, and decode names from a file system or an input."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gpudedup.errors import ImageError


def open_regular(path: str) -> tuple[int, int]:
    """Return file descriptor and size (bytes) of a regular file that is not empty.

    :raises ImageError: if it does not exist, may not be read, is not a regular file, or is empty
    """
    try:
        # Without O_NONBLOCK a fifo would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from None
    try:
        status = os.fstat(fd)
    except OSError as error:
        os.close(fd)
        raise ImageError(path, error.strerror or str(error)) from None
    reason = ""
    if stat.S_ISDIR(status.st_mode):
        reason = "is a directory"
    elif not stat.S_ISREG(status.st_mode):
        reason = "not a regular file"
    elif not status.st_size:
        reason = "empty file"
    if reason:
        os.close(fd)
        raise ImageError(path, reason, 0 if reason == "empty file" else None)
    return fd, status.st_size


def read_all(fd: int, size: int, offset: int) -> bytes:
    """Return ``size`` bytes of a file from byte ``offset`` on; fewer if it ends before.

    One call may return less than there is: at most 2 GiB, and on some file systems any part.
    """
    parts = []
    while size and (part := os.pread(fd, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class FileBytes:
    """The bytes of a file that is not mapped: a slice is read from it when it is asked for.

    A slice may be shorter than asked for, if the file became shorter.

    :param fd: descriptor of a regular file, which stays open
    :param size: bytes
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, which: slice, /) -> memoryview:
        start, stop, step = which.indices(self._size)
        assert step == 1
        return memoryview(read_all(self._fd, max(0, stop - start), start))


def text(name: bytes) -> str:
    """Decode a name of the source; bytes that are not UTF-8 become escapes."""
    return name.decode(errors="backslashreplace")


def file_name(path: str) -> str:
    """Return the last part of a path, decoded by :func:`text`."""
    return text(os.fsencode(Path(path).name))
