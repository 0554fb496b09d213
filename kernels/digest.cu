// Digest pages with XXH3-128, bit-exact, and classify them as zero or same-filled, in one pass.
//
// Grid      any; blocks of THREADS threads; compiled for one LAYOUT:
//             0 quad   a warp takes 4 pages at a time
//             1 octet  8 lanes take a page, so a warp 4 too, with 40 % fewer instructions
//             2 block  a block takes a page; for pages of 64 KiB and more
//           and for RESIDENT blocks per multiprocessor: 3 leave 80 registers to a thread, which is
//           enough in layout block alone. LOADING: see load.cuh
// Aligned   pages to 16; compiled for one PAGE_SIZE, a power of two from 512 B to 2 MiB
// In flight 8 loads of 16 bytes a thread: 4 KiB per warp, 32 KiB per resident block (half of that
//           with 512-byte pages)
// Oracle    the xxhash wheel, and NumPy for the classes
//
// digest(pages, count, digests, classes, heads, low_mask, high_mask)
//   pages    count pages of PAGE_SIZE bytes
//   digests  (count, 2) u64, written: low and high half, masked (tests shrink the digest)
//   classes  (count,) u8, written: CONTENT, ZERO or FILLED
//   heads    (count,) u64, written where FILLED: the word
#include "digest_block.cuh"
#include "digest_octet.cuh"
#include "digest_quad.cuh"

static_assert(PAGE_SIZE >= 512 && PAGE_SIZE <= 2 << 20 && (PAGE_SIZE & (PAGE_SIZE - 1)) == 0,
              "a page is a power of two from 512 B to 2 MiB");
static_assert(LAYOUT >= 0 && LAYOUT <= 2, "there are three layouts");
static_assert(RESIDENT == 2 || RESIDENT == 3, "2 or 3 blocks are resident");

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
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
