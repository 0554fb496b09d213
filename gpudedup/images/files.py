"""Open an input file, or say why not; and names that came from a file system."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gpudedup.errors import ImageError


def open_regular(path: str) -> tuple[int, int]:
    """Return file descriptor and size (bytes) of a regular file that is not empty.

    :raises ImageError: if there is none, it may not be read, is a directory or a device, or empty
    """
    try:
        # Without O_NONBLOCK a fifo would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from None
    status = os.fstat(fd)
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


def text(name: bytes) -> str:
    """Decode a name of the source; what is not UTF-8 stays visible."""
    return name.decode(errors="backslashreplace")


def file_name(path: str) -> str:
    """Return the last part of a path, fit for a column of text."""
    return text(os.fsencode(Path(path).name))
