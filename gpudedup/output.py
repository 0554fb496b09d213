"""Files that appear whole or not at all. Dumps hold secrets: each is created with mode 0600."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpudedup.errors import OutputError

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of ``link`` on file systems without hard links: vfat, some FUSE and network ones."""

_EXISTS = "exists already (--force replaces it)"


def reason(error: Exception) -> str:
    """Return the reason of an error in one line: that of ``errno`` where set, as pyarrow does."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())


@contextmanager
def whole_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; rename it to ``path`` at the end.

    If the block raises, remove the temporary file and leave ``path`` as it was.

    :param force: replace an existing file
    :raises OutputError: if ``path`` exists (without force), is no regular file, or cannot be
        created; an OSError or ArrowException raised by the block while writing passes through
    """
    target = Path(path)
    _check(target, force)
    try:
        fd, name = tempfile.mkstemp(
            prefix=f".{target.name[:32]}.", suffix=".tmp", dir=target.parent
        )
    except OSError as error:
        raise OutputError(target, reason(error)) from None
    temporary = Path(name)
    try:
        os.close(fd)
        yield temporary
        try:
            _publish(temporary, target, force)
        except OSError as error:
            raise OutputError(target, reason(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _check(target: Path, force: bool) -> None:
    """Refuse a target that must not be replaced: root could rename a file over /dev/null."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(target, reason(error)) from None
    if stat.S_ISDIR(mode):
        raise OutputError(target, "is a directory")
    if not stat.S_ISREG(mode):
        raise OutputError(target, "not a regular file")
    if not force:
        raise OutputError(target, _EXISTS)


def _publish(temporary: Path, target: Path, force: bool) -> None:
    """Rename the finished file to its target."""
    if not force:
        try:
            # A link, unlike a rename, fails if another process made the file meanwhile.
            os.link(temporary, target)
            return
        except FileExistsError:
            raise OutputError(target, _EXISTS) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        _check(target, force)
    temporary.replace(target)
