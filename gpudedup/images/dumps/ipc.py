"""Blocks of an Arrow IPC file: their offsets, rows, and whether they are compressed.

pyarrow hides this, decompresses a batch to show its columns, and joins the parts of a dictionary in
memory. The file has it in FlatBuffers: the footer lists the blocks, and each block begins with a
message. Layouts are those of Arrow's File.fbs, Message.fbs and Schema.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from gpudedup.errors import ImageError
from gpudedup.images.dumps.flatbuffer import BrokenError, Table

MAGIC = b"ARROW1"
_TAIL = 4 + len(MAGIC)
_FOOTER_SCHEMA, _FOOTER_DICTIONARIES, _FOOTER_BATCHES = 1, 2, 3
_SCHEMA_ENDIANNESS, _SCHEMA_FIELDS = 0, 1
_FIELD_NAME, _FIELD_DICTIONARY = 0, 4
_MESSAGE_TYPE, _MESSAGE_HEADER, _MESSAGE_BODY = 1, 2, 3
_DICTIONARY_ID, _DICTIONARY_DATA, _DICTIONARY_DELTA = 0, 1, 2
_BATCH_LENGTH, _BATCH_NODES, _BATCH_BUFFERS, _BATCH_COMPRESSION, _BATCH_VARIADIC = 0, 1, 2, 3, 4
_IS_DICTIONARY, _IS_RECORD_BATCH = 2, 3
_STRUCT = struct.Struct("<qixxxxq")
_BLOCK = _STRUCT.size
_CONTINUES = 0xFFFFFFFF

UNPACKED_BYTES, UNPACKED_TIMES = 64 << 20, 256
"""Bytes to which all compressed buffers of a file together may unpack: the first, and the second
times the size of the file. Without a limit a small file could mean endless memory."""


class Readable(Protocol):
    """The bytes of a file: a memoryview, or :class:`gpudedup.images.files.FileBytes`."""

    def __len__(self) -> int: ...
    def __getitem__(self, which: slice, /) -> memoryview: ...


class Place(NamedTuple):
    """Place of a block: offset in the file, bytes of the message, bytes of the body."""

    offset: int
    head: int
    body: int


class Block(NamedTuple):
    """One record batch.

    :param offset: byte offset in the file
    :param compressed: True if its buffers are
    :param size: bytes in the file
    :param rows: number of rows, as the message states it
    :param head: bytes of the message, which the body follows
    """

    offset: int
    compressed: bool
    size: int
    rows: int
    head: int


class DictionaryPart(NamedTuple):
    """One batch of a dictionary of values of fixed size.

    :param offset: byte offset of the message in the file
    :param first: byte offset of the first value in the file
    :param values: number of values
    :param delta: True if they follow the values of the parts before, False if they replace them
    """

    offset: int
    first: int
    values: int
    delta: bool


def blocks(path: str, data: Readable) -> list[Block]:
    """Return the record batches that the footer of ``data``, the whole file, lists.

    :raises ImageError: if the file is cut off, or a batch is damaged or lies outside of it
    """
    return [block for block, _ in record_batches(path, data)]


def record_batches(path: str, data: Readable) -> Iterator[tuple[Block, Table]]:
    """Yield the record batches that the footer lists, each with the header of its message.

    Batches whose messages are equal have the same header, not a copy of it.

    :raises ImageError: as :func:`blocks`
    """
    start, footer = _footer(path, data)
    last = b""
    header: Table
    rows, compressed = 0, False
    for number, (offset, head, body) in enumerate(
        _checked_places(path, footer, start, _FOOTER_BATCHES, "record batch")
    ):
        message = bytes(data[offset : offset + head])
        # Those of a million empty batches are all the same.
        if message != last:
            try:
                _, header = _header(memoryview(message), _IS_RECORD_BATCH)
                rows = header.number(_BATCH_LENGTH)
                compressed = header.place(_BATCH_COMPRESSION) is not None
            except BrokenError:
                raise ImageError(path, f"record batch {number} is damaged", offset) from None
            last = message
        yield Block(offset, compressed, head + body, rows, head), header


def batch_header(data: Readable, block: Block) -> Table:
    """Return the header of a record batch's message.

    :raises BrokenError: if it is damaged
    """
    return _header(data[block.offset : block.offset + block.head], _IS_RECORD_BATCH)[1]


def parts_of(batch: Table) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[int]]:
    """Return what a batch has, in the order of its columns and their children.

    :return: length and nulls of each array; offset in the body and bytes of each buffer; number of
        data buffers of each array of views
    :raises BrokenError: if it is damaged
    """
    return batch.pairs(_BATCH_NODES), batch.pairs(_BATCH_BUFFERS), batch.numbers(_BATCH_VARIADIC)


def schema_file(path: str, data: Readable) -> bytes:
    """Return an Arrow file in memory that has the schema of ``data`` and no batch to follow.

    :raises ImageError: if the file is cut off, or its numbers are big-endian
    """
    start, footer = _footer(path, data)
    try:
        is_big_endian = Table(footer).table(_FOOTER_SCHEMA).number(_SCHEMA_ENDIANNESS, 2) != 0
    except BrokenError:
        raise ImageError(path, "the footer is damaged", start) from None
    if is_big_endian:
        raise ImageError(path, "a big-endian Arrow file; only little-endian is supported", start)
    return MAGIC + bytes(2) + bytes(footer) + len(footer).to_bytes(4, "little") + MAGIC


def bounded_blocks(path: str, data: Readable) -> list[Block]:
    """Return what :func:`blocks` returns of a file that may be compressed.

    :raises ImageError: as :func:`blocks`; also if a dictionary is damaged, or if the sizes to which
        compressed buffers unpack, as they say, are above the limit
    """
    start, footer = _footer(path, data)
    found = blocks(path, data)
    dictionaries = _checked_places(path, footer, start, _FOOTER_DICTIONARIES, "dictionary batch")
    packed = [(place, _IS_DICTIONARY) for place in dictionaries]
    places = _places(Table(footer), _FOOTER_BATCHES)
    packed += [
        (place, _IS_RECORD_BATCH)
        for block, place in zip(found, places, strict=True)
        if block.compressed
    ]
    most = UNPACKED_BYTES + UNPACKED_TIMES * len(data)
    total = 0
    for place, kind in packed:
        try:
            _, header = _header(data[place.offset : place.offset + place.head], kind)
            batch = header.table(_DICTIONARY_DATA) if kind == _IS_DICTIONARY else header
            if batch.place(_BATCH_COMPRESSION) is not None:
                total += _unpacked(data, place, batch)
        except BrokenError:
            raise ImageError(path, "a compressed batch is damaged", place.offset) from None
        if total > most:
            reason = f"unpacked it has {total} bytes or more; a file of {len(data)} bytes may have "
            raise ImageError(path, reason + str(most), place.offset)
    return found


def _unpacked(data: Readable, place: Place, batch: Table) -> int:
    """Return the bytes to which the buffers of a compressed batch unpack."""
    total = 0
    for offset, size in batch.pairs(_BATCH_BUFFERS):
        if not 0 <= offset <= offset + size <= place.body:
            raise BrokenError
        if size == 0:
            continue
        first = place.offset + place.head + offset
        # -1: the buffer is not compressed.
        stated = int.from_bytes(data[first : first + 8], "little", signed=True)
        if size < 8 or stated < -1:
            raise BrokenError
        total += size if stated == -1 else stated
    return total


def _check_plain(path: str, what: str, offset: int, batch: Table) -> None:
    if batch.place(_BATCH_COMPRESSION) is not None:
        raise ImageError(path, f"{what} is compressed; a dump is read in place", offset)


def dictionary_parts(path: str, data: Readable, column: str, width: int) -> list[DictionaryPart]:
    """Return the batches of a column's dictionary, in the order of the footer.

    :param data: the whole file
    :param column: name of a column that is not nested, a dictionary of fixed_size_binary
    :param width: bytes of a value
    :raises ImageError: if one has nulls, or any dictionary is damaged, compressed or out of bounds
    """
    found: list[DictionaryPart] = []
    for number, (offset, head, body), is_delta, batch in dictionary_batches(path, data, column):
        what = f"dictionary batch {number}"
        try:
            ((values, nulls),) = batch.pairs(_BATCH_NODES, 1)
            _, (first, size) = batch.pairs(_BATCH_BUFFERS, 2)
        except BrokenError:
            raise ImageError(path, f"{what} is damaged", offset) from None
        if nulls:
            raise ImageError(path, f"{what}: column {column} has nulls", offset)
        if values < 0 or not 0 <= values * width <= size or not 0 <= first <= first + size <= body:
            raise ImageError(path, f"{what}: {values} pages do not fit into it", offset)
        found.append(DictionaryPart(offset, offset + head + first, values, is_delta))
    return found


def dictionary_batches(
    path: str, data: Readable, column: str
) -> Iterator[tuple[int, Place, bool, Table]]:
    """Yield the batches of a column's dictionary: number, place, whether a delta, and the batch.

    :param column: name of a column that is not nested
    :raises ImageError: if any dictionary is damaged, compressed or out of bounds
    """
    start, footer = _footer(path, data)
    try:
        wanted = _dictionary_id(footer, column)
    except BrokenError:
        raise ImageError(path, "the footer is damaged", start) from None
    for number, place in enumerate(
        _checked_places(path, footer, start, _FOOTER_DICTIONARIES, "dictionary batch")
    ):
        what = f"dictionary batch {number}"
        try:
            _, message = _header(data[place.offset : place.offset + place.head], _IS_DICTIONARY)
            batch = message.table(_DICTIONARY_DATA)
            _check_plain(path, what, place.offset, batch)
            is_wanted = message.number(_DICTIONARY_ID) == wanted
            is_delta = message.number(_DICTIONARY_DELTA, 1) != 0
        except BrokenError:
            raise ImageError(path, f"{what} is damaged", place.offset) from None
        if is_wanted:
            yield number, place, is_delta, batch


def footer_start(path: str, data: Readable) -> int:
    """Return the byte offset of the footer; raise ImageError if the file is cut off."""
    return _footer(path, data)[0]


def with_values(message: bytes, values: int, size: int) -> bytes:
    """Return ``message`` with the number of values, and of their bytes, replaced.

    :param message: FlatBuffer of a dictionary batch of at least one value of fixed size
    :param size: bytes of all values, which are the body
    """
    changed = bytearray(message)
    table = Table(memoryview(changed))
    batch = table.table(_MESSAGE_HEADER).table(_DICTIONARY_DATA)
    nodes, buffers = batch.target(_BATCH_NODES), batch.target(_BATCH_BUFFERS)
    body, length = table.place(_MESSAGE_BODY), batch.place(_BATCH_LENGTH)
    assert nodes is not None
    assert buffers is not None
    assert body is not None
    assert length is not None
    # A vector begins with its length, 4 bytes. The second of two buffers has the values.
    for at, number in (
        (body, size), (length, values), (nodes + 4, values), (buffers + 4 + 16 + 8, size),
    ):  # fmt: skip
        changed[at : at + 8] = number.to_bytes(8, "little")
    return bytes(changed)


def with_places(footer: bytes, dictionaries: Sequence[Place], batches: Sequence[Place]) -> bytes:
    """Return ``footer`` with the places of its blocks, as many as before, replaced."""
    changed = bytearray(footer)
    table = Table(memoryview(changed))
    for which, places in ((_FOOTER_DICTIONARIES, dictionaries), (_FOOTER_BATCHES, batches)):
        vector = table.target(which)
        assert vector is not None
        assert table.read(vector, 4) == len(places)
        for at, place in enumerate(places):
            _STRUCT.pack_into(changed, vector + 4 + _BLOCK * at, *place)
    return bytes(changed)


def _footer(path: str, data: Readable) -> tuple[int, memoryview]:
    """Return the footer's byte offset and the footer."""
    size = len(data)
    if size < 8 + _TAIL or bytes(data[-len(MAGIC) :]) != MAGIC:
        raise ImageError(path, "cut off: an Arrow file ends with ARROW1", size)
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ImageError(path, "damaged: an Arrow file begins with ARROW1", 0)
    length = int.from_bytes(data[-_TAIL : -len(MAGIC)], "little")
    start = size - _TAIL - length
    if start < 8:
        raise ImageError(path, f"a footer of {length} bytes is larger than the file", size - _TAIL)
    return start, data[start : size - _TAIL]


def _checked_places(
    path: str, footer: memoryview, start: int, which: int, what: str
) -> list[Place]:
    """Return the place of each block; all end before ``start``, the footer's offset.

    No two have bytes in common: without that a small file could mean endless work.
    """
    try:
        places = list(_places(Table(footer), which))
    except BrokenError:
        raise ImageError(path, "the footer is damaged", start) from None
    for number, (offset, head, body) in enumerate(places):
        if not 8 <= offset <= offset + head + body <= start or head < 8 or body < 0:
            raise ImageError(path, f"the footer puts {what} {number} outside of the file", start)
    for number, following in pairwise(sorted(range(len(places)), key=places.__getitem__)):
        if sum(places[number]) > places[following].offset:
            reason = f"the footer puts {what} {following} where {number} lies"
            raise ImageError(path, reason, start)
    return places


def _places(footer: Table, which: int) -> Iterator[Place]:
    vector = footer.target(which)
    if vector is None:
        return
    first = vector + 4
    listed = footer.data[first : first + _BLOCK * footer.read(vector, 4)]
    if len(listed) != _BLOCK * footer.read(vector, 4):
        raise BrokenError
    yield from map(Place._make, _STRUCT.iter_unpack(listed))


def _dictionary_id(footer: memoryview, column: str) -> int:
    schema = Table(footer).table(_FOOTER_SCHEMA)
    vector = schema.target(_SCHEMA_FIELDS)
    if vector is None:
        raise BrokenError
    for at in range(vector + 4, vector + 4 + 4 * schema.read(vector, 4), 4):
        field = Table(footer, at + schema.read(at, 4))
        name = field.target(_FIELD_NAME)
        if name is not None:
            text = footer[name + 4 : name + 4 + field.read(name, 4)]
            if bytes(text) == column.encode():
                return field.table(_FIELD_DICTIONARY).number(_DICTIONARY_ID)
    raise BrokenError


def _header(message: memoryview, kind: int) -> tuple[Table, Table]:
    """Return a message and its header, which must be of ``kind``."""
    # Before Arrow 0.15 no marker preceded the length.
    marked = int.from_bytes(message[:4], "little") == _CONTINUES
    table = Table(message[8 if marked else 4 :])
    if table.number(_MESSAGE_TYPE, 1) != kind:
        raise BrokenError
    return table, table.table(_MESSAGE_HEADER)
