"""A counted page cache: index to entry, in leaves as an xarray has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from gpudedup.layouts.meter import LEAF_BYTES, LEAF_ENTRIES, TREE_BYTES, Meter

Entry = TypeVar("Entry")


class Tree(Generic[Entry]):
    """Entries by index. During a call the tree keeps its last position, as an ``xa_state`` does.

    Putting an entry there costs nothing more, anywhere else a look-up. Empty leaves are freed.
    """

    __slots__ = ("_at", "_call", "_leaves", "_meter", "_used")

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._leaves: dict[int, list[Entry | None]] = {}
        self._used: dict[int, int] = {}
        self._at = self._call = -1
        meter.hold(TREE_BYTES)

    def __len__(self) -> int:
        return sum(self._used.values())

    @property
    def bytes(self) -> int:
        """Return the metadata bytes of the tree, recounted."""
        return TREE_BYTES + len(self._leaves) * LEAF_BYTES

    def close(self) -> None:
        """Free the tree, which must be empty."""
        self._meter.hold(-TREE_BYTES)

    def find(self, index: int) -> Entry | None:
        """Return the entry at ``index``, or None; a look-up."""
        self._meter.lookups += 1
        self._at, self._call = index, self._meter.call
        leaf = self._leaves.get(index // LEAF_ENTRIES)
        return None if leaf is None else leaf[index % LEAF_ENTRIES]

    def put(self, index: int, entry: Entry | None) -> None:
        """Set or remove the entry at ``index``; a look-up, unless the tree stands there."""
        if self._at != index or self._call != self._meter.call:
            self._meter.lookups += 1
            self._at, self._call = index, self._meter.call
        number, slot = divmod(index, LEAF_ENTRIES)
        leaf = self._leaves.get(number)
        if leaf is None:
            if entry is None:
                return
            leaf = self._leaves[number] = [None] * LEAF_ENTRIES
            self._used[number] = 0
            self._meter.hold(LEAF_BYTES)
        self._used[number] += (entry is not None) - (leaf[slot] is not None)
        leaf[slot] = entry
        if not self._used[number]:
            del self._leaves[number], self._used[number]
            self._meter.hold(-LEAF_BYTES)

    def scan(self, start: int = 0) -> Iterator[tuple[int, Entry]]:
        """Yield index and entry from ``start`` on, a step each; the tree stands at the last one.

        Entries may be replaced meanwhile; new ones may be missed.
        """
        for index, entry in self.entries(start):
            self._meter.walks += 1
            self._at, self._call = index, self._meter.call
            yield index, entry

    def entries(self, start: int = 0) -> Iterator[tuple[int, Entry]]:
        """Yield index and entry from ``start`` on, uncounted: for checks."""
        for number in sorted(self._leaves):
            if (number + 1) * LEAF_ENTRIES <= start:
                continue
            leaf = self._leaves[number]
            for slot in range(max(0, start - number * LEAF_ENTRIES), LEAF_ENTRIES):
                entry = leaf[slot]
                if entry is not None:
                    yield number * LEAF_ENTRIES + slot, entry
