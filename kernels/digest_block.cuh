// Layout block: a block takes a page of 64 KiB or more. Its warps sum up tiles of TILE hash blocks,
// each warp 4 neighbours at a time, into shared memory; then the first warp chains the tile while
// the other warps go on with the next one. Two tiles of sums are held in turn, so one barrier a
// tile is enough: a warp passes it only when the chain of the previous tile is done.
#ifndef GPUDEDUP_DIGEST_BLOCK_CUH
#define GPUDEDUP_DIGEST_BLOCK_CUH

#include "digest_quad.cuh"

constexpr u32 TILE = 64;  // hash blocks of a tile

// Sums of the hash blocks of two tiles: one per accumulator, in the order of the owners.
struct Partials {
    u64 sums[2][TILE][8];
};

__device__ __forceinline__ void digest_blocks(const u8* pages, u32 count, Partials& partials,
                                              Output output) {
    const u32 lane = lane_number(), warp = threadIdx.x / WARP;
    const QuadKeys keys(lane);
    const Merge merge(lane);
    const u32 owned = owned_accumulator(lane);
    const u64 scramble_key = secret_at(SCRAMBLE_AT + 8 * owned);
    u32 turn = 0;
    for (u32 page = blockIdx.x; page < count; page += gridDim.x) {
        const u8* const begin = pages + (u64)PAGE_SIZE * page;
        const u64 word = *reinterpret_cast<const u64*>(begin);
        u64 first[QUAD] = {word, word, word, word};
        u32 differ[QUAD] = {};
        u64 acc = START[owned];
        for (u32 tile = 0; tile < BLOCKS; tile += TILE, turn ^= 1) {
            for (u32 at = QUAD * warp; at < TILE; at += QUAD * WARPS) {
                const u8* data[QUAD];
#pragma unroll
                for (u32 p = 0; p < QUAD; p++)
                    data[p] = begin + HASH_BLOCK * (tile + at + p) + 16 * lane;
                const Pair middle = keys.half[HALVES - 1];
                const Pair fourth = tile + at + QUAD == BLOCKS ? keys.last : middle;
                partials.sums[turn][at + lane / 8][lane % 8] =
                    add_quad(data, first, differ, keys, middle, fourth, lane, false);
            }
            const bool same = !__syncthreads_or(differ[0] | differ[1] | differ[2] | differ[3]);
            if (warp) continue;
            // All octets of the first warp compute the same; the first one writes.
#pragma unroll 8
            for (u32 i = 0; i < TILE; i++) {
                acc += partials.sums[turn][i][lane % 8];
                if (tile + i + 1 < BLOCKS) acc = scramble(acc, scramble_key);
            }
            if (tile + TILE < BLOCKS) continue;
            const u64 half = merge(acc, lane);
            if (lane < 8) output.put(page, lane, half, same, word);
        }
    }
}

#endif
