// Layout quad: a warp takes 4 hash blocks at a time, one of each of 4 pages (in layout block,
// neighbours of one page). A load of the warp is 512 contiguous bytes.
//
// Lane t holds bytes 16 t .. 16 t + 15 of each half of a block: words 2 (t % 4) and the next of
// stripe t / 4. Its two sums are of accumulators 2 (t % 4) and the next, so they are added up over
// the 8 lanes with the same t % 4. A reduce-scatter does that for 4 blocks at once with 7 shuffles,
// and leaves each lane with one accumulator of one of them: octet p gets block p.
#ifndef GPUDEDUP_DIGEST_QUAD_CUH
#define GPUDEDUP_DIGEST_QUAD_CUH

#include "digest_output.cuh"

constexpr u32 QUAD = 4;
constexpr u32 HALF = 512;                            // bytes of a load of the warp
constexpr u32 HALVES = PAGE_SIZE >= HASH_BLOCK ? 2 : 1;  // halves of a block
constexpr u32 BLOCKS = PAGE_SIZE / (HALF * HALVES);

struct QuadKeys {
    Pair half[HALVES];  // keys of a block
    Pair last;          // keys of the last half of a page, which has the page's last stripe

    __device__ __forceinline__ explicit QuadKeys(u32 lane) {
        const u32 stripe = lane / 4, word = 2 * (lane % 4);
#pragma unroll
        for (u32 h = 0; h < HALVES; h++) half[h] = keys_at(8 * (8 * h + stripe + word));
        last = stripe == 7 ? keys_at(LAST_STRIPE_AT + 8 * word) : half[HALVES - 1];
    }
};

// Return one value of `from`, that of page lane / 8 and accumulator lane / 4 % 2, summed up over
// the lanes with the same lane % 4.
__device__ __forceinline__ u64 reduce_scatter(const u64 (&from)[QUAD][2], u32 lane) {
    u64 two[2][2], one[2];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u64 lower = from[i / 2][i % 2], upper = from[2 + i / 2][i % 2];
        const u64 away = __shfl_xor_sync(ALL_LANES, lane & 16 ? lower : upper, 16);
        two[i / 2][i % 2] = (lane & 16 ? upper : lower) + away;
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u64 away = __shfl_xor_sync(ALL_LANES, lane & 8 ? two[0][i] : two[1][i], 8);
        one[i] = (lane & 8 ? two[1][i] : two[0][i]) + away;
    }
    const u64 away = __shfl_xor_sync(ALL_LANES, lane & 4 ? one[0] : one[1], 4);
    return (lane & 4 ? one[1] : one[0]) + away;
}

// Add up one block each of 4 stretches, and note whether it differs from the first word.
//
// data[p] is the address of this lane's part of block p; `first` is set from it if `begins`.
// `three` are the keys of the last half of blocks 0 to 2, `fourth` those of block 3.
__device__ __forceinline__ u64 add_quad(const u8* const (&data)[QUAD], u64 (&first)[QUAD],
                                        u32 (&differ)[QUAD], const QuadKeys& keys, Pair three,
                                        Pair fourth, u32 lane, bool begins) {
    Pair loaded[QUAD][HALVES];
#pragma unroll
    for (u32 p = 0; p < QUAD; p++)
#pragma unroll
        for (u32 h = 0; h < HALVES; h++) loaded[p][h] = load_page(data[p] + HALF * h);
    u64 sums[QUAD][2] = {};
#pragma unroll
    for (u32 p = 0; p < QUAD; p++) {
        if (begins) first[p] = __shfl_sync(ALL_LANES, loaded[p][0].x, 0);
#pragma unroll
        for (u32 h = 0; h < HALVES; h++) {
            const Pair last = p == QUAD - 1 ? fourth : three;
            add_pair(sums[p], loaded[p][h], h == HALVES - 1 ? last : keys.half[h]);
            differ[p] |= differing(loaded[p][h], first[p]);
        }
    }
    return reduce_scatter(sums, lane);
}

__device__ __forceinline__ void digest_quads(const u8* pages, u32 count, Output output) {
    const u32 lane = lane_number();
    const QuadKeys keys(lane);
    const Merge merge(lane);
    const u32 owned = owned_accumulator(lane);
    const u64 scramble_key = secret_at(SCRAMBLE_AT + 8 * owned);
    const u64 start = START[owned];
    const u32 quads = count / QUAD + (count % QUAD != 0);
    for (u32 quad = warp_in_grid(); quad < quads; quad += warps_in_grid()) {
        // A quad that is not full repeats the last page, so that no lane leaves the shuffles.
        const u8* data[QUAD];
        u64 first[QUAD];
        u32 differ[QUAD] = {};
#pragma unroll
        for (u32 p = 0; p < QUAD; p++)
            data[p] = pages + (u64)PAGE_SIZE * min(QUAD * quad + p, count - 1) + 16 * lane;
        u64 acc = start;
#pragma unroll 1
        for (u32 block = 0; block < BLOCKS; block++) {
            const bool ends = block == BLOCKS - 1;
            const Pair last = ends ? keys.last : keys.half[HALVES - 1];
            acc += add_quad(data, first, differ, keys, last, last, lane, block == 0);
            if (!ends) acc = scramble(acc, scramble_key);
#pragma unroll
            for (u32 p = 0; p < QUAD; p++) data[p] += HALF * HALVES;
        }
        const u64 half = merge(acc, lane);
        const u32 page = QUAD * quad + lane / 8;
#pragma unroll
        for (u32 p = 0; p < QUAD; p++) {
            const bool same = !__any_sync(ALL_LANES, differ[p]);
            if (lane / 8 == p && page < count) output.put(page, lane, half, same, first[p]);
        }
    }
}

#endif
