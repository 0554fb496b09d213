"""Count the costs of bookkeeping: look-ups, steps of walks, and bytes, each defined here.

Structures have the sizes that a kernel on a 64-bit machine would give them, not Python's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ENTRY_BYTES = 8
"""Bytes of a slot of a tree: a pointer or a tagged number."""

LEAF_ENTRIES = 64
LEAF_BYTES = 64 + LEAF_ENTRIES * ENTRY_BYTES
"""Bytes of Linux's ``xa_node``: head and slots. The few nodes above the leaves are left out."""

TREE_BYTES = 16
"""Bytes of Linux's ``xarray``, one per tree: lock, flags and the pointer to the first node."""

FRAME_BYTES = 64
"""Bytes of Linux's ``struct page``: node, flags, count, and pointer and index to its owner."""

ALIAS_BYTES = 48
"""Bytes of Glisse's alias: mapping, index, flags, private, and two pointers of the list."""

DESCRIPTOR_BYTES = 8
"""Bytes of a descriptor: home node and tag; and :data:`ENTRY_BYTES` per node of the machine."""

HIDDEN_BYTES = 8
"""Bytes of the reference count of a hidden page, in an array by its index."""


@dataclass(frozen=True, slots=True)
class OperationCosts:
    """Costs of all operations of one kind together.

    :param operation: name of the method
    :param calls: calls of the method
    :param pages: pages of these calls; 0 for calls on a whole mapping, or all mappings
    :param lookups, walks: as in :class:`Costs`
    """

    operation: str
    calls: int
    pages: int
    lookups: int
    walks: int


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of a layout so far.

    :param layout: name of the layout
    :param lookups: probes of a tree by index, or of a descriptor by node, misses included;
        replacing in place what was found is none
    :param walks: steps along a list, and entries met by a scan
    :param copies: frames filled from another: by stores, migration and replication
    :param frames, frames_peak: frames in use, replicas included, now and at most
    :param metadata_bytes, metadata_bytes_peak: bytes of structures, as sized above, now and at most
    :param pages_shared: merged frames
    :param pages_sharing: pages of merged frames, beyond the first of each
    :param operations: costs per kind of operation, in the order of their first calls
    """

    layout: str
    lookups: int
    walks: int
    copies: int
    frames: int
    frames_peak: int
    metadata_bytes: int
    metadata_bytes_peak: int
    pages_shared: int
    pages_sharing: int
    operations: tuple[OperationCosts, ...]


class Meter:
    """Counts the costs of one layout's structures as they arise."""

    __slots__ = ("_operations", "bytes", "bytes_peak", "call", "lookups", "walks")

    def __init__(self) -> None:
        self.lookups = self.walks = self.bytes = self.bytes_peak = 0
        self.call = 0
        self._operations: dict[str, list[int]] = {}

    def hold(self, size: int) -> None:
        """Add ``size`` metadata bytes, or free them, if it is negative."""
        self.bytes += size
        self.bytes_peak = max(self.bytes_peak, self.bytes)

    @contextmanager
    def counting(self, operation: str, pages: int = 0) -> Iterator[None]:
        """Charge what happens in the block to one call of an operation."""
        self.call += 1
        lookups, walks = self.lookups, self.walks
        try:
            yield
        finally:
            total = self._operations.setdefault(operation, [0, 0, 0, 0])
            total[0] += 1
            total[1] += pages
            total[2] += self.lookups - lookups
            total[3] += self.walks - walks

    @property
    def operations(self) -> tuple[OperationCosts, ...]:
        """Return the costs per kind of operation."""
        return tuple(OperationCosts(name, *total) for name, total in self._operations.items())
