"""Where the record batches of an Arrow IPC file lie, and whether they are compressed.

pyarrow tells neither, and it would decompress a batch to show its columns. Both stand in
FlatBuffers: the footer lists the blocks, and each block begins with a message. Layouts are those
of Arrow's File.fbs and Message.fbs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gpudedup.errors import ImageError

MAGIC = b"ARROW1"
_TAIL = 4 + len(MAGIC)
_FOOTER_BATCHES = 3
_MESSAGE_TYPE, _MESSAGE_HEADER = 1, 2
_BATCH_COMPRESSION = 3
_IS_RECORD_BATCH = 3
_BLOCK = 24
_CONTINUES = 0xFFFFFFFF


class Block(NamedTuple):
    """One record batch: its place in the file, and whether its buffers are compressed."""

    offset: int
    compressed: bool


class _BrokenError(Exception):
    """A position in a FlatBuffer lies outside of it."""


def blocks(path: str, data: memoryview) -> list[Block]:
    """Return the record batches that the footer lists.

    :param data: the whole file
    :raises ImageError: if the file is cut off, or what is needed here lies outside of it
    """
    size = len(data)
    if size < 8 + _TAIL or bytes(data[-len(MAGIC) :]) != MAGIC:
        raise ImageError(path, "cut off: an Arrow file ends with ARROW1", size)
    length = int.from_bytes(data[-_TAIL : -len(MAGIC)], "little")
    start = size - _TAIL - length
    if start < 8:
        raise ImageError(path, f"a footer of {length} bytes is larger than the file", size - _TAIL)
    try:
        places = list(_places(_Table(data[start : size - _TAIL])))
    except _BrokenError:
        raise ImageError(path, "the footer is damaged", start) from None
    found: list[Block] = []
    for offset, head, body in places:
        if not 8 <= offset <= offset + head + body <= start or head < 8 or body < 0:
            reason = f"the footer puts record batch {len(found)} outside of the file"
            raise ImageError(path, reason, start)
        try:
            found.append(Block(offset, _is_compressed(data[offset : offset + head])))
        except _BrokenError:
            raise ImageError(path, f"record batch {len(found)} is damaged", offset) from None
    return found


def _places(footer: _Table) -> Iterator[tuple[int, int, int]]:
    """Yield offset, bytes of the message and bytes of the body of each block."""
    vector = footer.target(_FOOTER_BATCHES)
    if vector is None:
        return
    first = vector + 4
    for at in range(first, first + _BLOCK * footer.read(vector, 4), _BLOCK):
        head = footer.read(at + 8, 4)
        yield footer.read(at, 8, signed=True), head, footer.read(at + 16, 8, signed=True)


def _is_compressed(message: memoryview) -> bool:
    # Before Arrow 0.15 the length came without the marker in front of it.
    marked = int.from_bytes(message[:4], "little") == _CONTINUES
    table = _Table(message[8 if marked else 4 :])
    kind, header = table.place(_MESSAGE_TYPE), table.target(_MESSAGE_HEADER)
    if kind is None or header is None or table.read(kind, 1) != _IS_RECORD_BATCH:
        raise _BrokenError
    return _Table(table.data, header).place(_BATCH_COMPRESSION) is not None


class _Table:
    """A table of a FlatBuffer: its fields are found through a table of their places.

    :param data: the FlatBuffer, which begins with the place of its root
    :param at: place of the table; None: the root
    """

    def __init__(self, data: memoryview, at: int | None = None) -> None:
        self.data = data
        self._at = self.read(0, 4) if at is None else at
        self._fields = self._at - self.read(self._at, 4, signed=True)
        self._length = self.read(self._fields, 2)

    def read(self, at: int, width: int, *, signed: bool = False) -> int:
        """Return a number of ``width`` bytes."""
        if not 0 <= at <= len(self.data) - width:
            raise _BrokenError
        return int.from_bytes(self.data[at : at + width], "little", signed=signed)

    def place(self, field: int) -> int | None:
        """Return where a field's value lies; None: it has its default."""
        slot = 4 + 2 * field
        if slot + 2 > self._length:
            return None
        offset = self.read(self._fields + slot, 2)
        return self._at + offset if offset else None

    def target(self, field: int) -> int | None:
        """Return where lies what a field refers to."""
        place = self.place(field)
        return None if place is None else place + self.read(place, 4)
