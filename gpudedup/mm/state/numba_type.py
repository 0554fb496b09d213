"""The type of the state in compiled passes: the address of a table of arrays.

The fields of a page lie together in a *record*, and so do those of a frame: nearly every step
reads several fields of an arbitrary page, and one cache line holds them all. The stride of an
array of one field, as ``s.frame``, is the size of the record.

numba counts references to arrays. Passing all of :data:`FIELDS` to a function as a tuple costs an
atomic addition for each, and another on return: several hundred nanoseconds, for steps that take
ten. Here a pass gets one address, of a table with address and length of each array. An attribute,
as in ``s.frame[p]``, is an array made from these on the spot, without a reference count: it
compiles to a load. Python holds the arrays meanwhile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_getattr_generic,
    models,
    register_model,
    unbox,
)

PAGE_RECORD = np.dtype(
    {
        "names": ["frame", "next", "prev", "generation", "flags", "mirrors"],
        "formats": ["u4", "u4", "u4", "u2", "u1", "u1"],
        "offsets": [0, 4, 8, 12, 14, 15],
        "itemsize": 16,
    }
)
FRAME_RECORD = np.dtype(
    {
        "names": ["first", "aliases", "pins", "protection"],
        "formats": ["u4", "u4", "u4", "u1"],
        "offsets": [0, 4, 8, 12],
        "itemsize": 16,
    }
)
RARE_RECORD = np.dtype({"names": ["ring", "token"], "formats": ["u4", "u4"]})
"""Frame fields of merged, replicated, cached and exclusive frames and of replicas; else 0."""

RECORDS = {"page_records": PAGE_RECORD, "frame_records": FRAME_RECORD, "rare_records": RARE_RECORD}
"""Records by array; sizes are powers of two, so that no record straddles two cache lines."""

FLAT = {
    "leaf_mapping": "uint32", "leaf_place": "uint32",
    "chain": "uint32", "scope": "uint32",
    "base": "uint64", "chunk_node": "uint8", "chunk_fresh": "int64", "chunk_link": "int64",
    "free": "uint32", "fresh": "int64", "room": "int64", "freed": "uint32",
    "populated": "int64", "domain": "uint32",
    "gone_mapping": "uint32", "gone_index": "int64", "gone_mirrors": "uint8",
    "counts": "int64", "geometry": "int64",
}  # fmt: skip
"""Arrays of :class:`gpudedup.mm.state.arrays.State` outside records, and their types."""

ARRAYS: dict[str, np.dtype[Any]] = RECORDS | {k: np.dtype(v) for k, v in FLAT.items()}
"""Arrays that a state owns, and their types."""

HOME = {field: name for name, record in RECORDS.items() for field in record.names or ()}
"""Array of records of each field."""

DTYPES: dict[str, np.dtype[Any]] = {field: RECORDS[name][field] for field, name in HOME.items()} | {
    k: np.dtype(v) for k, v in FLAT.items()
}
"""Arrays that passes see, and their types, in the order of the table."""

FIELDS = tuple(DTYPES)


class StateType(types.Type):
    """The type of a state in compiled code."""

    def __init__(self) -> None:
        super().__init__(name="gpudedup.mm.State")


STATE = StateType()


@register_model(StateType)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, ir.IntType(64))


@unbox(StateType)
def _unbox(typ: Any, obj: Any, c: Any) -> NativeValue:
    at = c.pyapi.object_getattr_string(obj, "at")
    value = c.pyapi.long_as_ulonglong(at)
    c.pyapi.decref(at)
    return NativeValue(value, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


def _array(attribute: str) -> types.Array:
    return types.Array(from_dtype(DTYPES[attribute]), 1, "A" if attribute in HOME else "C")


def _stride(attribute: str) -> int:
    home = HOME.get(attribute)
    return (RECORDS[home] if home else DTYPES[attribute]).itemsize


@infer_getattr
class _Attributes(AttributeTemplate):
    key = StateType

    def generic_resolve(self, typ: Any, attribute: str) -> Any:  # type: ignore[override]
        return _array(attribute) if attribute in DTYPES else None


@lower_getattr_generic(StateType)
def _attribute(context: Any, builder: Any, typ: Any, value: Any, attribute: str) -> Any:
    i64 = ir.IntType(64)
    kind = _array(attribute)
    entry = 16 * FIELDS.index(attribute)

    def load(offset: int) -> Any:
        at = builder.add(value, ir.Constant(i64, entry + offset))
        loaded = builder.load(builder.inttoptr(at, i64.as_pointer()))
        # The table does not change while a pass runs, whatever the pass stores.
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    made = context.make_array(kind)(context, builder)
    item = context.get_data_type(kind.dtype)
    data = builder.inttoptr(load(0), item.as_pointer())
    length = load(8)
    made.data = data
    made.shape = cgutils.pack_array(builder, [length])
    made.strides = cgutils.pack_array(builder, [ir.Constant(i64, _stride(attribute))])
    made.itemsize = ir.Constant(i64, DTYPES[attribute].itemsize)
    made.nitems = length
    made.meminfo = cgutils.get_null_value(made.meminfo.type)
    made.parent = cgutils.get_null_value(made.parent.type)
    return made._getvalue()
