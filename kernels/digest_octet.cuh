// Layout octet: 8 lanes take a page, so a warp takes 4. A load of an octet is 128 contiguous bytes.
//
// Lane o holds bytes 16 o .. 16 o + 15 of each 128-byte line: words 2 (o % 4) and the next of the
// line's stripe o / 4. Its two sums are of accumulators 2 (o % 4) and the next; lanes o and o ^ 4
// exchange one each, which leaves every lane with one accumulator.
#ifndef GPUDEDUP_DIGEST_OCTET_CUH
#define GPUDEDUP_DIGEST_OCTET_CUH

#include "digest_output.cuh"

constexpr u32 LINE = 128;
constexpr u32 LINES = (PAGE_SIZE < HASH_BLOCK ? PAGE_SIZE : HASH_BLOCK) / LINE;  // lines of a block
constexpr u32 OCTETS = WARP / 8;  // octets of a warp

__device__ __forceinline__ void digest_octets(const u8* pages, u32 count, Output output) {
    const u32 lane = lane_number(), stripe = lane / 4 % 2, word = 2 * (lane % 4);
    Pair keys[LINES];
#pragma unroll
    for (u32 i = 0; i < LINES; i++) keys[i] = keys_at(8 * (2 * i + stripe + word));
    const Pair last_keys = stripe ? keys_at(LAST_STRIPE_AT + 8 * word) : keys[LINES - 1];
    const Merge merge(lane);
    const u32 owned = owned_accumulator(lane);
    const u64 scramble_key = secret_at(SCRAMBLE_AT + 8 * owned);
    const u64 start = START[owned];
    constexpr u32 BLOCKS_OF_PAGE = PAGE_SIZE / (LINE * LINES);
    const u32 turns = count / OCTETS + (count % OCTETS != 0);
    for (u32 turn = warp_in_grid(); turn < turns; turn += warps_in_grid()) {
        // An octet beyond the end repeats the last page, so that no lane leaves the shuffles.
        const u32 page = OCTETS * turn + lane / 8;
        const u8* data = pages + (u64)PAGE_SIZE * min(page, count - 1) + 16 * (lane % 8);
        u64 acc = start, first = 0;
        u32 differ = 0;
#pragma unroll 1
        for (u32 block = 0; block < BLOCKS_OF_PAGE; block++) {
            const bool ends = block == BLOCKS_OF_PAGE - 1;
            Pair loaded[LINES];
#pragma unroll
            for (u32 i = 0; i < LINES; i++) loaded[i] = load_page(data + LINE * i);
            if (block == 0) first = __shfl_sync(ALL_LANES, loaded[0].x, lane & ~7u);
            u64 sums[2] = {};
#pragma unroll
            for (u32 i = 0; i < LINES; i++) {
                add_pair(sums, loaded[i], ends && i == LINES - 1 ? last_keys : keys[i]);
                differ |= differing(loaded[i], first);
            }
            const u64 away = __shfl_xor_sync(ALL_LANES, stripe ? sums[0] : sums[1], 4);
            acc += (stripe ? sums[1] : sums[0]) + away;
            if (!ends) acc = scramble(acc, scramble_key);
            data += LINE * LINES;
        }
        const u64 half = merge(acc, lane);
        const u32 unequal = __ballot_sync(ALL_LANES, differ) >> (lane & ~7u) & 0xFF;
        if (page < count) output.put(page, lane, half, !unequal, first);
    }
}

#endif
