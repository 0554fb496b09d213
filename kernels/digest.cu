// Digest pages and tell zero and same-filled ones: XXH3-128, bit-exact, in one pass.
//
// digest(pages, count, digests, classes, heads, low_mask, high_mask)
//   pages    count pages of PAGE_SIZE bytes, aligned to 16
//   digests  (count, 2) u64, written: low and high half, masked (tests shrink the digest)
//   classes  (count,) u8, written: CONTENT, ZERO or FILLED
//   heads    (count,) u64, written where FILLED: the word
//
// Compiled for one PAGE_SIZE, a power of two from 512 B to 2 MiB, and one LAYOUT:
//   0 quad   a warp takes 4 pages at a time
//   1 octet  8 lanes take a page, so a warp 4 too, with 40 % fewer instructions
//   2 block  a block takes a page; 64 KiB and more
// A lane loads 16 bytes at a time; 4 KiB of a warp are in flight, 64 KiB of a multiprocessor (of
// 512-byte pages half of it). Any grid; a block is 256 threads.
//
// Oracle: the xxhash wheel, and NumPy for the classes.
#include "digest_block.cuh"
#include "digest_octet.cuh"
#include "digest_quad.cuh"

static_assert(PAGE_SIZE >= 512 && PAGE_SIZE <= 2 << 20 && (PAGE_SIZE & (PAGE_SIZE - 1)) == 0,
              "a page is a power of two from 512 B to 2 MiB");
static_assert(LAYOUT >= 0 && LAYOUT <= 2, "there are three layouts");

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    digest(const u8* __restrict__ pages, u32 count, u64* __restrict__ digests,
           u8* __restrict__ classes, u64* __restrict__ heads, u64 low_mask, u64 high_mask) {
#if LAYOUT == 0
    digest_quads(pages, count, Output{digests, classes, heads, low_mask, high_mask});
#elif LAYOUT == 1
    digest_octets(pages, count, Output{digests, classes, heads, low_mask, high_mask});
#else
    __shared__ Partials partials;
    digest_blocks(pages, count, partials, Output{digests, classes, heads, low_mask, high_mask});
#endif
}
