// Where threads meet: barriers of a block, and the operations of the lanes of a warp.
//
// A thread deposits its value and waits until all have arrived; the last one computes the result
// of each. If no thread can run and some still wait, the launch fails with one line that names two
// threads that do not meet.
#ifndef SHIM_MEET_H
#define SHIM_MEET_H

#include "grid.h"

namespace shim {

constexpr uint32_t NOWHERE = 0xFF;  // source of a shuffle: the lane's own value

static const char* describe(const Thread& thread, char (&text)[160]) {
    const Operation& at = thread.waits;
    if (thread.warp->returned >> thread.lane & 1)
        snprintf(text, sizeof text, "has returned");
    else if (at.kind >= Kind::SYNCTHREADS || at.kind == Kind::NOTHING)
        snprintf(text, sizeof text, "waits at %s (%s:%u)", NAMES[(int)at.kind], at.file, at.line);
    else
        snprintf(text, sizeof text, "waits at %s of lanes 0x%08x (%s:%u)", NAMES[(int)at.kind],
                 at.mask, at.file, at.line);
    return text;
}

// Report why no thread can run: name a thread that waits, and one that it waits for.
static void complain_stuck() {
    for (uint32_t b = 0; b < resident; b++) {
        Block& block = blocks[b];
        for (uint32_t t = 0; block.living && t < launch->threads; t++) {
            const Thread& thread = block.threads[t];
            if (thread.warp->returned >> thread.lane & 1) continue;
            const bool barrier = thread.waits.kind >= Kind::SYNCTHREADS;
            for (uint32_t u = 0; u < launch->threads; u++) {
                const Thread& other = block.threads[u];
                const bool wanted =
                    barrier || (other.warp == thread.warp && thread.waits.mask >> other.lane & 1);
                const bool returned = other.warp->returned >> other.lane & 1;
                if (!wanted || (!returned && other.waits == thread.waits)) continue;
                char here[160], there[160];
                complain("block %u: thread %u %s, but thread %u %s", block.index.x, t,
                         describe(thread, here), u, describe(other, there));
                return;
            }
            const uint32_t absent = thread.waits.mask & ~thread.warp->lanes;
            if (barrier || !absent) continue;
            complain("block %u: thread %u waits for lanes 0x%08x, which do not exist (%s:%u)",
                     block.index.x, t, absent, thread.waits.file, thread.waits.line);
            return;
        }
    }
    complain("nobody can go on");
}

// Run other threads until `now` is ready again.
static void wait_here(const Operation& operation) {
    now->waits = operation;
    set_waiting(*now);
    const Warp& warp = *now->warp;
    // All orders but RANDOM stay in the warp as long as they can: the fast path of most switches.
    Thread* next = warp.threads;
    if (!warp.ready || launch->order == RANDOM)
        next = choose();
    else
        next += launch->order == BACKWARD ? highest(warp.ready) : lowest(warp.ready);
    if (!next) {
        complain_stuck();
        leave();
    }
    run(next);
}

// Called after other threads became ready: in some orders one of them runs now.
static void give_way() {
    Thread* const next = choose();
    if (next) run(next);
}

// Fill in the result of every lane of a meeting that is complete.
static void settle(const Warp& warp, const Operation& operation) {
    Thread* const threads = warp.threads;
    uint32_t set = 0;
    switch (operation.kind) {
        case Kind::SYNCWARP: return;
        case Kind::SHFL:
        case Kind::SHFL_XOR:
        case Kind::SHFL_UP:
        case Kind::SHFL_DOWN:
            for (uint32_t todo = operation.mask; todo; todo &= todo - 1) {
                Thread& thread = threads[lowest(todo)];
                const uint32_t source = thread.source == NOWHERE ? thread.lane : thread.source;
                if (!(operation.mask >> source & 1))
                    SHIM_FAIL("block %u: thread %u reads lane %u, which is not among lanes 0x%08x (%s:%u)",
                         warp.block->index.x, thread.index.x, source, operation.mask,
                         operation.file, operation.line);
                thread.result = threads[source].value;
            }
            return;
        case Kind::MATCH_ANY:
            for (uint32_t todo = operation.mask; todo; todo &= todo - 1) {
                Thread& thread = threads[lowest(todo)];
                thread.result = 0;
                for (uint32_t others = operation.mask; others; others &= others - 1)
                    if (threads[lowest(others)].value == thread.value)
                        thread.result |= 1u << lowest(others);
            }
            return;
        default: break;
    }
    for (uint32_t todo = operation.mask; todo; todo &= todo - 1)
        if (threads[lowest(todo)].value) set |= 1u << lowest(todo);
    if (operation.kind == Kind::ANY) set = set != 0;
    if (operation.kind == Kind::ALL) set = set == operation.mask;
    for (uint32_t todo = operation.mask; todo; todo &= todo - 1) threads[lowest(todo)].result = set;
}

// Meet the other lanes of the mask; return the result of this one.
static uint64_t meet(const Operation& operation, uint64_t value, uint32_t source = NOWHERE) {
    Thread& me = *now;
    Warp& warp = *me.warp;
    const uint32_t bit = 1u << me.lane;
    if (!(operation.mask & bit))
        SHIM_FAIL("block %u: thread %u is not among lanes 0x%08x of its own %s (%s:%u)",
             warp.block->index.x, me.index.x, operation.mask, NAMES[(int)operation.kind],
             operation.file, operation.line);
    me.value = value;
    me.source = source;
    uint32_t i = 0;
    while (i < warp.meetings && !(warp.meeting[i].operation == operation)) i++;
    if (i == warp.meetings) warp.meeting[warp.meetings++] = {operation, 0};
    const uint32_t arrived = warp.meeting[i].arrived |= bit;
    if (arrived != operation.mask) {
        wait_here(operation);
        return me.result;
    }
    warp.meeting[i] = warp.meeting[--warp.meetings];
    settle(warp, operation);
    idle = 0;
    set_ready(warp, arrived);
    if (launch->order == RANDOM) give_way();
    return me.result;
}

// Meet the whole block; return the sum of all values.
static uint32_t meet_block(const Operation& operation, uint32_t value) {
    Block& block = *now->warp->block;
    if (!block.arrived++) {
        block.barrier = operation;
        block.total = 0;
    } else if (!(block.barrier == operation)) {
        SHIM_FAIL("block %u: thread %u comes to %s (%s:%u), but others wait at %s (%s:%u)",
             block.index.x, now->index.x, NAMES[(int)operation.kind], operation.file,
             operation.line, NAMES[(int)block.barrier.kind], block.barrier.file,
             block.barrier.line);
    }
    block.total += value;
    Thread& me = *now;
    if (block.arrived < launch->threads) {
        wait_here(operation);
        return (uint32_t)me.result;
    }
    const uint32_t total = block.total;
    block.arrived = 0;
    for (uint32_t t = 0; t < launch->threads; t++) block.threads[t].result = total;
    for (uint32_t w = 0; w < warps_of_block; w++) set_ready(block.warps[w], block.warps[w].lanes);
    idle = 0;
    if (launch->order >= RANDOM) give_way();
    return total;
}

// Called around operations on memory that other threads may see: in random order any thread may
// run next. In the other orders a thread keeps running unless it seems to wait for another one.
static void pass(bool waits = false) {
    constexpr uint32_t PATIENCE = 1000, LIMIT = 50000000;
    if (++idle > LIMIT)
        SHIM_FAIL("block %u: thread %u and all others spin: nobody got on in %u operations",
             now->warp->block->index.x, now->index.x, LIMIT);
    Thread* next = nullptr;
    if (launch->order == RANDOM)
        next = choose();
    else if (waits || ++turns > PATIENCE)
        next = choose_fairly();
    if (next) run(next);
}

}  // namespace shim

#endif
