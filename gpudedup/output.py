"""Files that appear whole or not at all.

Dumps hold secrets: every file is created with mode 0600.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpudedup.errors import OutputError


@contextmanager
def whole_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; rename it to ``path`` at the end.

    If the block raises, the temporary file is removed and ``path`` is left as it was.

    :param force: replace an existing file
    :raises OutputError: if ``path`` exists (without force) or cannot be written; an OSError or
        ArrowException raised by the block while writing passes through
    """
    target = Path(path)
    if target.exists() and not force:
        raise OutputError(target, "exists already (--force replaces it)")
    if target.is_dir():
        raise OutputError(target, "is a directory")
    try:
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise OutputError(target, error.strerror or str(error)) from None
    os.close(fd)
    temporary = Path(name)
    try:
        yield temporary
        if force:
            temporary.replace(target)
        else:
            # A link, unlike a rename, fails if somebody made the file in the meantime.
            os.link(temporary, target)
            temporary.unlink()
    except FileExistsError:
        temporary.unlink(missing_ok=True)
        raise OutputError(target, "exists already (--force replaces it)") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
