"""Open input files, and decode names from a file system or an input."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path
from typing import Self

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
    """The bytes of a regular file, read when they are asked for: whole, or not at all.

    A file that is mapped would kill the process where it is cut off, or its disk fails.

    :param path: name of the file, for messages
    :param fd: descriptor, which stays open; see :meth:`kept`
    :param size: bytes
    """

    def __init__(self, path: str, fd: int, size: int) -> None:
        self.path, self.fd, self.size = path, fd, size

    @classmethod
    def kept(cls, path: str, fd: int, size: int) -> Self:
        """Return the bytes by a descriptor of their own, which is closed with the last use."""
        own = os.dup(fd)
        data = cls(path, own, size)
        weakref.finalize(data, os.close, own)
        return data

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, which: slice, /) -> memoryview:
        start, stop, step = which.indices(self.size)
        assert step == 1
        return memoryview(self.read(start, max(0, stop - start)))

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from byte ``offset`` on.

        :raises ImageError: if they cannot be read, or the file became shorter
        """
        try:
            data = read_all(self.fd, size, offset)
        except OSError as error:
            raise ImageError(self.path, error.strerror or str(error), offset) from None
        if len(data) < size:
            end = offset + len(data)
            raise ImageError(self.path, "the file became shorter while it was read", end)
        return data

    def check_length(self) -> None:
        """Raise ImageError if the file became shorter."""
        try:
            size = os.fstat(self.fd).st_size
        except OSError as error:
            raise ImageError(self.path, error.strerror or str(error)) from None
        if size < self.size:
            raise ImageError(self.path, "the file became shorter while it was read", size)


def text(name: bytes) -> str:
    """Decode a name of the source; bytes that are not UTF-8 become escapes."""
    return name.decode(errors="backslashreplace")


def file_name(path: str) -> str:
    """Return the last part of a path, decoded by :func:`text`."""
    return text(os.fsencode(Path(path).name))
