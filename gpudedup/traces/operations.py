"""What each operation of a trace needs of its row; in the order of their codes."""

from __future__ import annotations

from enum import IntFlag

import numpy as np

from gpudedup.schema import OPERATIONS, Operation


class Need(IntFlag):
    """Bits of :data:`RULES`."""

    MAPPING = 1
    """a mapping that exists; without it ``mapping`` is not looked at"""
    ALIVE = 2
    """it was not dropped"""
    RANGE = 4
    """all pages lie in it"""
    FILE = 8
    """it is a file or shared memory"""
    NO_FILE = 16
    """it is neither"""
    GROWS = 32
    """it becomes as long as the range needs"""
    SETS = 64
    """it becomes ``index`` pages long"""
    MAKES = 128
    """a mapping of the same length comes into being"""
    ENDS = 256
    """the mapping ceases to exist"""
    DEVICE = 512
    """a device"""
    PLACE = 1024
    """a node or a device"""
    NODE = 2048
    """a node"""


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
"""(operations,) bool: whether an event of it is about ``count`` pages."""

COUNTS_PAGES[
    [Operation.FORK, Operation.REFLINK, Operation.DROP, Operation.TRUNCATE, Operation.MERGE]
] = False
