// Read memory and sum it up: the ceiling that benchmarks compare the other kernels with.
//
// Grid      any; blocks of THREADS threads
// Aligned   words to 16
// In flight LOADS loads of 16 bytes a thread: 128 KiB per multiprocessor of BLOCKS blocks
// Oracle    NumPy's sum
//
// LOADING: see load.cuh
//
// read_words(words, pairs, sum)
//   words  2 * pairs u64
//   sum    u64, to which the sum of all words is added, modulo 2^64
#include "load.cuh"

constexpr u32 LOADS = 8;   // in flight
constexpr u32 BLOCKS = 4;  // per multiprocessor: without it ptxas saves registers and splits loads

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    read_words(const Pair* __restrict__ words, u64 pairs, u64* sum) {
    constexpr u64 CHUNK = THREADS * LOADS;
    const u64 step = gridDim.x * CHUNK, whole = pairs - pairs % CHUNK;
    u64 mine = 0;
    for (u64 at = blockIdx.x * CHUNK + threadIdx.x; at < whole; at += step) {
        Pair loaded[LOADS];
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) loaded[i] = load_page(words + at + THREADS * i);
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) mine += loaded[i].x + loaded[i].y;
    }
    if (blockIdx.x == 0)
        for (u64 at = whole + threadIdx.x; at < pairs; at += THREADS)
            mine += words[at].x + words[at].y;
    for (u32 lanes = WARP / 2; lanes; lanes /= 2) mine += __shfl_xor_sync(ALL_LANES, mine, lanes);
    if (lane_number() == 0) atomicAdd(sum, mine);
}
