// The part of CUDA C++ that the kernels use, for g++. Included before the text of a .cu file.
//
// A kernel becomes an ordinary function that every thread of a block runs on a stack of its own.
// To add an intrinsic: one that concerns the thread alone is a function here; one of a warp or a
// block is an Operation (grid.h) that threads meet at (meet.h); one on memory that other threads
// see calls pass() before and after, so that a random order can run another thread there.
//
// Not here: dynamic shared memory, textures, more than one dimension of grids, weak memory order
// (all threads see a write at once). A loop that waits for another thread must contain an atomic
// operation, a fence or __nanosleep: a plain load never switches to another thread.
#ifndef CUDA_SHIM_H
#define CUDA_SHIM_H

#include <type_traits>

#include "checks.h"
#include "launch.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static const
#define __shared__ static __attribute__((section("shim_shared")))

#define threadIdx (shim::now->index)
#define blockIdx (shim::now->warp->block->index)
#define blockDim (shim::Index{shim::launch->threads, 1, 1})
#define gridDim (shim::Index{shim::launch->blocks, 1, 1})
constexpr int warpSize = 32;

// ---- Barriers, and operations of a warp. The defaults of the last parameters are the caller's.

#define SHIM_PLACE const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()

inline void __syncthreads(SHIM_PLACE) {
    shim::meet_block({shim::Kind::SYNCTHREADS, ~0u, file, line}, 0);
}
inline int __syncthreads_or(int value, SHIM_PLACE) {
    return shim::meet_block({shim::Kind::SYNCTHREADS_OR, ~0u, file, line}, value != 0) != 0;
}
inline int __syncthreads_and(int value, SHIM_PLACE) {
    return !shim::meet_block({shim::Kind::SYNCTHREADS_AND, ~0u, file, line}, value == 0);
}
inline int __syncthreads_count(int value, SHIM_PLACE) {
    return (int)shim::meet_block({shim::Kind::SYNCTHREADS_COUNT, ~0u, file, line}, value != 0);
}

inline void __syncwarp(unsigned mask = ~0u, SHIM_PLACE) {
    shim::meet({shim::Kind::SYNCWARP, mask, file, line}, 0);
}
inline int __any_sync(unsigned mask, int value, SHIM_PLACE) {
    return (int)shim::meet({shim::Kind::ANY, mask, file, line}, value != 0);
}
inline int __all_sync(unsigned mask, int value, SHIM_PLACE) {
    return (int)shim::meet({shim::Kind::ALL, mask, file, line}, value != 0);
}
inline unsigned __ballot_sync(unsigned mask, int value, SHIM_PLACE) {
    return (unsigned)shim::meet({shim::Kind::BALLOT, mask, file, line}, value != 0);
}
template <class Type>
unsigned __match_any_sync(unsigned mask, Type value, SHIM_PLACE) {
    return (unsigned)shim::meet({shim::Kind::MATCH_ANY, mask, file, line}, (uint64_t)value);
}

namespace shim {

template <class Type>
Type shuffle(const Operation& operation, Type value, uint32_t source) {
    static_assert(sizeof(Type) == 4 || sizeof(Type) == 8, "shuffles take 32 or 64 bits");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = meet(operation, bits, source);
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace shim

template <class Type>
Type __shfl_sync(unsigned mask, Type value, int lane, int width = 32, SHIM_PLACE) {
    const unsigned own = shim::now->lane, group = own & ~(unsigned)(width - 1);
    return shim::shuffle({shim::Kind::SHFL, mask, file, line}, value,
                         group | ((unsigned)lane & (unsigned)(width - 1)));
}
template <class Type>
Type __shfl_xor_sync(unsigned mask, Type value, int bits, int width = 32, SHIM_PLACE) {
    const unsigned own = shim::now->lane, source = own ^ (unsigned)bits;
    const bool inside = source < (own | (unsigned)(width - 1)) + 1;
    return shim::shuffle({shim::Kind::SHFL_XOR, mask, file, line}, value,
                         inside ? source : shim::NOWHERE);
}
template <class Type>
Type __shfl_up_sync(unsigned mask, Type value, unsigned by, int width = 32, SHIM_PLACE) {
    const unsigned own = shim::now->lane, at = own & (unsigned)(width - 1);
    return shim::shuffle({shim::Kind::SHFL_UP, mask, file, line}, value,
                         at >= by ? own - by : shim::NOWHERE);
}
template <class Type>
Type __shfl_down_sync(unsigned mask, Type value, unsigned by, int width = 32, SHIM_PLACE) {
    const unsigned own = shim::now->lane, at = own & (unsigned)(width - 1);
    return shim::shuffle({shim::Kind::SHFL_DOWN, mask, file, line}, value,
                         at + by < (unsigned)width ? own + by : shim::NOWHERE);
}

// ---- Atomic operations: each undivided; another thread may run before and after.

namespace shim {

template <class Type>
using Same = typename std::enable_if<true, Type>::type;  // not deduced

template <class Type, class Function>
Type atomic(Type* at, Function function) {
    static_assert(sizeof(Type) == 4 || sizeof(Type) == 8, "atomics take 32 or 64 bits");
    pass();
    const Type before = *at;
    *at = function(before);
    pass();
    return before;
}

}  // namespace shim

#define SHIM_ATOMIC(name, result)                                       \
    template <class Type>                                               \
    Type name(Type* at, shim::Same<Type> value) {                       \
        return shim::atomic(at, [=](Type old) -> Type { return result; }); \
    }
SHIM_ATOMIC(atomicAdd, old + value)
SHIM_ATOMIC(atomicSub, old - value)
SHIM_ATOMIC(atomicMin, value < old ? value : old)
SHIM_ATOMIC(atomicMax, value > old ? value : old)
SHIM_ATOMIC(atomicExch, ((void)old, value))
SHIM_ATOMIC(atomicAnd, old & value)
SHIM_ATOMIC(atomicOr, old | value)
SHIM_ATOMIC(atomicXor, old ^ value)

template <class Type>
Type atomicCAS(Type* at, shim::Same<Type> expected, shim::Same<Type> value) {
    return shim::atomic(at, [=](Type old) -> Type { return old == expected ? value : old; });
}

inline void __threadfence() { shim::pass(); }
inline void __threadfence_block() { shim::pass(); }
inline void __threadfence_system() { shim::pass(); }
inline void __nanosleep(unsigned) { shim::pass(true); }

// ---- Arithmetic.

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }
inline int __clzll(long long bits) { return bits ? __builtin_clzll((unsigned long long)bits) : 64; }
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using Type = std::common_type_t<A, B>;
    return (Type)b < (Type)a ? (Type)b : (Type)a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using Type = std::common_type_t<A, B>;
    return (Type)a < (Type)b ? (Type)b : (Type)a;
}
template <class Type>
Type __ldg(const Type* at) { return *at; }

#endif
