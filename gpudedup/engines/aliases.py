"""Find the lowest row of each frame."""

from __future__ import annotations

import numpy as np

from gpudedup.compiled.intrinsics import prefetch
from gpudedup.compiled.jit import compiled
from gpudedup.compiled.splitmix import GAMMA

_AHEAD = 32


@compiled
def first_rows(frame, unknown, table, row, out):  # type: ignore[no-untyped-def]
    """Write for each row the lowest row with the same frame; return how many have a lower one.

    :param frame: (n,) uint64 physical frames
    :param unknown: value of ``frame`` where the frame is unknown: the row is its own lowest
    :param table: scratch: power-of-two number of int64 slots, more than n, all -1
    :param row: number of row 0 of ``frame`` in the results
    :param out: (n,) int64, written
    """
    last = np.uint64(len(table) - 1)
    shift = np.uint64(32)
    start = np.uint64(table.ctypes.data)
    aliases = 0
    for i in range(len(frame)):
        if i + _AHEAD < len(frame):
            ahead = ((frame[i + _AHEAD] * np.uint64(GAMMA)) >> shift) & last
            prefetch(start + ahead * np.uint64(8))
        out[i] = row + i
        if frame[i] == unknown:
            continue
        slot = ((frame[i] * np.uint64(GAMMA)) >> shift) & last
        while True:
            seen = table[slot]
            if seen < 0:
                table[slot] = i
                break
            if frame[seen] == frame[i]:
                out[i] = row + seen
                aliases += 1
                break
            slot = (slot + np.uint64(1)) & last
    return aliases
