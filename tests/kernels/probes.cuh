// Kernels that test the shim itself: what it must refuse, and what it must get right.
typedef unsigned int u32;
typedef unsigned long long u64;
struct __align__(16) Pair {
    u64 x, y;
};
constexpr u32 ALL = 0xFFFFFFFFu;

// ---- Refused. `out` is (64,) u64 of zeros, as is every `out` here.

extern "C" __global__ void __launch_bounds__(64) two_barriers(u64* out) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out[0] = 1;
}

extern "C" __global__ void __launch_bounds__(64) leaves_before_the_barrier(u64* out) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    out[0] = 1;
}

extern "C" __global__ void __launch_bounds__(64) leaves_before_the_shuffle(u64* out) {
    if (threadIdx.x == 3) return;
    out[threadIdx.x] = __shfl_sync(ALL, threadIdx.x, 0);
}

extern "C" __global__ void __launch_bounds__(64) outside_its_mask(u64* out) {
    out[threadIdx.x] = __shfl_sync(0xFF, threadIdx.x, 0);
}

extern "C" __global__ void __launch_bounds__(64) reads_beyond_its_mask(u64* out) {
    if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xFF, threadIdx.x, 9);
}

extern "C" __global__ void __launch_bounds__(64) two_operations(u64* out) {
    out[0] = threadIdx.x % 32 < 16 ? (u32)__any_sync(ALL, 1) : __ballot_sync(ALL, 1);
}

extern "C" __global__ void __launch_bounds__(64) two_masks(u64* out) {
    out[0] = __ballot_sync(threadIdx.x % 32 < 16 ? ALL : 0xFFFF0000, 1);
}

extern "C" __global__ void __launch_bounds__(64) warp_against_block(u64* out) {
    if (threadIdx.x == 0)
        __syncwarp();
    else
        __syncthreads();
    out[0] = 1;
}

extern "C" __global__ void __launch_bounds__(64) spins(u64* out) {
    while (!atomicAdd(out, 0)) {
    }
}

extern "C" __global__ void __launch_bounds__(64) not_aligned(u64* out) {
    out[0] = reinterpret_cast<const Pair*>(out + 1)->x;
}

// ---- Right.

// Each thread in turn logs its number.
extern "C" __global__ void __launch_bounds__(64) trace(u64* out) {
    for (u32 i = 0; i < 2; i++) {
        out[1 + atomicAdd(out, 1) % 63] = blockIdx.x * blockDim.x + threadIdx.x;
        __syncwarp();
    }
}

// Thread `waits` waits for the other one of two.
extern "C" __global__ void __launch_bounds__(64) hands_over(u64* out, u32 waits) {
    if (threadIdx.x == waits) {
        while (atomicAdd(out, 0) == 0) {
        }
        atomicExch(out, 2);
    } else if (threadIdx.x == 63 - waits) {
        atomicExch(out, 1);
    }
}

// Octets that meet apart from each other, in an order of their own.
extern "C" __global__ void __launch_bounds__(64) octets(u64* out) {
    const u32 lane = threadIdx.x % 32, own = 0xFFu << (lane & ~7u);
    u64 sum = 0;
    for (u32 i = 0; i <= lane / 8; i++) sum += __shfl_xor_sync(own, (u64)lane << 32, 1);
    sum += __shfl_sync(own, lane, 3, 8);                 // the fourth of the octet
    sum += 100 * __shfl_up_sync(own, lane, 1, 8);        // the first keeps its own
    sum += 10000 * __shfl_down_sync(own, lane, 2, 8);    // so do the last two
    sum += 1000000 * __popc(__match_any_sync(own, lane % 3));
    sum += 10000000 * (u64)(__any_sync(own, lane == 9) + 2 * __all_sync(own, lane > 15));
    __syncwarp();
    out[threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(64) barriers(u64* out) {
    const u32 me = threadIdx.x;
    const u64 any = __syncthreads_or(me == 63), none = __syncthreads_or(0);
    const u64 all = __syncthreads_and(1), most = __syncthreads_and(me != 7);
    out[me] = any + 10 * none + 100 * all + 1000 * most + 10000 * __syncthreads_count(me < 40);
}

// A block finds poison where no thread of it wrote, whatever other blocks do meanwhile.
extern "C" __global__ void __launch_bounds__(64) shares(u64* out) {
    __shared__ u64 mark[64];
    if (mark[threadIdx.x] != 0xCDCDCDCDCDCDCDCD) atomicAdd(out, 1);
    mark[threadIdx.x] = blockIdx.x;
    atomicAdd(out + 1, 1);
    __syncthreads();
    if (mark[63 - threadIdx.x] != blockIdx.x) atomicAdd(out, 1);
}
