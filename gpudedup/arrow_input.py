"""Errors, text and columns of Arrow files that may be damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

REFUSALS = (pa.ArrowException, OSError, ValueError, LookupError)
"""Errors that pyarrow raises on damaged files."""


def shown(value: object) -> str:
    """Return a value from a file as text for one line of a terminal."""
    line = " ".join(str(value).split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def filled(column: pa.Array, value: int) -> npt.NDArray[Any]:
    """Return a column of numbers with ``value`` in place of each null."""
    if column.null_count:
        column = column.fill_null(value)
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def first_null(column: pa.Array) -> int:
    """Return the index of the first null of a column that has one."""
    return int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
