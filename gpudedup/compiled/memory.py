"""Host memory for the large arrays of an engine."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2 << 20


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros that start on a page, if they fill one on a huge page.

    Touching huge pages first costs a third; NumPy asks for them too, but its arrays start anywhere,
    and ends get small ones. And what is read from files goes to aligned memory: on Zen 3 the
    kernel copies to an address that is not a multiple of 64 at a sixth of the speed.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    spare = HUGE_PAGE if size >= HUGE_PAGE else 1
    memory = mmap.mmap(-1, size + spare, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size < HUGE_PAGE:
        return np.ndarray(shape, dtype, memory)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    return np.ndarray(shape, dtype, memory, offset=-address % HUGE_PAGE)
