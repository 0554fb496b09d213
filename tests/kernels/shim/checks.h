// What g++ checks at every access (-fsanitize=alignment,null,bounds,shift), without its library: a
// failed check calls one of these, and ends the launch with one line instead of the process.
//
// A load of 16 bytes that is not aligned to 16 is an error on a GPU; on the CPU nothing else shows.
#ifndef SHIM_CHECKS_H
#define SHIM_CHECKS_H

#include "grid.h"

namespace shim {

// Start of every note of the compiler: the place in the source.
struct Note {
    const char* file;
    unsigned line, column;
};

struct Mismatch {
    Note at;
    const void* type;
    unsigned char log_alignment, access;
};

}  // namespace shim

#define SHIM_HANDLER extern "C" __attribute__((visibility("hidden"), used)) void

SHIM_HANDLER __ubsan_handle_type_mismatch_v1(shim::Mismatch* note, uintptr_t address) {
    SHIM_FAIL("block %u: thread %u: address 0x%llx is null or not aligned to %u (%s:%u)",
               shim::now->warp->block->index.x, shim::now->index.x, (unsigned long long)address,
               1u << note->log_alignment, note->at.file, note->at.line);
}

SHIM_HANDLER __ubsan_handle_out_of_bounds(shim::Note* at, uintptr_t index) {
    SHIM_FAIL("block %u: thread %u: index %lld is out of bounds (%s:%u)",
               shim::now->warp->block->index.x, shim::now->index.x, (long long)index, at->file,
               at->line);
}

SHIM_HANDLER __ubsan_handle_shift_out_of_bounds(shim::Note* at, uintptr_t, uintptr_t by) {
    SHIM_FAIL("block %u: thread %u: a shift by %lld (%s:%u)", shim::now->warp->block->index.x,
               shim::now->index.x, (long long)by, at->file, at->line);
}

#endif
