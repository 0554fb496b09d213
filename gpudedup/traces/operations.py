"""What each operation of a trace requires of its event, by the operation's code."""

from __future__ import annotations

from enum import IntFlag

import numpy as np

from gpudedup.schema import OPERATIONS, Operation


class Need(IntFlag):
    """Bits of :data:`RULES`."""

    MAPPING = 1
    """``mapping`` exists; without this bit it is ignored"""
    ALIVE = 2
    """the mapping was not dropped"""
    RANGE = 4
    """all pages lie in the mapping"""
    FILE = 8
    """the mapping is a file or shared memory"""
    NO_FILE = 16
    """the mapping is neither"""
    GROWS = 32
    """the mapping grows to hold the range"""
    SETS = 64
    """the mapping becomes ``index`` pages long"""
    MAKES = 128
    """a mapping of the same kind and length is made"""
    ENDS = 256
    """the mapping is dropped"""
    DEVICE = 512
    """``device`` is given"""
    PLACE = 1024
    """either ``node`` or ``device`` is given"""
    NODE = 2048
    """``node`` is given"""


_LIVE = Need.MAPPING | Need.ALIVE
_PAGES = _LIVE | Need.RANGE

_RULES: dict[Operation, Need] = {
    Operation.FILE_WRITE: _LIVE | Need.FILE | Need.GROWS,
    Operation.FORK: _LIVE | Need.NO_FILE | Need.MAKES,
    Operation.REFLINK: _LIVE | Need.FILE | Need.MAKES,
    Operation.DROP: _LIVE | Need.ENDS,
    Operation.TRUNCATE: _LIVE | Need.SETS,
    Operation.UNPIN: Need.MAPPING,
    Operation.CLOSE: Need.MAPPING,
    Operation.MIGRATE: _PAGES | Need.PLACE,
    Operation.REPLICATE: _PAGES | Need.PLACE,
    Operation.CACHE: _PAGES | Need.NODE,
    Operation.MERGE: Need(0),
    Operation.DEVICE_READ: _PAGES | Need.DEVICE,
    Operation.DEVICE_WRITE: _PAGES | Need.DEVICE,
    Operation.ATOMIC_ADD: _PAGES | Need.DEVICE,
}

RULES = np.array([_RULES.get(operation, _PAGES) for operation in Operation], np.int64)
"""(operations,) int64, bits of :class:`Need`."""

COUNTS_PAGES = np.ones(len(OPERATIONS), np.bool_)
"""(operations,) bool, True for operations on ``count`` pages."""

COUNTS_PAGES[
    [Operation.FORK, Operation.REFLINK, Operation.DROP, Operation.TRUNCATE, Operation.MERGE]
] = False
