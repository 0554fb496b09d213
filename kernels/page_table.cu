// A device's copy of the page table of a mapping: fill it, invalidate it, and access pages by it.
//
// set_words(at, value, count)
//   at     (count,) u64 addresses of words, all different
//   value  (count,) u64, stored there: entries, and the leaves of directories
// load_pages(directory, leaves, index, count, offset, size, out, missed)
//   index  (count,) u64 pages of the mapping
//   out    count rows of size bytes: bytes offset .. offset + size of these pages
// store_pages(directory, leaves, index, count, offset, size, data, stride, missed)
//   index  pages, all different
//   data   the rows, one each stride bytes; stride 0: one for all pages
// add_words(directory, leaves, index, word, value, before, missed, count)
//   word   (count,) u32: which of a page's words of 8 bytes; the same may come several times
//   value  (count,) u64, added to the word modulo 2^64, atomically; no order of rows is promised
//   before (count,) u64: what the word held
//
// A directory is (leaves,) u64, one for each 64 pages: the address of a leaf; 0: there is none. A
// leaf is 64 u64 entries; 0: the page is not present. An entry is the address of a frame, a
// multiple of 512, and in its lowest bits what may be done with it: loads (PRESENT), stores (WRITE)
// and atomics (ATOMIC). A row whose page may not be accessed so, or lies beyond the directory, is
// missed: missed[i] is 1, else 0, and nothing else of the row is written. With no directory (null)
// index has the addresses of the frames, all may be accessed but 0, and missed may be null too.
//
// Entries are read by plain loads: the stream orders them after what filled and invalidated them.
// Bytes offset .. offset + size lie within a page; addresses and sizes of bytes are of any
// alignment, words of 8 bytes are aligned to 8. Rows that are all multiples of 16 are moved 2 KiB
// at once.
//
// A thread takes a word (set_words, add_words), a warp a row (load_pages, store_pages). Any grid; a
// block is 256 threads.
//
// Oracle: dicts and NumPy's indexing.
#include "move.cuh"

constexpr u64 PRESENT = 1;
constexpr u64 WRITE = 2;
constexpr u64 ATOMIC = 4;
constexpr u64 FLAGS = 511;  // bits that are no address
constexpr u32 LEAF_PAGES = 64;

constexpr u32 BLOCKS = 4;  // of a multiprocessor: without it ptxas saves registers and splits loads

__device__ __forceinline__ u32 thread_in_grid() { return blockIdx.x * THREADS + threadIdx.x; }

__device__ __forceinline__ u32 threads_in_grid() { return gridDim.x * THREADS; }

// Returns the address of a page's frame; 0: its entry does not have all the bits needed.
__device__ __forceinline__ u64 translate(const u64* __restrict__ directory, u64 leaves, u64 page,
                                         u64 needed) {
    if (!directory) return page;
    if (page / LEAF_PAGES >= leaves) return 0;
    const u64 leaf = directory[page / LEAF_PAGES];
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
    load_pages(const u64* __restrict__ directory, u64 leaves, const u64* __restrict__ index,
               u32 count, u32 offset, u32 size, u8* __restrict__ out, u8* __restrict__ missed) {
#pragma unroll 1
    for (u32 i = warp_in_grid(); i < count; i += warps_in_grid()) {
        const u64 page = translate(directory, leaves, index[i], PRESENT);
        if (missed && lane_number() == 0) missed[i] = !page;
        if (!page) continue;
        move_bytes(reinterpret_cast<u64>(out) + (u64)size * i, page + offset, size);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    store_pages(const u64* __restrict__ directory, u64 leaves, const u64* __restrict__ index,
                u32 count, u32 offset, u32 size, const u8* __restrict__ data, u64 stride,
                u8* __restrict__ missed) {
#pragma unroll 1
    for (u32 i = warp_in_grid(); i < count; i += warps_in_grid()) {
        const u64 page = translate(directory, leaves, index[i], PRESENT | WRITE);
        if (missed && lane_number() == 0) missed[i] = !page;
        if (!page) continue;
        move_bytes(page + offset, reinterpret_cast<u64>(data) + stride * i, size);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    add_words(const u64* __restrict__ directory, u64 leaves, const u64* __restrict__ index,
              const u32* __restrict__ word, const u64* __restrict__ value,
              u64* __restrict__ before, u8* __restrict__ missed, u32 count) {
    for (u32 i = thread_in_grid(); i < count; i += threads_in_grid()) {
        const u64 page = translate(directory, leaves, index[i], PRESENT | ATOMIC);
        if (missed) missed[i] = !page;
        if (page) before[i] = atomicAdd(reinterpret_cast<u64*>(page) + word[i], value[i]);
    }
}
