// Types, classes of pages and thread numbers that all kernels share.
//
// Nothing is included from outside: NVRTC has no <cstdint>, and CUDA fixes the widths used here.
#ifndef GPUDEDUP_COMMON_CUH
#define GPUDEDUP_COMMON_CUH

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 THREADS = 256;  // threads of every block
constexpr u32 WARP = 32;
constexpr u32 WARPS = THREADS / WARP;  // warps of every block
constexpr u32 ALL_LANES = 0xFFFFFFFFu;

// Class of a page: gpudedup.engines.base.PageClass, and two that do not leave the engine: FOLLOWER
// has the digest of its anchor, LEFT has it too but was not found equal.
constexpr u8 CONTENT = 0;
constexpr u8 ZERO = 1;
constexpr u8 FILLED = 2;
constexpr u8 FOLLOWER = 5;
constexpr u8 LEFT = 6;

// 16 bytes, one load of a thread.
struct __align__(16) Pair {
    u64 x, y;
};

__device__ __forceinline__ u32 lane_number() { return threadIdx.x % WARP; }

__device__ __forceinline__ u32 warp_in_grid() { return (blockIdx.x * THREADS + threadIdx.x) / WARP; }

__device__ __forceinline__ u32 warps_in_grid() { return gridDim.x * WARPS; }

#endif
