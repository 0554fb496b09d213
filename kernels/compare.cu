// Compare pages with their anchors, byte by byte: a digest nominates, bytes decide.
//
// Grid      any; blocks of THREADS threads; a warp takes WARP pages and compares their followers in
//           turn, each up to the first step that differs
// Aligned   pages and anchors to 16; page_size is a power of two from 512 on
// In flight LOADS loads of 16 bytes a thread from either page: 2 KiB of each per warp
// Oracle    NumPy, with pages that differ in any one bit
// LOADING   of the page, see load.cuh; anchors are loaded plainly: where many pages in a row have one
//           anchor, it stays in L1
//
// Followers of one anchor are not compared together, by one load of the anchor: pages so close to one
// another that a warp or a block takes them seldom share one (docs/figures.md, "On a GPU").
//
// compare(pages, page_size, first, count, classes, heads, address)
//   pages    bytes of pages number first .. first + count - 1
//   classes  (count,) u8: a FOLLOWER that differs from its anchor, or whose anchor's bytes are not
//            on this device, becomes LEFT
//   heads    (count,) u64: number of the anchor
//   address  (first + count,) u64: address of an anchor's bytes; 0: not on this device
#include "load.cuh"

constexpr u32 STEP = sizeof(Pair) * WARP;  // bytes of a load of the warp
constexpr u32 LOADS = 4;                   // in flight, from either page
constexpr u32 BLOCKS = 4;  // per multiprocessor: without it ptxas saves registers and splits loads

__device__ __forceinline__ u64 difference(Pair a, Pair b) { return (a.x ^ b.x) | (a.y ^ b.y); }

// Return, in all lanes, whether a page equals its anchor.
__device__ __forceinline__ bool equal(const u8* page, const u8* anchor, u32 page_size, u32 lane) {
    for (u32 at = sizeof(Pair) * lane; at < page_size; at += LOADS * STEP) {
        u64 bits = 0;
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            if (at + STEP * i < page_size)
                bits |= difference(load_page(page + at + STEP * i),
                                   load_shared(anchor + at + STEP * i));
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
