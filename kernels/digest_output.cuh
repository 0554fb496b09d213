// Results of the digest kernels.
#ifndef GPUDEDUP_DIGEST_OUTPUT_CUH
#define GPUDEDUP_DIGEST_OUTPUT_CUH

#include "load.cuh"
#include "xxh3.cuh"

struct Output {
    u64* digests;
    u8* classes;
    u64* heads;
    u64 low_mask, high_mask;

    // Write a page's results: called by all lanes of an octet, each with its `half` from Merge.
    __device__ __forceinline__ void put(u32 page, u32 lane, u64 half, bool same, u64 first) const {
        if (lane % 4) return;
        const bool high = lane & 4;
        digests[2ull * page + high] = half & (high ? high_mask : low_mask);
        if (high) return;
        classes[page] = !same ? CONTENT : first ? FILLED : ZERO;
        if (same && first) heads[page] = first;
    }
};

#endif
