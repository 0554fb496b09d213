"""Print all of a result or fail: an unbuffered stdout of Python drops what a short write leaves."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def buffered_stdout() -> Iterator[None]:
    """Buffer stdout in the block, where PYTHONUNBUFFERED or ``-u`` left it without a buffer.

    A buffer writes the rest again, so that a disk that fills up is an error. Whoever prints must
    flush, as ``typer.echo`` does.
    """
    before = sys.stdout
    if not isinstance(getattr(before, "buffer", None), io.RawIOBase):
        yield
        return
    sys.stdout = stream = open(  # noqa: SIM115 - closed below, where it may fail
        before.fileno(), "w", encoding=before.encoding, errors=before.errors, closefd=False
    )
    try:
        yield
    finally:
        sys.stdout = before
        # What could not be written before cannot be now, and has raised its error.
        with suppress(OSError):
            stream.close()
