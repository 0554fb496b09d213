"""Read pieces ahead while those before them are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")

PIECE_BYTES = 1 << 20
"""Page bytes of a piece: few enough to be in the cache still when written. A copy in pieces of
64 MiB took 1.5 times as long. With 2 MiB and more a plain copy to ext4 often took three times as
long (Linux 6.18; presumably for its huge folios)."""

DEPTH = 3
"""Pieces in flight at most: one is written while the rest are ready or being read."""


def ahead(pool: Executor, work: Callable[[int], T], count: int) -> Generator[T, None, None]:
    """Yield ``work(0)`` .. ``work(count - 1)`` in order; ``pool`` works :data:`DEPTH` - 1 ahead.

    What was yielded is done with once the next is asked for, so :data:`DEPTH` buffers suffice.
    Exhaust or close the generator before freeing what ``work`` uses.
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
