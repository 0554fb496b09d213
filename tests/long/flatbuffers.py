"""Numbers of an Arrow file's FlatBuffers: those that say where something lies, and how many.

The walk knows no schema. What looks like a table or a vector is taken for one, so some numbers are
found under several widths.
"""

from __future__ import annotations

import struct

from gpudedup.images.dumps import ipc
from gpudedup.images.dumps.flatbuffer import Table

Spot = tuple[int, int]
"""Offset in the file, and width in bytes."""

MOST_ITEMS = 64
"""Words of a vector that are taken, at most."""


class _Walk:
    """The numbers of one FlatBuffer, ``data[start:stop]``, which begins with its root's offset."""

    def __init__(self, data: bytes, start: int, stop: int) -> None:
        self.data, self.start, self.stop = data, start, stop
        self.spots: set[Spot] = {(start, 4)}
        self._seen: set[int] = set()
        self.table(start + self._number("<I", start))

    def _number(self, kind: str, at: int) -> int:
        if not self.start <= at <= self.stop - struct.calcsize(kind):
            return 0
        number: int = struct.unpack_from(kind, self.data, at)[0]
        return number

    def table(self, at: int) -> bool:
        """Take the numbers of the table at ``at``; return False if there is none."""
        if at in self._seen:
            return True
        fields = at - self._number("<i", at)
        length = self._number("<H", fields)
        if fields == at or not 4 <= length <= 64 or length % 2 or fields + length > self.stop:
            return False
        self._seen.add(at)
        self.spots |= {(at, 4), (fields, 2), (fields + 2, 2)}
        for slot in range(fields + 4, fields + length, 2):
            self.spots.add((slot, 2))
            if offset := self._number("<H", slot):
                self._value(at + offset)
        return True

    def _value(self, at: int) -> None:
        self.spots |= {(at, width) for width in (1, 4, 8)}
        target = at + self._number("<I", at)
        if at < target <= self.stop - 4 and not self.table(target):
            self._vector(target)

    def _vector(self, at: int) -> None:
        count = self._number("<I", at)
        self.spots.add((at, 4))
        for item in range(at + 4, min(at + 4 + 4 * min(count, MOST_ITEMS), self.stop - 3), 4):
            if not self.table(item + self._number("<I", item)):
                self.spots |= {(item, 4), (item, 8)}


def spots(data: bytes) -> list[Spot]:
    """Return the numbers of the footer, the schema and all messages of an Arrow file."""
    start, footer = ipc._footer("", memoryview(data))
    found = {(len(data) - 10, 4), (8, 4), (12, 4), *_Walk(data, start, start + len(footer)).spots}
    heads = [(8, 8 + 8 + int.from_bytes(data[12:16], "little"))]
    for which in (ipc._FOOTER_DICTIONARIES, ipc._FOOTER_BATCHES):
        places = ipc._places(Table(footer), which)
        heads += [(place.offset, place.offset + place.head) for place in places]
    for begin, end in heads:
        marked = data[begin : begin + 4] == b"\xff\xff\xff\xff"
        found |= {(begin, 4), *_Walk(data, begin + (8 if marked else 4), end).spots}
    return sorted(spot for spot in found if sum(spot) <= len(data))
