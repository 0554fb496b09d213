"""After all rows were looked up: every row gets the lowest row of its content.

What the rows hold until then is told in :mod:`gpudedup.engines.partition`.
"""

from __future__ import annotations

import numpy as np

from gpudedup.engines.base import PageClass
from gpudedup.engines.jit import compiled

CONTENT, ZERO, FILLED = int(PageClass.CONTENT), int(PageClass.ZERO), int(PageClass.FILLED)
ALIAS = int(PageClass.ALIAS)
FOLLOWER = 1 + max(PageClass)
"""CONTENT whose representative is still its anchor."""

_MIX = np.uint64(0x9E3779B97F4A7C15)


@compiled
def settle_contents(start, stop, classes, representative, zero_row):  # type: ignore[no-untyped-def]
    """Settle followers and ZERO rows among ``start .. stop - 1``; FOLLOWER becomes CONTENT.

    Anchors have their lowest row already and are not changed, so parts may be settled at the same
    time.

    :param zero_row: the lowest ZERO row
    """
    for row in range(start, stop):
        if classes[row] == ZERO:
            representative[row] = zero_row
        elif classes[row] == FOLLOWER:
            classes[row] = CONTENT
            representative[row] = representative[representative[row]]


@compiled
def settle_filled(classes, representative, table):  # type: ignore[no-untyped-def]
    """Settle FILLED rows, which hold their word.

    :param table: power-of-two number of int64 slots, more than such rows, all -1: scratch
    """
    last = np.uint64(len(table) - 1)
    for row in range(len(classes)):
        if classes[row] != FILLED:
            continue
        word = representative[row]
        slot = ((np.uint64(word) * _MIX) >> np.uint64(32)) & last
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
def settle_aliases(start, stop, classes, representative):  # type: ignore[no-untyped-def]
    """Settle ALIAS rows among ``start .. stop - 1``, which hold a row that is settled."""
    for row in range(start, stop):
        if classes[row] == ALIAS:
            representative[row] = representative[representative[row]]
