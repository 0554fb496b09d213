"""After all rows were looked up: every row gets the lowest row of its content.

What the rows hold until then: CONTENT its lowest row already, a FOLLOWER a row that holds it,
FILLED its word.
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
    """Return a partition to be filled in, in which only aliases are told.

    :param alias_of: (rows,) int64, as in :meth:`gpudedup.engines.base.Engine.partition`
    """
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
    """Give every row the lowest row of its content.

    :param zero_row: the lowest ZERO row, if there is one
    """
    classes, representative = result.classes, result.representative
    n = len(classes)
    step = max(1, -(-n // threads))

    def parts(work: Callable[..., None], *more: object) -> None:
        jobs = [
            pool.submit(work, a, min(a + step, n), classes, representative, *more)
            for a in range(0, n, step)
        ]
        for job in jobs:
            job.result()

    parts(resolve_contents, zero_row)
    filled = int(np.count_nonzero(classes == PageClass.FILLED))
    if filled:
        resolve_filled(classes, representative, np.full(1 << filled.bit_length(), -1, np.int64))
    if has_aliases:
        parts(resolve_aliases)


@compiled
def resolve_contents(start, stop, classes, representative, zero_row):  # type: ignore[no-untyped-def]
    """Settle followers and ZERO rows among ``start .. stop - 1``; FOLLOWER becomes CONTENT.

    Anchors have their lowest row already and are not changed, so parts may be settled at the same
    time.

    :param zero_row: the lowest ZERO row
    """
    for row in range(start, stop):
        if classes[row] == PageClass.ZERO:
            representative[row] = zero_row
        elif classes[row] == FOLLOWER:
            classes[row] = PageClass.CONTENT
            representative[row] = representative[representative[row]]


@compiled
def resolve_filled(classes, representative, table):  # type: ignore[no-untyped-def]
    """Settle FILLED rows, which hold their word.

    :param table: power-of-two number of int64 slots, more than such rows, all -1: scratch
    """
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
    # The first of each word kept it until here, for the others to compare with.
    for row in table:
        if row >= 0:
            representative[row] = row


@compiled
def resolve_aliases(start, stop, classes, representative):  # type: ignore[no-untyped-def]
    """Settle ALIAS rows among ``start .. stop - 1``, which hold a row that is settled."""
    for row in range(start, stop):
        if classes[row] == PageClass.ALIAS:
            representative[row] = representative[representative[row]]
