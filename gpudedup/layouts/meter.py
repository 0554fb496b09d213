"""What bookkeeping costs: look-ups, steps of walks, and bytes of structures, each defined here.

The sizes are those that the structures would have in a kernel on a 64-bit machine, not those that
Python gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ENTRY_BYTES = 8
"""A slot of a tree: a pointer or a tagged number."""

LEAF_ENTRIES = 64
LEAF_BYTES = 64 + LEAF_ENTRIES * ENTRY_BYTES
"""Linux's ``xa_node``: 64 slots and its head. Nodes above leaves, 1/64 of them, are left out."""

TREE_BYTES = 16
"""Linux's ``xarray``: lock, flags and the pointer to the first node; for each tree of a mapping."""

FRAME_BYTES = 64
"""Linux's ``struct page``: node, flags, count, and one pointer and index to whoever has it."""

ALIAS_BYTES = 48
"""mapping, index, flags, private, and two pointers of the list, as Glisse's alias has them."""

DESCRIPTOR_BYTES = 8
"""Home node and tag of a descriptor; and :data:`ENTRY_BYTES` for each node of the machine."""

HIDDEN_BYTES = 8
"""How many entries refer to a page of the hidden mapping, in an array by its index there."""


@dataclass(frozen=True, slots=True)
class OperationCosts:
    """What all operations of one kind cost together.

    :param operation: name of the method
    :param calls: how often it was called
    :param pages: that it was called for; of a call for a whole mapping, or all, 0
    :param lookups, walks: as in :class:`Costs`
    """

    operation: str
    calls: int
    pages: int
    lookups: int
    walks: int


@dataclass(frozen=True, slots=True)
class Costs:
    """What a layout needed so far.

    :param layout: its name
    :param lookups: probes of a tree by index, or of a descriptor by node, the vain ones included.
        What was found may be replaced in place without another.
    :param walks: steps along a list, and entries met by a scan
    :param copies: frames filled from others: by stores, migration and replication
    :param frames: in use, replicas included
    :param frames_peak: most at any moment
    :param metadata_bytes: of all structures, of the sizes in :mod:`gpudedup.layouts.meter`
    :param metadata_bytes_peak: most at any moment
    :param pages_shared: merged frames
    :param pages_sharing: pages that have one, beyond the first of each
    :param operations: the same by kind of operation, in the order of their first calls
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
    """Counts what the structures of one layout do, where they do it."""

    __slots__ = ("_operations", "bytes", "bytes_peak", "call", "lookups", "walks")

    def __init__(self) -> None:
        self.lookups = self.walks = self.bytes = self.bytes_peak = 0
        self.call = 0
        self._operations: dict[str, list[int]] = {}

    def hold(self, size: int) -> None:
        """Count ``size`` bytes more of structures; fewer, if it is negative."""
        self.bytes += size
        self.bytes_peak = max(self.bytes_peak, self.bytes)

    @contextmanager
    def counting(self, operation: str, pages: int = 0) -> Iterator[None]:
        """Put what happens meanwhile down to one call of an operation."""
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
        """Return the costs by kind of operation."""
        return tuple(OperationCosts(name, *total) for name, total in self._operations.items())
