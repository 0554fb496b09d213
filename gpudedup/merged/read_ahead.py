"""Pieces that are read while the ones before are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")

PIECE_BYTES = 1 << 20
"""Pages that are read, then written: what was read is still in the cache; with 64 MiB at a time a
copy took half as long again. Of 2 MiB and more a plain copy to ext4 often took three times as long
(Linux 6.18; presumably for its huge folios)."""

DEPTH = 3
"""Pieces that are ready or being read; so many buffers are needed, and one that is written."""


def ahead(pool: Executor, work: Callable[[int], T], count: int) -> Generator[T, None, None]:
    """Yield ``work(0)`` .. ``work(count - 1)``; ``pool`` does up to :data:`DEPTH` more meanwhile.

    Close it, or use up all of it, before what ``work`` needs goes away.
    """
    waiting: deque[Future[T]] = deque()
    started = 0
    try:
        while started < count or waiting:
            while started < count and len(waiting) < DEPTH:
                waiting.append(pool.submit(work, started))
                started += 1
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
