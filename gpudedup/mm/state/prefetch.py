"""Prefetch page and frame records so that cache misses overlap.

A pass over arbitrary pages reads two cache lines for each row, the page's record and its frame's,
and the address of the second is known only when the first has arrived: pages are prefetched
``2 * AHEAD`` rows before their use, frames :data:`AHEAD`. Rows may be in any order, or repeat.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.intrinsics import prefetch_l2

AHEAD = 16
"""Rows between the prefetch of a record and its use; a power of two."""


@njit(nogil=True)
def ask_page(s, p):  # type: ignore[no-untyped-def]
    """Prefetch the record of a page."""
    step = np.uint64(s.frame.strides[0])
    prefetch_l2(np.uint64(s.frame.ctypes.data) + np.uint64(p) * step)


@njit(nogil=True)
def ask_frame(s, f):  # type: ignore[no-untyped-def]
    """Prefetch the record of a frame."""
    step = np.uint64(s.first.strides[0])
    prefetch_l2(np.uint64(s.first.ctypes.data) + np.uint64(f) * step)


@njit(nogil=True)
def ask_ahead(s, pages, i):  # type: ignore[no-untyped-def]
    """Prefetch the records that rows after ``i`` of a pass over ``pages`` need."""
    if i + 2 * AHEAD < len(pages):
        ask_page(s, pages[i + 2 * AHEAD])
    if i + AHEAD < len(pages):
        ask_frame(s, s.frame[pages[i + AHEAD]])
