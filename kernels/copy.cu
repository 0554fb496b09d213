// Copy whole pages in device memory: gather, scatter, or both. The scan engine keeps new anchors by
// it; the manager breaks COW, replicates and migrates by it.
//
// Grid      any; blocks of THREADS threads; a warp takes a page
// Aligned   all addresses to 16; page_size is a power of two from 512 on
// In flight LOADS loads, then stores, of 16 bytes a thread: 2 KiB per warp
// Oracle    NumPy's fancy indexing
//
// copy_pages(to, to_base, from, from_base, count, page_size)
//   to    (count,) u64 addresses; 0: this page is not copied. Null: neighbours from to_base on
//   from  the same for the source, which does not overlap the target
#include "move.cuh"

constexpr u32 BLOCKS = 4;  // per multiprocessor: without it ptxas saves registers and splits loads

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    copy_pages(const u64* __restrict__ to, u64 to_base, const u64* __restrict__ from,
               u64 from_base, u32 count, u32 page_size) {
#pragma unroll 1
    for (u32 i = warp_in_grid(); i < count; i += warps_in_grid()) {
        const u64 target = to ? to[i] : to_base + (u64)page_size * i;
        const u64 source = from ? from[i] : from_base + (u64)page_size * i;
        if (!target || !source) continue;
        move_words<Pair>(target, source, page_size);
    }
}
