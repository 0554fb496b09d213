"""Intrinsics that numba lacks: vectors, prefetch, atomics, and libc calls.

Vectors are four 64-bit lanes: from DRAM 256-bit code was never slower than 512-bit code, and LLVM
splits it where the machine's vectors are shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic
"""Untyped: callers pass only the arguments after the typing context."""

I64 = ir.IntType(64)
V4 = ir.VectorType(I64, 4)

PREFETCH_BYTES = 1024
"""Bytes ahead that a digest prefetches: of 384 to 8192, 1024 and 1536 were fastest from DRAM. Every
line is prefetched. A few only, say the head of the next page, cost a third: they mislead the
processor's own prefetcher, which then does worse than nothing."""


def _vector(values: Sequence[int]) -> ir.Constant:
    return ir.Constant(V4, [ir.Constant(I64, v) for v in values])


def _load(builder: Any, address: Any, byte: int) -> Any:
    pointer = builder.inttoptr(builder.add(address, ir.Constant(I64, byte)), V4.as_pointer())
    value = builder.load(pointer)
    value.align = 1
    return value


def _prefetch(builder: Any, address: Any, locality: int) -> None:
    i32, i8p = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [i8p, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, data = ir.Constant(i32, 0), ir.Constant(i32, 1)
    pointer = builder.inttoptr(address, i8p)
    builder.call(function, [pointer, read, ir.Constant(i32, locality), data])


def accumulator(stripes: int, words: tuple[int, ...]) -> Any:
    """Make a function ``f(accumulators, data)`` that adds stripes to the eight XXH3 accumulators.

    ``accumulators`` is the address of 8 uint64 (aligned to 8), read and written; ``data`` that of
    the first of ``stripes`` stripes of 64 bytes, any alignment. Fully unrolled; prefetches each
    line :data:`PREFETCH_BYTES` ahead.

    :param words: 64-bit words of the secret; stripe s takes words s to s + 7
    """

    @intrinsic
    def accumulate(typing_context: Any, accumulators: Any, data: Any) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            acc_at, data_at = args
            swap = ir.Constant(
                ir.VectorType(ir.IntType(32), 4),
                [ir.Constant(ir.IntType(32), i) for i in (1, 0, 3, 2)],
            )
            acc = [_load(builder, acc_at, 0), _load(builder, acc_at, 32)]
            for stripe in range(stripes):
                ahead = ir.Constant(I64, 64 * stripe + PREFETCH_BYTES)
                _prefetch(builder, builder.add(data_at, ahead), 3)
                for half in range(2):
                    value = _load(builder, data_at, 64 * stripe + 32 * half)
                    first = stripe + 4 * half
                    key = builder.xor(value, _vector(words[first : first + 4]))
                    low = builder.and_(key, _vector([0xFFFFFFFF] * 4))
                    product = builder.mul(low, builder.lshr(key, _vector([32] * 4)))
                    crossed = builder.shuffle_vector(value, value, swap)
                    acc[half] = builder.add(acc[half], builder.add(product, crossed))
            for half in range(2):
                at = builder.add(acc_at, ir.Constant(I64, 32 * half))
                builder.store(acc[half], builder.inttoptr(at, V4.as_pointer())).align = 8
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), codegen

    return accumulate


def _loader(kind: Any) -> Any:
    @intrinsic
    def load(typing_context: Any, address: Any) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            integer = ir.IntType(kind.bitwidth)
            value = builder.load(builder.inttoptr(args[0], integer.as_pointer()))
            value.align = 1
            return value

        return kind(types.uint64), codegen

    return load


load32 = _loader(types.uint32)
"""Return the little-endian uint32 at an address, any alignment."""

load64 = _loader(types.uint64)
"""Return the little-endian uint64 at an address, any alignment."""


def _storer(kind: Any) -> Any:
    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            integer = ir.IntType(kind.bitwidth)
            builder.store(args[1], builder.inttoptr(args[0], integer.as_pointer())).align = 1
            return context.get_dummy_value()

        return types.void(types.uint64, kind), codegen

    return store


store8 = _storer(types.uint8)
"""Store a uint8 at an address."""

store64 = _storer(types.uint64)
"""Store a uint64, little-endian, at an address, any alignment."""


def _prefetcher(locality: int) -> Any:
    @intrinsic
    def prefetch(typing_context: Any, address: Any) -> tuple[Any, Any]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _prefetch(builder, args[0], locality)
            return context.get_dummy_value()

        return types.void(types.uint64), codegen

    return prefetch


prefetch = _prefetcher(3)
"""Prefetch the cache line at an address into L1; never faults."""

prefetch_l2 = _prefetcher(2)
"""The same into L2: for many lines at once, since few misses may be outstanding in L1."""


@intrinsic
def multiply_high(typing_context: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Return the high half of the 128-bit product of two uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i128 = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], i128), builder.zext(args[1], i128))
        return builder.trunc(builder.lshr(product, ir.Constant(i128, 64)), I64)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def differ256(typing_context: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Return whether the 256 bytes at two addresses, any alignment, differ."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        parts = [
            builder.xor(_load(builder, args[0], byte), _load(builder, args[1], byte))
            for byte in range(0, 256, 32)
        ]
        while len(parts) > 1:
            parts = [builder.or_(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        wide = ir.IntType(256)
        return builder.icmp_unsigned("!=", builder.bitcast(parts[0], wide), ir.Constant(wide, 0))

    return types.boolean(types.uint64, types.uint64), codegen


@intrinsic
def load_acquire(typing_context: Any, address: Any) -> tuple[Any, Any]:
    """Return the uint64 at ``address`` (aligned to 8), with acquire ordering."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.uint64(types.uint64), codegen


@intrinsic
def compare_and_swap(
    typing_context: Any, address: Any, expected: Any, desired: Any
) -> tuple[Any, Any]:
    """Store ``desired`` at ``address`` if it holds ``expected``; return the previous value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.extract_value(
            builder.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire"), 0
        )

    return types.uint64(types.uint64, types.uint64, types.uint64), codegen


@intrinsic
def fetch_and_add(typing_context: Any, address: Any, value: Any) -> tuple[Any, Any]:
    """Add to the uint64 at ``address`` (aligned to 8), relaxed; return the previous value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", at, args[1], "monotonic")

    return types.uint64(types.uint64, types.uint64), codegen


memcmp: Any = types.ExternalFunction(
    "memcmp", types.int32(types.uint64, types.uint64, types.uint64)
)
"""libc's memcmp(a, b, bytes); addresses as uint64."""

memcpy: Any = types.ExternalFunction(
    "memcpy", types.uint64(types.uint64, types.uint64, types.uint64)
)
"""libc's memcpy(target, source, bytes); addresses as uint64."""

pread: Any = types.ExternalFunction(
    "pread", types.int64(types.int32, types.uint64, types.uint64, types.int64)
)
"""libc's pread(fd, buffer, bytes, offset); -1 on error."""

errno_location: Any = types.ExternalFunction("__errno_location", types.uint64())
"""Return the address of this thread's errno, a 32-bit integer."""

madvise: Any = types.ExternalFunction(
    "madvise", types.int32(types.uint64, types.uint64, types.int32)
)
"""libc's madvise(address, bytes, advice); -1 on error."""
