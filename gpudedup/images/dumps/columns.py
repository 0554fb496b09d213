"""Read the metadata columns of record batches: those buffers of a body, and nothing else.

pyarrow has no way to read some buffers of a batch only, but through a memory map. Buffers come in
the order of the columns; how many each type has is in Arrow's "Columnar Format".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.errors import ImageError
from gpudedup.images.dumps.flatbuffer import BrokenError, Table
from gpudedup.images.dumps.ipc import Block, batch_header, parts_of
from gpudedup.images.files import FileBytes
from gpudedup.images.rows import UNKNOWN_FRAME, UNKNOWN_NODE, PageColumns

_GAP_BYTES = 4 << 10
"""Bytes between buffers at most that are read along with them: faster than a further call."""

_ALIGNMENT = 8
"""Arrow's own: buffers begin at multiples of it."""

_UNKNOWN: dict[str, np.generic] = {"frame": UNKNOWN_FRAME, "node": UNKNOWN_NODE}

_types = pa.types


Span = tuple[int, int]
"""Offset in the file, and bytes."""


class Parts(NamedTuple):
    """Arrays, buffers and arrays of views that a column has with all its children."""

    nodes: int
    buffers: int
    views: int

    def plus(self, other: Parts) -> Parts:
        """Return the sum of both."""
        return Parts(
            self.nodes + other.nodes, self.buffers + other.buffers, self.views + other.views
        )


class _Slot(NamedTuple):
    """A column of a dump: the parts before it, bytes of a value, and whether it may have nulls."""

    name: str
    before: Parts
    width: int
    nullable: bool


class Place(NamedTuple):
    """Place of a column's values: offsets in the file of validity bitmap and values, and nulls."""

    known: int
    values: int
    nulls: int


class Layout:
    """Where the record batches of a file have the columns of a dump.

    :param schema: schema of a dump, plain or merged, with any other columns
    """

    def __init__(self, schema: pa.Schema) -> None:
        kind = schema.field("content").type
        self._values = {
            name: np.dtype(code)
            for name, code in (
                ("mapping", "<i4"), ("index", "<u8"), ("frame", "<u8"), ("node", "<i2"),
                ("flags", "<u4"),
            )
        }  # fmt: skip
        if _types.is_dictionary(kind):
            self._values["content"] = np.dtype(kind.index_type.to_pandas_dtype())
        self._slots: list[_Slot] = []
        at = Parts(0, 0, 0)
        for field in schema:
            if field.name in self._values or field.name == "content":
                value = field.type.index_type if _types.is_dictionary(field.type) else field.type
                slot = _Slot(field.name, at, value.byte_width, field.name in _UNKNOWN)
                self._slots.append(slot)
            at = at.plus(_parts(field.type))
        self._all = at

    def places(self, path: str, number: int, block: Block, header: Table) -> dict[str, Place]:
        """Return where the columns of record batch ``number`` lie, by name.

        :param header: header of the batch's message
        :raises ImageError: if the batch is damaged, or has nulls where none may be
        """
        what = f"record batch {number}"
        try:
            nodes, buffers, views = parts_of(header)
        except BrokenError:
            raise ImageError(path, f"{what} is damaged", block.offset) from None
        expected = self._all.nodes, self._all.buffers + sum(views), self._all.views
        if (len(nodes), len(buffers), len(views)) != expected or min(views, default=0) < 0:
            reason = f"{what} is damaged: {len(nodes)} arrays and {len(buffers)} buffers"
            raise ImageError(path, reason, block.offset)
        found: dict[str, Place] = {}
        for name, before, width, nullable in self._slots:
            length, nulls = nodes[before.nodes]
            first = before.buffers + (sum(views[: before.views]) if views else 0)
            known, values = buffers[first : first + 2]
            if length != block.rows or not 0 <= nulls <= length:
                reason = f"{length} values with {nulls} nulls, {block.rows} rows"
            elif not _holds(block, values, length * width):
                reason = f"{length} values do not fit into their buffer"
            elif nulls and not nullable:
                raise ImageError(path, f"{what}: column {name} has nulls", block.offset)
            elif nulls and not _holds(block, known, -(-length // 8)):
                reason = "its nulls do not fit into their buffer"
            else:
                body = block.offset + block.head
                found[name] = Place(body + known[0], body + values[0], nulls)
                continue
            raise ImageError(path, f"{what} is damaged: column {name}: {reason}", block.offset)
        return found

    def read(self, data: FileBytes, number: int, block: Block, row: int) -> PageColumns:
        """Return the metadata of record batch ``number``, whose first row is ``row``.

        Of a merged dump ``stored`` is set, of a plain one page bytes are not read.

        :raises ImageError: if the batch is damaged, or cannot be read
        """
        try:
            header = batch_header(data, block)
        except BrokenError:
            reason = f"record batch {number} is damaged"
            raise ImageError(data.path, reason, block.offset) from None
        places = self.places(data.path, number, block, header)
        rows = block.rows
        known = {name: place for name, place in places.items() if place.nulls < rows}
        values: dict[str, Span] = {
            name: (known[name].values, rows * kind.itemsize)
            for name, kind in self._values.items()
            if name in known
        }
        bits = {name: (known[name].known, -(-rows // 8)) for name in values if known[name].nulls}
        pieces = _read(data, [*values.values(), *bits.values()])
        columns: dict[str, npt.NDArray[Any]] = {}
        for name, span in values.items():
            column = np.frombuffer(pieces[span], self._values[name])
            if name in bits:
                mask = np.frombuffer(pieces[bits[name]], np.uint8)
                is_known = np.unpackbits(mask, count=rows, bitorder="little").view(np.bool_)
                column = np.where(is_known, column, _UNKNOWN[name])
                # As all others: numba compiles for arrays that may be written anew.
                column.flags.writeable = False
            columns[name] = column
        content = columns.pop("content", None)
        stored = None if content is None else content.astype(np.int64)
        return PageColumns(row=row, stored=stored, **columns)


def _holds(block: Block, buffer: tuple[int, int], size: int) -> bool:
    """Return whether a buffer lies in the body, where Arrow puts them, and has ``size`` bytes."""
    first, length = buffer
    stop = block.size - block.head - length
    return first % _ALIGNMENT == 0 and 0 <= first <= stop and size <= length


def _read(data: FileBytes, wanted: Sequence[Span]) -> dict[Span, memoryview]:
    """Return stretches of the file; those close to one another are read at once."""
    found: dict[Span, memoryview] = {}
    ordered = sorted(set(wanted))
    stops = list(accumulate((offset + size for offset, size in ordered), max))
    cuts = [at for at in range(1, len(ordered)) if ordered[at][0] - stops[at - 1] > _GAP_BYTES]
    for begin, end in pairwise([0, *cuts, len(ordered)]):
        first = ordered[begin][0]
        run = memoryview(data.read(first, stops[end - 1] - first))
        for offset, size in ordered[begin:end]:
            found[offset, size] = run[offset - first :][:size]
    return found


def _parts(kind: pa.DataType) -> Parts:
    """Return the parts of a column of ``kind`` in a message."""
    if isinstance(kind, pa.BaseExtensionType):
        return _parts(kind.storage_type)
    if _types.is_dictionary(kind):
        return _parts(kind.index_type)
    found = next((parts for is_one, parts in _PARTS if is_one(kind)), Parts(1, 2, 0))
    for at in range(kind.num_fields):
        found = found.plus(_parts(kind.field(at).type))
    return found


def _is_view(kind: pa.DataType) -> bool:
    return bool(_types.is_string_view(kind) or _types.is_binary_view(kind))


def _has_offsets(kind: pa.DataType) -> bool:
    is_wide = _types.is_large_string(kind) or _types.is_large_binary(kind)
    return bool(is_wide or _types.is_string(kind) or _types.is_binary(kind))


def _is_sparse_union(kind: pa.DataType) -> bool:
    return bool(_types.is_union(kind) and kind.mode == "sparse")


def _is_list_view(kind: pa.DataType) -> bool:
    return bool(_types.is_list_view(kind) or _types.is_large_list_view(kind))


_PARTS: tuple[tuple[Callable[[pa.DataType], bool], Parts], ...] = (
    (_types.is_null, Parts(1, 0, 0)),
    (_types.is_run_end_encoded, Parts(1, 0, 0)),
    (_types.is_struct, Parts(1, 1, 0)),
    (_types.is_fixed_size_list, Parts(1, 1, 0)),
    (_is_sparse_union, Parts(1, 1, 0)),
    (_is_view, Parts(1, 2, 1)),
    (_has_offsets, Parts(1, 3, 0)),
    (_is_list_view, Parts(1, 3, 0)),
)
"""Own parts of types, without children; all others have a validity bitmap and one buffer more."""
