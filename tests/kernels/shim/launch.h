// Launch a kernel: one exported function for each, found by the kernel's name.
#ifndef SHIM_LAUNCH_H
#define SHIM_LAUNCH_H

#include <utility>

#include "meet.h"

namespace shim {

using Body = void (*)(void* function, void** arguments);
static Body body;
static void* body_function;
static void** body_arguments;

static void thread_begins();

static void start_block(Block& block) {
    const size_t room = (size_t)(&block - blocks);
    block.index = {block_order[begun++], 0, 0};
    block.living = launch->threads;
    block.arrived = block.ready_warps = 0;
    if (__start_shim_shared) memset(block.shared, 0xCD, __stop_shim_shared - __start_shim_shared);
    for (uint32_t w = 0; w < warps_of_block; w++) {
        Warp& warp = block.warps[w];
        const uint32_t rest = launch->threads - LANES * w;
        warp.block = &block;
        warp.threads = block.threads + LANES * w;
        warp.number = w;
        warp.lanes = rest < LANES ? (1u << rest) - 1 : ~0u;
        warp.ready = warp.returned = warp.meetings = 0;
        set_ready(warp, warp.lanes);
    }
    for (uint32_t t = 0; t < launch->threads; t++) {
        Thread& thread = block.threads[t];
        thread.warp = block.warps + t / LANES;
        thread.index = {t, 0, 0};
        thread.lane = t % LANES;
        thread.waits = {};
        prepare(thread.context, stack_of(launch->stacks, launch->threads * room + t), thread_begins);
    }
}

[[noreturn]] static void thread_returns() {
    Warp& warp = *now->warp;
    idle = 0;
    set_waiting(*now);
    warp.returned |= 1u << now->lane;
    // The last thread leaves to run_all, which begins the next block on the same stacks.
    if (--warp.block->living) {
        if (Thread* const next = choose()) run(next);
        complain_stuck();
    }
    leave();
}

static void thread_begins() {
    begin(home);
    body(body_function, body_arguments);
    thread_returns();
}

static void shuffle_blocks() {
    for (uint32_t i = 0; i < launch->blocks; i++)
        block_order[i] = launch->order == BACKWARD ? launch->blocks - 1 - i : i;
    if (launch->order != RANDOM) return;
    for (uint32_t i = launch->blocks; i > 1; i--)
        std::swap(block_order[i - 1], block_order[random_number() % i]);
}

// Run threads until all blocks have ended or one has failed.
static void run_all() {
    for (;;) {
        Thread* const next = choose();
        if (!next) break;
        show(*next->warp->block);
        now = next;
        turns = 0;
        swap(home, next->context);
        Block& left = *now->warp->block;
        if (launch->error[0]) return;
        shown = nullptr;
        if (begun < launch->blocks) start_block(left);
    }
    for (uint32_t b = 0; b < resident; b++)
        if (blocks[b].living) return complain_stuck();
}

static void launch_grid(Launch* asked) {
    launch = asked;
    launch->error[0] = 0;
    home.stack = nullptr;
    warps_of_block = (launch->threads + LANES - 1) / LANES;
    random_state = (launch->seed + 1) * 0x9E3779B97F4A7C15ull;
    begun = turns = idle = 0;
    resident = launch->resident < launch->blocks ? launch->resident : launch->blocks;
    blocks = (Block*)calloc(resident, sizeof(Block));
    block_order = (uint32_t*)malloc(sizeof(uint32_t) * launch->blocks);
    shuffle_blocks();
    now = nullptr;
    shown = nullptr;
    for (uint32_t b = 0; b < resident; b++) {
        blocks[b].threads = (Thread*)calloc(launch->threads, sizeof(Thread));
        blocks[b].shared = (char*)malloc((size_t)(__stop_shim_shared - __start_shim_shared) + 1);
        start_block(blocks[b]);
    }
    run_all();
    for (uint32_t b = 0; b < resident; b++) {
        free(blocks[b].threads);
        free(blocks[b].shared);
    }
    free(block_order);
    free(blocks);
}

template <class... Types, size_t... At>
void call(void (*kernel)(Types...), void** arguments, std::index_sequence<At...>) {
    (void)arguments;
    kernel(*static_cast<Types*>(arguments[At])...);
}

// Run a grid of a kernel of any type; `arguments` points to one value for each of its parameters.
template <class... Types>
void run_kernel(void (*kernel)(Types...), Launch* asked, void** arguments) {
    body = [](void* function, void** values) {
        call(reinterpret_cast<void (*)(Types...)>(function), values,
             std::index_sequence_for<Types...>());
    };
    body_function = reinterpret_cast<void*>(kernel);
    body_arguments = arguments;
    launch_grid(asked);
}

}  // namespace shim

extern "C" __attribute__((visibility("default"), used)) char* shim_new_stacks(size_t count) {
    return shim::new_stacks(count);
}

#define SHIM_EXPORT(kernel)                                                                \
    extern "C" __attribute__((visibility("default"))) void launch_##kernel(                \
        shim::Launch* asked, void** arguments) {                                           \
        shim::run_kernel(kernel, asked, arguments);                                        \
    }

#endif
