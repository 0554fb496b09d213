// Loads of 16 bytes of page data. A page is read once or twice, the table and the digests again and
// again: loads of pages that evict first leave the caches to them.
//
// LOADING is a switch (SWITCHES in __init__.py): 0 plain; 1 evict first; 2 not kept in L1. A policy
// that evicts first in L2 only is none of them: it takes sm_80, and instructions for each load.
#ifndef GPUDEDUP_LOAD_CUH
#define GPUDEDUP_LOAD_CUH

#include "common.cuh"

static_assert(LOADING >= 0 && LOADING <= 2, "there are three ways to load");

// Return 16 bytes of global memory that this launch does not write. Not volatile: loads may be
// moved, and many be in flight. g++ compiles the plain load.
#ifdef __CUDA_ARCH__
#define GPUDEDUP_LOAD(operation, at, pair)                                              \
    asm("{ .reg .u64 where; cvta.to.global.u64 where, %2; " operation " {%0, %1}, [where]; }" \
        : "=l"(pair.x), "=l"(pair.y)                                                    \
        : "l"(at))
#else
#define GPUDEDUP_LOAD(operation, at, pair) pair = *reinterpret_cast<const Pair*>(at)
#endif

// Load part of a page to digest or to compare.
__device__ __forceinline__ Pair load_page(const void* at) {
    Pair pair;
#if LOADING == 0
    pair = *reinterpret_cast<const Pair*>(at);
#elif LOADING == 1
    GPUDEDUP_LOAD("ld.global.cs.v2.u64", at, pair);
#else
    GPUDEDUP_LOAD("ld.global.nc.L1::no_allocate.v2.u64", at, pair);
#endif
    return pair;
}

// Load part of a page that other warps may want soon. Unlike a plain load this one is of global
// memory even where the compiler cannot see it, because the address was a number.
__device__ __forceinline__ Pair load_shared(const void* at) {
    Pair pair;
    GPUDEDUP_LOAD("ld.global.v2.u64", at, pair);
    return pair;
}

#endif
