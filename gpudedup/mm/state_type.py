"""How compiled passes see the state: as the address of a table of arrays.

numba counts references to arrays. To hand 26 of them, as a tuple, to a function costs 26 atomic
additions, and as many when it returns: several hundred nanoseconds, for steps that take ten. Here a
pass gets one address, of a table with address and length of each array. An attribute, as in
``s.frame[p]``, is an array made from these on the spot, which nobody counts: it comes down to a
load. Python holds the arrays meanwhile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
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

DTYPES = {
    "frame": "uint32", "next": "uint32", "prev": "uint32", "flags": "uint8",
    "generation": "uint32", "mirrors": "uint8",
    "leaf_mapping": "uint32", "leaf_place": "uint32",
    "first": "uint32", "aliases": "uint32", "pins": "uint32", "protection": "uint8",
    "ring": "uint32", "token": "uint32",
    "chain": "uint32", "scope": "uint32",
    "base": "uint64", "chunk_node": "uint8", "chunk_fresh": "int64", "chunk_link": "int64",
    "free": "uint32", "fresh": "int64", "room": "int64",
    "populated": "int64", "domain": "uint32",
    "gone_mapping": "uint32", "gone_index": "int64", "gone_mirrors": "uint8",
    "counts": "int64", "geometry": "int64",
}  # fmt: skip
"""The arrays of :class:`gpudedup.mm.state.State` and their types, in the order of the table."""

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
    return types.Array(getattr(types, DTYPES[attribute]), 1, "C")


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
    size = context.get_abi_sizeof(item)
    data = builder.inttoptr(load(0), item.as_pointer())
    length, step = load(8), ir.Constant(i64, size)
    made.data = data
    made.shape = cgutils.pack_array(builder, [length])
    made.strides = cgutils.pack_array(builder, [step])
    made.itemsize = step
    made.nitems = length
    made.meminfo = cgutils.get_null_value(made.meminfo.type)
    made.parent = cgutils.get_null_value(made.parent.type)
    return made._getvalue()
