"""Tables of FlatBuffers, in which Arrow keeps the metadata of a file."""

from __future__ import annotations

import struct
from typing import Any

_READ = {
    (width, signed): struct.Struct("<" + (code if signed else code.upper())).unpack_from
    for width, code in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))
    for signed in (False, True)
}
_PAIR = struct.Struct("<qq")


class BrokenError(Exception):
    """A position lies outside of its FlatBuffer."""


class Table:
    """A table of a FlatBuffer; its vtable gives the place of each field.

    :param data: FlatBuffer, which begins with the offset of its root
    :param at: offset of the table; None: the root
    """

    __slots__ = ("_at", "_fields", "_length", "data")

    def __init__(self, data: memoryview, at: int | None = None) -> None:
        self.data = data
        self._at = self.read(0, 4) if at is None else at
        self._fields = self._at - self.read(self._at, 4, signed=True)
        self._length = self.read(self._fields, 2)

    def read(self, at: int, width: int, *, signed: bool = False) -> int:
        """Return a number of ``width`` bytes."""
        # A negative offset would count from the end.
        if at < 0:
            raise BrokenError
        try:
            number: int = _READ[width, signed](self.data, at)[0]
        except struct.error:
            raise BrokenError from None
        return number

    def place(self, field: int) -> int | None:
        """Return the offset of a field's value; None: it has its default."""
        slot = 4 + 2 * field
        if slot + 2 > self._length:
            return None
        offset = self.read(self._fields + slot, 2)
        return self._at + offset if offset else None

    def target(self, field: int) -> int | None:
        """Return the offset that a field refers to; None: the field is absent."""
        place = self.place(field)
        return None if place is None else place + self.read(place, 4)

    def table(self, field: int) -> Table:
        """Return the table that a field refers to."""
        target = self.target(field)
        if target is None:
            raise BrokenError
        return Table(self.data, target)

    def number(self, field: int, width: int = 8) -> int:
        """Return a signed number of ``width`` bytes; 0 if the field is absent."""
        place = self.place(field)
        return 0 if place is None else self.read(place, width, signed=True)

    def numbers(self, field: int) -> list[int]:
        """Return a vector of signed 64-bit numbers; empty if the field is absent."""
        vector = self.target(field)
        if vector is None:
            return []
        first = vector + 4
        count = self.read(vector, 4)
        return [self.read(at, 8, signed=True) for at in range(first, first + 8 * count, 8)]

    def pairs(self, field: int, count: int | None = None) -> list[tuple[int, int]]:
        """Return a vector of structs of two signed 64-bit numbers each.

        :param count: how many there must be; None: any number
        """
        vector = self.target(field)
        if vector is None:
            raise BrokenError
        found = self.read(vector, 4)
        first = vector + 4
        listed = self.data[first : first + _PAIR.size * found]
        if len(listed) != _PAIR.size * found or (count is not None and found != count):
            raise BrokenError
        pairs: list[Any] = list(_PAIR.iter_unpack(listed))
        return pairs
