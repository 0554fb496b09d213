// XXH3-128, seed 0, of whole pages (512 B and more: the long path only). Source: xxhash.h (BSD-2).
//
// Stripes of 64 bytes are added to eight 64-bit accumulators; 16 stripes make a block of 1 KiB.
// Sums are modulo 2^64, so those of a block do not depend on earlier blocks and may be added up in
// any order; only `acc = scramble(acc + block)` chains the blocks. The last block is not scrambled,
// and its last stripe takes the secret at LAST_STRIPE_AT.
//
// Eight lanes, an *octet*, own one accumulator each: lane o owns number 2 (o % 4) + o / 4.
// So the two accumulators that are multiplied with each other belong to lanes o and o + 4.
#ifndef GPUDEDUP_XXH3_CUH
#define GPUDEDUP_XXH3_CUH

#include "common.cuh"

constexpr u32 STRIPE = 64;
constexpr u32 HASH_BLOCK = 1024;

constexpr u64 P32_1 = 0x9E3779B1, P32_2 = 0x85EBCA77, P32_3 = 0xC2B2AE3D;
constexpr u64 P64_1 = 0x9E3779B185EBCA87, P64_2 = 0xC2B2AE3D27D4EB4F, P64_3 = 0x165667B19E3779F9;
constexpr u64 P64_4 = 0x85EBCA77C2B2AE63, P64_5 = 0x27D4EB2F165667C5;

// Byte offsets in the secret.
constexpr u32 LAST_STRIPE_AT = 121, SCRAMBLE_AT = 128, LOW_AT = 11, HIGH_AT = 117;

__constant__ u64 START[8] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};
__constant__ u64 SECRET[24] = {
    0xBE4BA423396CFEB8, 0x1CAD21F72C81017C, 0xDB979083E96DD4DE, 0x1F67B3B7A4A44072,
    0x78E5C0CC4EE679CB, 0x2172FFCC7DD05A82, 0x8E2443F7744608B8, 0x4C263A81E69035E0,
    0xCB00C391BB52283C, 0xA32E531B8B65D088, 0x4EF90DA297486471, 0xD8ACDEA946EF1938,
    0x3F349CE33F76FAA8, 0x1D4F0BC7C7BBDCF9, 0x3159B4CD4BE0518A, 0x647378D9C97E9FC8,
    0xC3EBD33483ACC5EA, 0xEB6313FAFFA081C5, 0x49DAF0B751DD0D17, 0x9E68D429265516D3,
    0xFCA1477D58BE162B, 0xCE31D07AD1B8F88F, 0x280416958F3ACB45, 0x7E404BBBCAFBD7AF};

// Return 8 bytes of the secret at an offset. Lanes read different words, which constant memory
// serves one after another: call it before the loop over pages.
__device__ __forceinline__ u64 secret_at(u32 byte) {
    const u32 shift = byte % 8 * 8;
    const u64 word = SECRET[byte / 8];
    return shift ? word >> shift | SECRET[byte / 8 + 1] << (64 - shift) : word;
}

__device__ __forceinline__ u32 owned_accumulator(u32 lane) { return 2 * (lane % 4) + lane / 4 % 2; }

// Return the keys of two neighbouring words of a stripe.
__device__ __forceinline__ Pair keys_at(u32 byte) {
    Pair keys = {secret_at(byte), secret_at(byte + 8)};
    return keys;
}

// Add 16 bytes to the two accumulators that they belong to.
__device__ __forceinline__ void add_pair(u64 (&sums)[2], Pair data, Pair keys) {
    const u64 a = data.x ^ keys.x, b = data.y ^ keys.y;
    sums[0] += (a & 0xFFFFFFFF) * (a >> 32) + data.y;
    sums[1] += (b & 0xFFFFFFFF) * (b >> 32) + data.x;
}

__device__ __forceinline__ u64 scramble(u64 acc, u64 key) {
    return (acc ^ acc >> 47 ^ key) * P32_1;
}

// Return nonzero if a word of `data` differs from `first`.
__device__ __forceinline__ u32 differing(Pair data, u64 first) {
    const u64 bits = data.x ^ first | data.y ^ first;
    return (u32)bits | (u32)(bits >> 32);
}

// Merge an octet's accumulators into the digest: its lane 0 returns the low half, its lane 4 the
// high half. All lanes of the warp take part.
struct Merge {
    Pair keys;  // of the half that this lane computes
    u64 start;

    __device__ __forceinline__ explicit Merge(u32 lane) {
        const bool high = lane & 4;
        keys = keys_at((high ? HIGH_AT : LOW_AT) + 16 * (lane % 4));
        start = high ? ~(PAGE_SIZE * P64_2) : PAGE_SIZE * P64_1;
    }

    __device__ __forceinline__ u64 operator()(u64 acc, u32 lane) const {
        const u64 other = __shfl_xor_sync(ALL_LANES, acc, 4);
        const u64 a = (lane & 4 ? other : acc) ^ keys.x, b = (lane & 4 ? acc : other) ^ keys.y;
        u64 hash = a * b ^ __umul64hi(a, b);
        hash += __shfl_xor_sync(ALL_LANES, hash, 1);
        hash += __shfl_xor_sync(ALL_LANES, hash, 2);
        hash += start;
        hash = (hash ^ hash >> 37) * 0x165667919E3779F9;
        return hash ^ hash >> 32;
    }
};

#endif
