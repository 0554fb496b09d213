// A device's copy of the page table of a mapping: fill it, invalidate it, and access pages by it.
//
// Grid      any; blocks of THREADS threads; a thread takes a word (set_words, add_words), a warp a
//           row (load_pages, store_pages)
// Aligned   words to 8, frames to FLAGS + 1; rows at any address and of any size
// In flight a word a thread; of rows aligned to 16, LOADS loads of 16 bytes a thread
// Oracle    dicts and NumPy's indexing
//
// set_words(at, value, count)
//   at     (count,) u64 addresses of words, all different
//   value  (count,) u64, stored there: entries, leaves and branches
// load_pages(directory, branches, index, count, offset, size, out, missed)
//   index  (count,) u64 pages of the mapping
//   out    count rows of size bytes: bytes offset .. offset + size of each page, within its end
// store_pages(directory, branches, index, count, offset, size, data, stride, missed)
//   index  pages, all different
//   data   the rows, one each stride bytes; stride 0: one for all pages
// add_words(directory, branches, index, word, value, before, missed, count)
//   word   (count,) u32: number of the page's word of 8 bytes; repeats are allowed
//   value  (count,) u64, added to the word modulo 2^64, atomically; no order of rows is promised
//   before (count,) u64, written: the word's previous value
//
// A directory is (branches,) u64, addresses of branches, or 0. A branch is BRANCH_LEAVES u64,
// addresses of leaves, or 0. A leaf is LEAF_PAGES u64 entries; 0: the page is not present. An entry
// is the address of a frame, and in its FLAGS the allowed accesses: loads (PRESENT), stores (WRITE),
// atomics (ATOMIC). A row whose
// access is not allowed, or whose page lies beyond the directory, is missed: missed[i] is 1, else
// 0, and nothing else of the row is written. With a null directory index has addresses of frames,
// all accesses are allowed but to 0, and missed may be null too.
//
// Entries are read by plain loads: the stream orders them after the kernels that set them.
#include "move.cuh"

constexpr u64 PRESENT = 1;
constexpr u64 WRITE = 2;
constexpr u64 ATOMIC = 4;
constexpr u64 FLAGS = 511;  // bits below the address
constexpr u32 LEAF_PAGES = 64;
constexpr u32 BRANCH_LEAVES = 512;
constexpr u64 BRANCH_PAGES = (u64)BRANCH_LEAVES * LEAF_PAGES;

constexpr u32 BLOCKS = 4;  // per multiprocessor: without it ptxas saves registers and splits loads

__device__ __forceinline__ u32 thread_in_grid() { return blockIdx.x * THREADS + threadIdx.x; }

__device__ __forceinline__ u32 threads_in_grid() { return gridDim.x * THREADS; }

// Return the address of a page's frame; 0: its entry lacks one of the bits `needed`.
__device__ __forceinline__ u64 translate(const u64* __restrict__ directory, u64 branches, u64 page,
                                         u64 needed) {
    if (!directory) return page;
    if (page / BRANCH_PAGES >= branches) return 0;
    const u64 branch = directory[page / BRANCH_PAGES];
    if (!branch) return 0;
    const u64 leaf = reinterpret_cast<const u64*>(branch)[page / LEAF_PAGES % BRANCH_LEAVES];
    if (!leaf) return 0;
    const u64 entry = reinterpret_cast<const u64*>(leaf)[page % LEAF_PAGES];
    return (entry & needed) == needed ? entry & ~FLAGS : 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    set_words(const u64* __restrict__ at, const u64* __restrict__ value, u32 count) {
    for (u32 i = thread_in_grid(); i < count; i += threads_in_grid())
        *reinterpret_cast<u64*>(at[i]) = value[i];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    load_pages(const u64* __restrict__ directory, u64 branches, const u64* __restrict__ index,
               u32 count, u32 offset, u32 size, u8* __restrict__ out, u8* __restrict__ missed) {
#pragma unroll 1
    for (u32 i = warp_in_grid(); i < count; i += warps_in_grid()) {
        const u64 page = translate(directory, branches, index[i], PRESENT);
        if (missed && lane_number() == 0) missed[i] = !page;
        if (!page) continue;
        move_bytes(reinterpret_cast<u64>(out) + (u64)size * i, page + offset, size);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    store_pages(const u64* __restrict__ directory, u64 branches, const u64* __restrict__ index,
                u32 count, u32 offset, u32 size, const u8* __restrict__ data, u64 stride,
                u8* __restrict__ missed) {
#pragma unroll 1
    for (u32 i = warp_in_grid(); i < count; i += warps_in_grid()) {
        const u64 page = translate(directory, branches, index[i], PRESENT | WRITE);
        if (missed && lane_number() == 0) missed[i] = !page;
        if (!page) continue;
        move_bytes(page + offset, reinterpret_cast<u64>(data) + stride * i, size);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    add_words(const u64* __restrict__ directory, u64 branches, const u64* __restrict__ index,
              const u32* __restrict__ word, const u64* __restrict__ value,
              u64* __restrict__ before, u8* __restrict__ missed, u32 count) {
    for (u32 i = thread_in_grid(); i < count; i += threads_in_grid()) {
        const u64 page = translate(directory, branches, index[i], PRESENT | ATOMIC);
        if (missed) missed[i] = !page;
        if (page) before[i] = atomicAdd(reinterpret_cast<u64*>(page) + word[i], value[i]);
    }
}
