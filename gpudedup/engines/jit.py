"""How functions are compiled: without the GIL, kept on disk where there is a place for it.

numba keeps compiled code beside the source, or in the user's cache directory if that is
read-only. Without either it refuses to compile at all; then the code is compiled anew each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``function`` when it is first called; for what Python calls."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # "no locator available": neither directory can be written.
        return njit(nogil=True)(function)
