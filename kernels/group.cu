// Group pages by digest: a hash table in device memory, filled chunk after chunk.
//
// Pages are numbered in the order of the stream; a chunk is `count` pages from number `first` on. A
// slot of the table is 64 bits: 32 bits of the digest's high half, and the number of the content's
// *anchor*, the lowest page seen with that digest. Open addressing, linear probing; slots are taken
// by compare-and-swap and never given back, so equal digests meet at one slot whatever the order in
// which threads arrive, and the lowest number stays.
//
// A thread a page, any grid; a block is 256 threads. A probe is a random access of 8 bytes, and one
// of 16 to the digest of the page met. Between the two kernels lies the end of a launch: until then
// an anchor may still give way to a lower page of its chunk.
//
// Oracle: a dict of bytes.
#include "common.cuh"

constexpr u64 FREE = ~0ull;
constexpr u64 MIX = 0x9E3779B97F4A7C15;
constexpr u64 NUMBER_MASK = 0xFFFFFFFF;

// insert(digests, first, count, classes, table, slots, found)
//   digests  (first + count, 2) u64, of all pages so far
//   classes  (count,) u8: only CONTENT is looked up
//   table    (slots,) u64, all FREE at first; more slots than pages
//   found    (count,) u64, written: the slot of each page's digest
extern "C" __global__ void __launch_bounds__(THREADS)
    insert(const u64* __restrict__ digests, u32 first, u32 count, const u8* __restrict__ classes,
           u64* table, u64 slots, u64* __restrict__ found) {
#pragma unroll 1
    for (u64 i = blockIdx.x * THREADS + threadIdx.x; i < count; i += (u64)gridDim.x * THREADS) {
        if (classes[i] != CONTENT) continue;
        const u64 number = first + i;
        const u64 low = digests[2 * number], high = digests[2 * number + 1];
        const u64 tag = high & ~NUMBER_MASK;
        const u64 mine = tag | number;
        u64 slot = __umul64hi(low * MIX, slots);
        for (;; slot = slot + 1 < slots ? slot + 1 : 0) {
            u64 seen = *(volatile u64*)(table + slot);
            if (seen == FREE) seen = atomicCAS(table + slot, FREE, mine);
            if (seen == FREE) break;
            if ((seen & ~NUMBER_MASK) != tag) continue;
            const u64 other = seen & NUMBER_MASK;
            if (digests[2 * other] != low || digests[2 * other + 1] != high) continue;
            atomicMin(table + slot, mine);
            break;
        }
        found[i] = slot;
    }
}

// resolve(pages, page_size, first, count, classes, heads, table, found, address, store, room, used)
//   classes  (count,) u8: CONTENT that is not its own anchor becomes FOLLOWER
//   heads    (count,) u64, written where CONTENT: the number of the anchor
//   address  (first + count,) u64, written for anchors: where their bytes stay; 0: nowhere
//   store    where pages are kept that must leave `pages`, room for `room` of them, `used` so far;
//            0: the bytes stay where they are
extern "C" __global__ void __launch_bounds__(THREADS)
    resolve(const u8* pages, u32 page_size, u32 first, u32 count, u8* __restrict__ classes,
            u64* __restrict__ heads, const u64* __restrict__ table, const u64* __restrict__ found,
            u64* __restrict__ address, u64 store, u32 room, u32* used) {
#pragma unroll 1
    for (u64 i = blockIdx.x * THREADS + threadIdx.x; i < count; i += (u64)gridDim.x * THREADS) {
        u64 place = 0;
        if (classes[i] == CONTENT) {
            const u64 number = first + i;
            const u64 anchor = table[found[i]] & NUMBER_MASK;
            heads[i] = anchor;
            if (anchor != number) {
                classes[i] = FOLLOWER;
            } else if (!store) {
                place = (u64)pages + page_size * i;
            } else {
                // Counts on beyond the room; who reads it takes the lower of the two.
                const u32 taken = *(volatile u32*)used < room ? atomicAdd(used, 1) : room;
                if (taken < room) place = store + (u64)page_size * taken;
            }
        }
        address[first + i] = place;
    }
}
