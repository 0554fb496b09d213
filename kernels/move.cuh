// Copy bytes, a warp together: for the kernels that copy whole pages or parts of pages.
#ifndef GPUDEDUP_MOVE_CUH
#define GPUDEDUP_MOVE_CUH

#include "common.cuh"

constexpr u32 LOADS = 4;  // loads of a lane in flight

// Source and target do not overlap; both and the size are multiples of a Word.
template <class Word>
__device__ __forceinline__ void move_words(u64 target, u64 source, u32 size) {
    constexpr u32 STEP = sizeof(Word) * WARP;  // bytes of a load of the warp
#pragma unroll 1
    for (u32 at = sizeof(Word) * lane_number(); at < size; at += LOADS * STEP) {
        Word held[LOADS];
#pragma unroll
        for (u32 k = 0; k < LOADS; k++)
            if (at + STEP * k < size)
                held[k] = *reinterpret_cast<const Word*>(source + at + STEP * k);
#pragma unroll
        for (u32 k = 0; k < LOADS; k++)
            if (at + STEP * k < size) *reinterpret_cast<Word*>(target + at + STEP * k) = held[k];
    }
}

// The same for any address and size: with the widest word that divides all three.
__device__ __forceinline__ void move_bytes(u64 target, u64 source, u32 size) {
    const u64 all = target | source | size;
    if (all % sizeof(Pair) == 0)
        move_words<Pair>(target, source, size);
    else if (all % sizeof(u64) == 0)
        move_words<u64>(target, source, size);
    else
        move_words<u8>(target, source, size);
}

#endif
