// Read memory and do next to nothing: what benchmarks hold the other kernels against.
//
// read_words(words, pairs, sum)
//   words  2 * pairs u64, aligned to 16
//   sum    u64, to which the sum of all words is added, modulo 2^64
//
// A thread has eight loads of 16 bytes in flight, a load of a warp is 512 contiguous bytes: 128 KiB
// of a multiprocessor with four blocks. Any grid; a block is 256 threads.
//
// Oracle: NumPy's sum.
#include "common.cuh"

constexpr u32 LOADS = 8;   // at once
constexpr u32 BLOCKS = 4;  // of a multiprocessor: without it ptxas saves registers and splits loads

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    read_words(const Pair* __restrict__ words, u64 pairs, u64* sum) {
    constexpr u64 CHUNK = THREADS * LOADS;
    const u64 step = gridDim.x * CHUNK, whole = pairs - pairs % CHUNK;
    u64 mine = 0;
    for (u64 at = blockIdx.x * CHUNK + threadIdx.x; at < whole; at += step) {
        Pair loaded[LOADS];
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) loaded[i] = words[at + THREADS * i];
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) mine += loaded[i].x + loaded[i].y;
    }
    if (blockIdx.x == 0)
        for (u64 at = whole + threadIdx.x; at < pairs; at += THREADS)
            mine += words[at].x + words[at].y;
    for (u32 lanes = WARP / 2; lanes; lanes /= 2) mine += __shfl_xor_sync(ALL_LANES, mine, lanes);
    if (lane_number() == 0) atomicAdd(sum, mine);
}
