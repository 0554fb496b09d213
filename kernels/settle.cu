// Settle a chunk: write the lowest number of equal pages, which is final, as chunks ascend.
//
// Grid      any; blocks of THREADS threads; a thread takes a page
// Aligned   arrays to their elements
// In flight a probe a thread: 8 random bytes of the table of words
// Oracle    a dict
//
// The lowest page of a content is its anchor, which the table of contents knows. Same-filled pages
// have a table of their own, by word: open addressing, linear probing, no word leaves; 0, which is
// no word of theirs, marks a free slot. `settle` is a launch of its own: until `insert_words` has
// ended, a lower page of the chunk may come.
#include "common.cuh"

constexpr u64 FREE_WORD = 0;
constexpr u64 MIX_WORD = 0x9E3779B97F4A7C15;

__device__ __forceinline__ void lower(u32* lowest, u32 number) {
    // Pages ascend, so nearly all find a lower number there: no atomic operation then.
    if (*(volatile u32*)lowest > number) atomicMin(lowest, number);
}

// Set the bit of a page; return whether it was not set before.
__device__ __forceinline__ u32 mark(u32* marks, u32 number) {
    u32* word = marks + number / 32;
    const u32 bit = 1u << number % 32;
    // Most bits of contents with many pages are set by then: no atomic operation.
    if (*(volatile u32*)word & bit) return 0;
    return !(atomicOr(word, bit) & bit);
}

// Add up over a warp, all of whose lanes call; one lane adds the sum.
__device__ __forceinline__ void add(u32* sum, u32 mine) {
#pragma unroll
    for (u32 step = WARP / 2; step; step /= 2) mine += __shfl_xor_sync(ALL_LANES, mine, step);
    if (!lane_number() && mine) atomicAdd(sum, mine);
}

// insert_words(first, count, classes, heads, words, lowest, slots, found)
//   classes  (count,) u8: only FILLED and ZERO are looked up
//   heads    (count,) u64: the word of FILLED
//   words    (slots,) u64, all 0 at first; more slots than pages
//   lowest   (slots + 1,) u32, all ones at first: the lowest page with each word; last, of zeros
//   found    (count,) u64, written where FILLED: the slot of the word
extern "C" __global__ void __launch_bounds__(THREADS)
    insert_words(u32 first, u32 count, const u8* __restrict__ classes,
                 const u64* __restrict__ heads, u64* words, u32* lowest, u64 slots,
                 u64* __restrict__ found) {
#pragma unroll 1
    for (u64 i = blockIdx.x * THREADS + threadIdx.x; i < count; i += (u64)gridDim.x * THREADS) {
        const u32 number = (u32)(first + i);
        if (classes[i] == ZERO) lower(lowest + slots, number);
        if (classes[i] != FILLED) continue;
        const u64 word = heads[i];
        u64 slot = __umul64hi(word * MIX_WORD, slots);
        for (;; slot = slot + 1 < slots ? slot + 1 : 0) {
            u64 seen = *(volatile u64*)(words + slot);
            if (seen == FREE_WORD) seen = atomicCAS(words + slot, FREE_WORD, word);
            if (seen == FREE_WORD || seen == word) break;
        }
        lower(lowest + slot, number);
        found[i] = slot;
    }
}

// settle(first, count, offset, classes, heads, lowest, slots, found, marks, counts)
//   offset   added to every number that is written
//   classes  (count,) u8: FOLLOWER becomes CONTENT
//   heads    (count,) u64: the anchor's number of CONTENT, FOLLOWER and LEFT; written, for all: the
//            lowest number of a page with the same bytes, of LEFT with the same digest
//   found    (count,) u64: the slot of the word of FILLED
//   marks    (all pages / 32 + 1,) u32, all 0 at first: a bit for each lowest page of several
//   counts   (4,) u32, added to: pages LEFT; ZERO; CONTENT or FILLED beyond the lowest; marks set
extern "C" __global__ void __launch_bounds__(THREADS)
    settle(u32 first, u32 count, u64 offset, u8* __restrict__ classes, u64* __restrict__ heads,
           const u32* __restrict__ lowest, u64 slots, const u64* __restrict__ found,
           u32* marks, u32* counts) {
    u32 left = 0, zero = 0, sharing = 0, marked = 0;
#pragma unroll 1
    for (u64 i = blockIdx.x * THREADS + threadIdx.x; i < count; i += (u64)gridDim.x * THREADS) {
        const u8 kind = classes[i];
        const bool in_words = kind == ZERO || kind == FILLED;
        const u64 number = in_words ? lowest[kind == ZERO ? slots : found[i]] : heads[i];
        if (kind == FOLLOWER) classes[i] = CONTENT;
        heads[i] = number + offset;
        left += kind == LEFT;
        zero += kind == ZERO;
        if (kind == FOLLOWER || (kind == FILLED && number != first + i)) {
            sharing++;
            marked += mark(marks, (u32)number);
        }
    }
    add(counts + 0, left);
    add(counts + 1, zero);
    add(counts + 2, sharing);
    add(counts + 3, marked);
}
