"""How functions are compiled: without the GIL, kept on disk where there is a place for it.

numba keeps compiled code beside the source, or in the user's cache directory if that is
read-only. Two things are added. Without a place numba refuses to compile, and a full disk or a
damaged file is an error: here the code is then compiled anew in each process. And numba looks only
at the file of the function itself, though it compiles in what that calls and the constants that it
reads: here a change in any module of gpudedup, or beside the function, makes the code stale.

Compiled functions have no annotations (``type: ignore[no-untyped-def]`` at each): numba infers
types from the arguments of a call, and their docstrings say what these are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

_PACKAGE = Path(__file__).parents[1]


@cache
def hash_of_sources(folder: Path) -> str:
    """Return a hash of all modules below a folder, and of those of its kernels.

    Code compiled from one module may hold constants and functions of any other.
    """
    content = hashlib.sha256()
    # Kernels by name: in a checkout they are a link, which ``rglob`` does not follow.
    for root in (folder, folder / "kernels"):
        for path in sorted(root.rglob("*.py")):
            content.update(path.read_bytes())
    return content.hexdigest()[:16]


def _key(module: Path) -> str:
    """Return what code compiled from ``module`` depends on, as a hash."""
    key = hash_of_sources(_PACKAGE)
    return key if module.is_relative_to(_PACKAGE) else key + hash_of_sources(module.parent)


class _Cache(FunctionCache):
    """numba's cache on disk, which may fail, in files named after the sources.

    :raises RuntimeError: if there is no directory for it
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        key = _key(Path(function.__code__.co_filename))
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=f"{self._impl.filename_base}-{key}",
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def load_overload(self, *which: Any) -> Any:
        """Return compiled code, or None."""
        try:
            return super().load_overload(*which)
        except Exception:
            # A damaged file may raise whatever unpickling and linking can raise.
            with suppress(OSError):
                self._cache_file.flush()
            return None

    def save_overload(self, *which: Any) -> None:
        """Keep compiled code, if the disk takes it."""
        with suppress(OSError):
            super().save_overload(*which)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``function`` when it is first called; for what Python calls."""
    dispatcher: Any = njit(nogil=True)(function)
    with suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return dispatcher
