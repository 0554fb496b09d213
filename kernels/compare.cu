// Compare pages with their anchors, byte by byte: a digest nominates, bytes decide.
//
// compare(pages, page_size, first, count, classes, heads, address)
//   pages    the bytes of pages number first .. first + count - 1, aligned to 16
//   classes  (count,) u8: a FOLLOWER that is not equal to its anchor, or whose anchor's bytes are
//            nowhere on this device, becomes LEFT
//   heads    (count,) u64: the number of the anchor
//   address  (first + count,) u64: where the bytes of an anchor are, aligned to 16; 0: nowhere
//
// A warp takes 32 pages at a time and goes through the followers among them; of each it compares
// 2 KiB at once, four loads of 16 bytes a lane from both sides (4 KiB in flight of a warp), and
// leaves at the first difference. Any grid; a block is 256 threads; page_size is a power of two
// from 512 on.
//
// Oracle: NumPy, with pages that differ in any one bit.
#include "common.cuh"

constexpr u32 STEP = sizeof(Pair) * WARP;  // bytes of a load of the warp
constexpr u32 LOADS = 4;                   // at once, from either side
constexpr u32 BLOCKS = 4;  // of a multiprocessor: without it ptxas saves registers and splits loads

__device__ __forceinline__ u64 difference(Pair a, Pair b) { return (a.x ^ b.x) | (a.y ^ b.y); }

// Return, in all lanes, whether two pages are equal.
__device__ __forceinline__ bool equal(const u8* a, const u8* b, u32 page_size, u32 lane) {
    for (u32 at = sizeof(Pair) * lane; at < page_size; at += LOADS * STEP) {
        u64 bits = 0;
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            if (at + STEP * i < page_size)
                bits |= difference(*reinterpret_cast<const Pair*>(a + at + STEP * i),
                                   *reinterpret_cast<const Pair*>(b + at + STEP * i));
        }
        if (__any_sync(ALL_LANES, bits != 0)) return false;
    }
    return true;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    compare(const u8* pages, u32 page_size, u32 first, u32 count, u8* classes,
            const u64* __restrict__ heads, const u64* __restrict__ address) {
    const u32 lane = lane_number();
    for (u64 from = (u64)WARP * warp_in_grid(); from < count; from += (u64)WARP * warps_in_grid()) {
        const u64 mine = from + lane;
        const bool follows = mine < count && classes[mine] == FOLLOWER;
        const u64 anchor_at = follows ? address[heads[mine]] : 0;
        bool left = follows && !anchor_at;
        for (u32 todo = __ballot_sync(ALL_LANES, follows && anchor_at); todo; todo &= todo - 1) {
            const u32 which = __ffs(todo) - 1;
            const u64 anchor = __shfl_sync(ALL_LANES, anchor_at, which);
            const u8* page = pages + page_size * (from + which);
            if (!equal(page, (const u8*)anchor, page_size, lane) && lane == which) left = true;
        }
        if (left) classes[mine] = LEFT;
    }
}
