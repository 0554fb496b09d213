// The blocks of a launch, their warps and threads, and the choice of the thread that runs next.
//
// Everything here is state of one launch at a time in one thread of the host. Threads switch only
// at operations of the shim: in between, a thread runs alone.
#ifndef SHIM_GRID_H
#define SHIM_GRID_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "fiber.h"

namespace shim {

constexpr uint32_t LANES = 32;
constexpr uint32_t MOST_THREADS = 1024;  // per block

struct Index {
    uint32_t x, y, z;
};

enum Order : uint32_t {
    FORWARD,   // a warp as far as it can, then the next one
    BACKWARD,  // the same from the last block, warp and lane on
    RANDOM,    // any thread at every operation
    AHEAD,     // one warp runs whenever it can
    BEHIND,    // one warp runs only if no other can
};

// A launch, and the one line of error that it returns. As in compile.py.
struct Launch {
    uint32_t blocks, threads;
    uint32_t order;
    uint32_t resident;  // blocks that take turns
    uint64_t seed;      // seed of RANDOM; number of the warp for AHEAD and BEHIND
    char* stacks;       // from shim_new_stacks, one for each thread of resident blocks
    char error[512];
};

enum class Kind : uint32_t {
    NOTHING, SYNCWARP, SHFL, SHFL_XOR, SHFL_UP, SHFL_DOWN, ANY, ALL, BALLOT, MATCH_ANY,
    SYNCTHREADS, SYNCTHREADS_OR, SYNCTHREADS_AND, SYNCTHREADS_COUNT,
};
constexpr const char* NAMES[] = {
    "nothing", "__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__shfl_up_sync",
    "__shfl_down_sync", "__any_sync", "__all_sync", "__ballot_sync", "__match_any_sync",
    "__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count",
};

// An operation that several threads must reach. It includes the place in the source: threads that
// meet at different places met by mistake. (The address of the code would not do, since the
// compiler may copy code.)
struct Operation {
    Kind kind;
    uint32_t mask;  // lanes; all bits for an operation of a block
    const char* file;
    uint32_t line;

    bool operator==(const Operation& other) const {
        return kind == other.kind && mask == other.mask && line == other.line &&
               (file == other.file || !strcmp(file, other.file));
    }
};

struct Meeting {
    Operation operation;
    uint32_t arrived;
};

struct Thread;
struct Block;

struct Warp {
    Block* block;
    Thread* threads;
    uint32_t number, lanes;       // lanes: a bit for each that exists
    uint32_t ready, returned;     // lanes; those in neither wait
    uint32_t meetings;            // number of meetings begun
    Meeting meeting[LANES];
};

struct Block {
    Index index;
    uint32_t living, ready_warps;
    uint32_t arrived, total;  // at the barrier: threads, and the sum of their values
    Operation barrier;
    Warp warps[MOST_THREADS / LANES];
    Thread* threads;
    char* shared;  // its shared variables while another block runs
};

struct Thread {
    Context context;
    Warp* warp;
    Index index;
    uint32_t lane;
    uint32_t source;  // lane that a shuffle reads
    uint64_t value;   // brought to a meeting
    uint64_t result;  // received from a meeting
    Operation waits;
};

static Launch* launch;
static Thread* now;  // the running thread
static Context home;
static Block* blocks;  // the resident blocks
static Block* shown;   // the block whose shared variables are in the section
static uint32_t resident, begun;
static uint32_t* block_order;
static uint32_t warps_of_block;
static uint64_t random_state;
static uint32_t turns, idle;  // calls of pass(): by `now` in a row; by all without progress

// Shared variables lie in a section of their own, of which the linker knows both ends.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_shim_shared[],
    __stop_shim_shared[];

// Note why the launch fails; the first reason stays.
__attribute__((format(printf, 1, 2))) static void complain(const char* format, ...) {
    if (launch->error[0]) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(launch->error, sizeof launch->error, format, arguments);
    va_end(arguments);
}

// Leave the running thread for good, back to the launching stack.
[[noreturn]] static void leave() {
    swap(now->context, home, true);
    __builtin_unreachable();
}

// End the launch: no thread goes on.
#define SHIM_FAIL(...) (shim::complain(__VA_ARGS__), shim::leave())

static uint32_t random_number() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state * 0x2545F4914F6CDD1Dull >> 32);
}

static uint32_t lowest(uint32_t mask) { return (uint32_t)__builtin_ctz(mask); }
static uint32_t highest(uint32_t mask) { return 31 - (uint32_t)__builtin_clz(mask); }

// The first bit of a mask from `at` on, with wrap-around.
static uint32_t from(uint32_t mask, uint32_t at) {
    const uint32_t after = mask & ~0u << at;
    return lowest(after ? after : mask);
}

// The same downwards.
static uint32_t down_from(uint32_t mask, uint32_t at) {
    const uint32_t before = mask & ~0u >> (31 - at);
    return highest(before ? before : mask);
}

static Thread* of_warp(Block& block, uint32_t warp, uint32_t lane) {
    return block.warps[warp].threads + lane;
}

static Thread* choose_in(Block& block) {
    const uint32_t warps = block.ready_warps;
    const bool here = now && now->warp->block == &block;
    const uint32_t warp = here ? now->warp->number : 0;
    switch (launch->order) {
        case BACKWARD: {
            const uint32_t w = down_from(warps, here ? warp : warps_of_block - 1);
            return of_warp(block, w, highest(block.warps[w].ready));
        }
        case RANDOM: {
            const uint32_t w = from(warps, random_number() % warps_of_block);
            return of_warp(block, w, from(block.warps[w].ready, random_number() % LANES));
        }
        case AHEAD:
        case BEHIND: {
            const uint32_t chosen = 1u << launch->seed % warps_of_block;
            const uint32_t liked = warps & (launch->order == AHEAD ? chosen : ~chosen);
            const uint32_t w = from(liked ? liked : warps, warp);
            return of_warp(block, w, lowest(block.warps[w].ready));
        }
        default: {
            const uint32_t w = from(warps, warp);
            return of_warp(block, w, lowest(block.warps[w].ready));
        }
    }
}

// The first thread that can run after `now`, in the order of their numbers: fair to all.
static Thread* choose_fairly() {
    Block& block = *now->warp->block;
    const uint32_t after = now->lane == 31 ? 0 : now->warp->ready & ~0u << (now->lane + 1);
    if (after) return now->warp->threads + lowest(after);
    const uint32_t own = now->warp->number;
    const uint32_t later = own == 31 ? 0 : block.ready_warps & ~0u << (own + 1);
    const uint32_t first = (uint32_t)(&block - blocks);
    for (uint32_t i = later ? 0 : 1; i <= resident; i++) {
        Block& next = blocks[(first + i) % resident];
        const uint32_t warps = i ? next.ready_warps : later;
        if (warps) return of_warp(next, lowest(warps), lowest(next.warps[lowest(warps)].ready));
    }
    return nullptr;
}

// The thread that runs next in the order of the launch; null if none can.
static Thread* choose() {
    const uint32_t first = launch->order == RANDOM ? random_number() % resident
                           : now                   ? (uint32_t)(now->warp->block - blocks)
                                                   : 0;
    for (uint32_t i = 0; i < resident; i++) {
        Block& block = blocks[(first + i) % resident];
        if (block.ready_warps) return choose_in(block);
    }
    return nullptr;
}

static void set_ready(Warp& warp, uint32_t lanes) {
    warp.ready |= lanes;
    warp.block->ready_warps |= 1u << warp.number;
}

static inline void set_waiting(Thread& thread) {
    Warp& warp = *thread.warp;
    warp.ready &= ~(1u << thread.lane);
    if (!warp.ready) warp.block->ready_warps &= ~(1u << warp.number);
}

// Byte by byte and uninstrumented: the section has gaps that the address sanitiser guards.
__attribute__((no_sanitize("address"), noinline)) static void copy_shared(char* to,
                                                                          const char* from) {
    for (char* end = to + (__stop_shim_shared - __start_shim_shared); to != end;)
        *(volatile char*)to++ = *from++;
}

// Put a block's shared variables into the section.
static void show(Block& block) {
    if (shown == &block || !__start_shim_shared) return;
    if (shown) copy_shared(shown->shared, __start_shim_shared);
    copy_shared(__start_shim_shared, block.shared);
    shown = &block;
}

static void run(Thread* next) {
    Thread* const before = now;
    if (next == before) return;
    if (next->warp != before->warp) show(*next->warp->block);
    now = next;
    turns = 0;
    swap(before->context, next->context);
}

}  // namespace shim

#endif
