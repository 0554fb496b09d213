// Copy whole pages between any places of device memory: gather, scatter, or both.
//
// copy_pages(to, to_base, from, from_base, count, page_size)
//   to    (count,) u64 addresses; 0: this page is not copied. Null: pages lie one after another
//         from to_base on
//   from  the same for the source
//
// Source and target do not overlap; all addresses are aligned to 16. It keeps new anchors of a
// chunk in the store, and is what copy-on-write, replication and migration of frames come down to.
//
// A warp takes a page: 2 KiB at once, four loads and stores of 16 bytes a lane. Any grid; a block
// is 256 threads; page_size is a power of two from 512 on.
//
// Oracle: NumPy's fancy indexing.
#include "move.cuh"

constexpr u32 BLOCKS = 4;  // of a multiprocessor: without it ptxas saves registers and splits loads

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
