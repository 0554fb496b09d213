"""Resolve representatives: set that of every row to the lowest row of its content.

Before :func:`resolve`, the representative of CONTENT is that lowest row already, that of a FOLLOWER
its anchor, that of an ALIAS the lowest row of its frame, and that of FILLED its word.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from gpudedup.compiled.jit import compiled
from gpudedup.compiled.memory import zeros
from gpudedup.compiled.splitmix import GAMMA
from gpudedup.engines.base import PageClass, Partition

FOLLOWER = 1 + max(PageClass)
"""CONTENT whose representative is still its anchor."""


def new_partition(rows: int, alias_of: npt.NDArray[np.int64] | None) -> Partition:
    """Return an empty partition with only the aliases set; ``alias_of`` as in Engine.partition."""
    result = Partition(
        digests=zeros((rows, 2), np.uint64),
        classes=zeros((rows,), np.uint8),
        representative=zeros((rows,), np.int64),
        collisions=0,
    )
    if alias_of is not None:
        np.copyto(result.representative, alias_of)
        result.classes[alias_of < np.arange(rows)] = PageClass.ALIAS
    return result


def resolve(
    pool: Executor, threads: int, result: Partition, zero_row: int, *, has_aliases: bool
) -> None:
    """Set the representative of every row; ``zero_row`` is the lowest ZERO row, if any."""
    classes, representative = result.classes, result.representative
    over_rows(pool, threads, result, resolve_contents, zero_row)
    filled = int(np.count_nonzero(classes == PageClass.FILLED))
    if filled:
        resolve_filled(classes, representative, np.full(1 << filled.bit_length(), -1, np.int64))
    if has_aliases:
        over_rows(pool, threads, result, follow, True)


def over_rows(
    pool: Executor, threads: int, result: Partition, work: Callable[..., None], *more: object
) -> None:
    """Call ``work(start, stop, classes, representative, *more)`` for all rows, in parts."""
    n = len(result.classes)
    step = max(1, -(-n // threads))
    jobs = [
        pool.submit(work, a, min(a + step, n), result.classes, result.representative, *more)
        for a in range(0, n, step)
    ]
    for job in jobs:
        job.result()


@compiled
def resolve_contents(start, stop, classes, representative, zero_row):  # type: ignore[no-untyped-def]
    """Resolve followers, and ZERO rows to ``zero_row``; FOLLOWER becomes CONTENT.

    Only rows ``start .. stop - 1``. Anchors are resolved already and do not change, so threads may
    resolve parts concurrently.
    """
    for row in range(start, stop):
        if classes[row] == PageClass.ZERO:
            representative[row] = zero_row
        elif classes[row] == FOLLOWER:
            classes[row] = PageClass.CONTENT
            representative[row] = representative[representative[row]]


@compiled
def resolve_filled(classes, representative, table):  # type: ignore[no-untyped-def]
    """Resolve FILLED rows; ``table``, scratch: 2**k int64 slots, more than such rows, all -1."""
    last = np.uint64(len(table) - 1)
    for row in range(len(classes)):
        if classes[row] != PageClass.FILLED:
            continue
        word = representative[row]
        slot = ((np.uint64(word) * np.uint64(GAMMA)) >> np.uint64(32)) & last
        while table[slot] >= 0 and representative[table[slot]] != word:
            slot = (slot + np.uint64(1)) & last
        if table[slot] < 0:
            table[slot] = row
        else:
            representative[row] = table[slot]
    # The first row of each word kept the word until here, for later rows to compare with.
    for row in table:
        if row >= 0:
            representative[row] = row


@compiled
def follow(start, stop, classes, representative, aliases):  # type: ignore[no-untyped-def]
    """Set the representative of rows to its own: of ALIAS rows, or of all others.

    Only rows ``start .. stop - 1``. The representative of each row has itself or a final row as
    representative, so threads may do parts concurrently; ALIAS rows come after all others.
    """
    for row in range(start, stop):
        if (classes[row] == PageClass.ALIAS) == aliases:
            representative[row] = representative[representative[row]]
