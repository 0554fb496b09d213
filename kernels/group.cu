// Group pages by digest: a hash table in device memory, filled chunk after chunk.
//
// Grid      any; blocks of THREADS threads; a thread takes a page
// Aligned   arrays to their elements; pages and store to 16, for the kernels that read them
// In flight a probe a thread: 8 random bytes of the table, then 16 of the digest of the page met
// Oracle    a dict of bytes
// INSERTING what a page does that meets its digest (SWITCHES in __init__.py):
//             0 always  atomicMin
//             1 lower   atomicMin if its number is lower than the one met: atomics on one address
//                       are done one after another, and most pages of a large group need none
//             2 warp    the same, by the lowest of a warp's pages with that digest for all of them
//
// Pages are numbered in the order of the stream; a chunk is `count` pages from number `first` on. A
// slot of the table is 64 bits: the upper half of the digest's high half, and the number of the
// *anchor*, the lowest page so far with that digest. Open addressing, linear probing; slots are
// taken by compare-and-swap and never freed, so equal digests meet at one slot in any order of
// threads, and the lowest number stays. `resolve` is a launch of its own: until `insert` has ended,
// a lower page of the chunk may replace an anchor.
#include "common.cuh"

constexpr u64 FREE = ~0ull;
constexpr u64 MIX = 0x9E3779B97F4A7C15;
constexpr u64 NUMBER_MASK = 0xFFFFFFFF;

static_assert(INSERTING >= 0 && INSERTING <= 2, "there are three ways to insert");

// Return the slot of a page's digest, which then holds no higher number than the page's.
__device__ __forceinline__ u64 slot_for(u64 number, u64 low, u64 high, const u64* digests,
                                        u64* table, u64 slots) {
    const u64 tag = high & ~NUMBER_MASK, mine = tag | number;
    u64 slot = __umul64hi(low * MIX, slots);
    for (;; slot = slot + 1 < slots ? slot + 1 : 0) {
        u64 seen = *(volatile u64*)(table + slot);
        if (seen == FREE) seen = atomicCAS(table + slot, FREE, mine);
        if (seen == FREE) break;
        if ((seen & ~NUMBER_MASK) != tag) continue;
        const u64 other = seen & NUMBER_MASK;
        if (digests[2 * other] != low || digests[2 * other + 1] != high) continue;
        // Numbers in a slot only fall: one that was lower is lower still.
        if (INSERTING == 0 || mine < seen) atomicMin(table + slot, mine);
        break;
    }
    return slot;
}

// insert(digests, first, count, classes, table, slots, found)
//   digests  (first + count, 2) u64: all pages so far
//   classes  (count,) u8: only CONTENT is looked up
//   table    (slots,) u64, all FREE at first; more slots than pages
//   found    (count,) u64, written: the slot of each page's digest
extern "C" __global__ void __launch_bounds__(THREADS)
    insert(const u64* __restrict__ digests, u32 first, u32 count, const u8* __restrict__ classes,
           u64* table, u64 slots, u64* __restrict__ found) {
    const u32 lane = lane_number();
#pragma unroll 1
    for (u64 from = (u64)WARP * warp_in_grid(); from < count; from += (u64)WARP * warps_in_grid()) {
        const u64 i = from + lane, number = first + i;
        const bool looks = i < count && classes[i] == CONTENT;
        const u32 together = INSERTING == 2 ? __ballot_sync(ALL_LANES, looks) : 0;
        if (!looks) continue;
        const u64 low = digests[2 * number], high = digests[2 * number + 1];
        u64 slot = 0;
        if (INSERTING == 2) {
            const u32 equal = __match_any_sync(together, low) & __match_any_sync(together, high);
            const u32 lowest = __ffs(equal) - 1;
            if (lane == lowest) slot = slot_for(number, low, high, digests, table, slots);
            slot = __shfl_sync(equal, slot, lowest);
        } else {
            slot = slot_for(number, low, high, digests, table, slots);
        }
        found[i] = slot;
    }
}

// resolve(pages, page_size, first, count, classes, heads, table, found, address, store, room, used)
//   classes  (count,) u8: CONTENT that is not its own anchor becomes FOLLOWER
//   heads    (count,) u64, written where CONTENT: the number of the anchor
//   address  (first + count,) u64, written from `first` on: where an anchor's bytes stay; else 0
//   store    memory to keep `room` anchors in, `used` of them taken; 0: anchors stay in `pages`
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
                // May pass `room` when threads race for the last place: read the lower of both.
                const u32 taken = *(volatile u32*)used < room ? atomicAdd(used, 1) : room;
                if (taken < room) place = store + (u64)page_size * taken;
            }
        }
        address[first + i] = place;
    }
}
