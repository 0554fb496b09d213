"""Compile functions with numba, without the GIL, and cache the code on disk where possible.

numba's cache lies beside the source, or in the user's cache directory if that is read-only. Without
a directory, on a full disk or with a damaged file numba fails; here each process compiles anew.
A cache holds pickles, which run when they are loaded: as root, with the home directory of another
user or none at all, numba takes a folder in which others may write. Such folders are passed over.
numba checks only the function's own file, though it compiles in callees and constants; here a
change in any module of gpudedup, or beside the function, makes the code stale.

Compiled functions have no annotations (``type: ignore[no-untyped-def]`` at each): numba infers
types from the arguments of a call, and docstrings state them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile

from gpudedup.compiled.folders import private_folder

_PACKAGE = Path(__file__).parents[1]


@cache
def hash_of_sources(folder: Path) -> str:
    """Return a hash of all modules below ``folder``: compiled code may hold parts of any."""
    content = hashlib.sha256()
    # Kernels by name: in a checkout they are a link, which ``rglob`` does not follow.
    for root in (folder, folder / "kernels"):
        for path in sorted(root.rglob("*.py")):
            content.update(path.read_bytes())
    return content.hexdigest()[:16]


def _key(module: Path) -> str:
    """Return a hash of the sources that code compiled from ``module`` depends on."""
    key = hash_of_sources(_PACKAGE)
    return key if module.is_relative_to(_PACKAGE) else key + hash_of_sources(module.parent)


def _only_private(locator: Any) -> Any:
    """Return a subclass of one of numba's ways to find a directory that refuses unsafe ones."""

    # A base that is known only when it runs.
    class Private(locator):  # type: ignore[misc]
        def ensure_cache_path(self) -> None:
            # Before numba makes it: ``~`` stands for no home directory in a relative path.
            if private_folder(self.get_cache_path()) is None:
                raise PermissionError(self.get_cache_path())
            super().ensure_cache_path()

    return Private


class _Places(CompileResultCacheImpl):
    """numba's ways to find a directory, each refusing unsafe ones."""

    _locator_classes = [  # noqa: RUF012 - numba's own declaration
        _only_private(each) for each in CompileResultCacheImpl._locator_classes
    ]


class _Cache(FunctionCache):
    """numba's cache on disk, in files named by the hash of the sources; its errors are ignored.

    :raises RuntimeError: if no directory is writable, and by nobody else
    """

    _impl_class = _Places

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        # The real path: who may not write there may yet own a link that leads there.
        self._cache_path = private_folder(self._cache_path)
        if self._cache_path is None:
            raise RuntimeError("others may write to the cache")
        key = _key(Path(function.__code__.co_filename))
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path,
            filename_base=f"{self._impl.filename_base}-{key}",
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def load_overload(self, *which: Any) -> Any:
        """Return compiled code, or None if it cannot be loaded."""
        try:
            return super().load_overload(*which)
        except Exception:
            # A damaged file may raise whatever unpickling and linking can raise.
            with suppress(OSError):
                self._cache_file.flush()
            return None

    def save_overload(self, *which: Any) -> None:
        """Save compiled code, unless the disk fails."""
        with suppress(OSError):
            super().save_overload(*which)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile ``function`` at its first call; for functions that Python calls."""
    dispatcher: Any = njit(nogil=True)(function)
    with suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return dispatcher
