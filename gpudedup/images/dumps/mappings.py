"""Read the dictionary of the column ``mapping``; pyarrow reads dictionaries with batches only."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from gpudedup.arrow_input import REFUSALS, shown
from gpudedup.errors import ImageError
from gpudedup.images.dumps.flatbuffer import BrokenError
from gpudedup.images.dumps.ipc import dictionary_batches, parts_of
from gpudedup.images.files import FileBytes


def read_mappings(data: FileBytes, schema: pa.Schema) -> pa.StructArray:
    """Return the dictionary of the column ``mapping``, checked by pyarrow.

    :raises ImageError: if there is none, any dictionary is damaged, or it cannot be read
    """
    kind = schema.field("mapping").type.value_type
    parts: list[pa.Array] = []
    for number, place, is_delta, batch in dictionary_batches(data.path, data, "mapping"):
        what = f"dictionary batch {number}"
        if parts and not is_delta:
            raise ImageError(data.path, f"{what} replaces an earlier one", place.offset)
        try:
            nodes, buffers, _ = parts_of(batch)
            body = pa.py_buffer(data.read(place.offset + place.head, place.body))
            if any(not 0 <= first <= first + size <= place.body for first, size in buffers):
                raise BrokenError
            pieces = (body.slice(first, size) for first, size in buffers)
            array = _array(kind, iter(nodes), pieces)
            array.validate(full=True)
        except (BrokenError, StopIteration):
            raise ImageError(data.path, f"{what} is damaged", place.offset) from None
        except REFUSALS as error:
            reason = f"{what} is damaged: {shown(error)}"
            raise ImageError(data.path, reason, place.offset) from None
        parts.append(array)
    if not parts:
        raise ImageError(data.path, "no dictionary of the column mapping")
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def _array(
    kind: pa.DataType, nodes: Iterator[tuple[int, int]], buffers: Iterator[pa.Buffer]
) -> pa.Array:
    """Return an array of structs, of strings or of numbers.

    :param nodes: length and nulls of it and of its children
    :param buffers: validity bitmap, offsets of strings, and values
    """
    length, nulls = next(nodes)
    if not 0 <= nulls <= length:
        raise BrokenError
    known = next(buffers)
    known = known if nulls else None
    if pa.types.is_struct(kind):
        children = [_array(field.type, nodes, buffers) for field in kind]
        return pa.Array.from_buffers(kind, length, [known], nulls, children=children)
    values = [next(buffers) for _ in range(2 if pa.types.is_string(kind) else 1)]
    return pa.Array.from_buffers(kind, length, [known, *values], nulls)
