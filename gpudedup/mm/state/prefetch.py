"""Asking for records before they are needed, so that a pass waits for many at once, not for each.

A pass over pages from anywhere takes two cache lines for each row, the page's record and its
frame's, and the second is known only when the first is there: so they are asked for in turn, one
:data:`AHEAD` rows after the other. Nothing is changed, and nothing depends on it: rows may be in
any order, or the same.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpudedup.compiled.intrinsics import prefetch_l2

AHEAD = 16
"""A power of two."""


@njit(nogil=True)
def ask_page(s, p):  # type: ignore[no-untyped-def]
    """Ask for the record of a page."""
    step = np.uint64(s.frame.strides[0])
    prefetch_l2(np.uint64(s.frame.ctypes.data) + np.uint64(p) * step)


@njit(nogil=True)
def ask_frame(s, f):  # type: ignore[no-untyped-def]
    """Ask for the record of a frame."""
    step = np.uint64(s.first.strides[0])
    prefetch_l2(np.uint64(s.first.ctypes.data) + np.uint64(f) * step)


@njit(nogil=True)
def ask_ahead(s, pages, i):  # type: ignore[no-untyped-def]
    """Ask for what rows after ``i`` of a pass over ``pages`` need."""
    if i + 2 * AHEAD < len(pages):
        ask_page(s, pages[i + 2 * AHEAD])
    if i + AHEAD < len(pages):
        ask_frame(s, s.frame[pages[i + AHEAD]])
