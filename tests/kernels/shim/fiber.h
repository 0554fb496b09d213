// Contexts that are switched by hand: one per thread of a block.
//
// On x86-64 a switch is a dozen instructions; elsewhere (or with SHIM_UCONTEXT) it is swapcontext,
// which is right but slow: a system call per switch sets the signal mask. Every switch is announced
// to the address sanitiser, which would take another stack for an overflow.
#ifndef SHIM_FIBER_H
#define SHIM_FIBER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#if !defined(__x86_64__) && !defined(SHIM_UCONTEXT)
#define SHIM_UCONTEXT
#endif
#ifdef SHIM_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr size_t GUARD = 64 << 10;  // below each stack; a multiple of any usual size of a page

struct Context {
#ifdef SHIM_UCONTEXT
    ucontext_t saved;
#else
    void* top;  // top of the stack, where the registers are saved
#endif
    char* stack;  // null: the launching stack
    size_t size;
#ifdef __SANITIZE_ADDRESS__
    void* fake;  // the sanitiser's fake stack
#endif
};

#ifndef SHIM_UCONTEXT
// Callee-saved registers go to the old stack and come from the new one. The target is jumped to
// through a register: a `ret` would be predicted by the return stack, and always wrongly.
extern "C" __attribute__((visibility("hidden"))) void shim_swap(void** from, void* to);
asm(R"(
    .text
    .hidden shim_swap
    .globl  shim_swap
    .type   shim_swap, @function
shim_swap:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq  %rsp, (%rdi)
    movq  %rsi, %rsp
    popq  %r15
    popq  %r14
    popq  %r13
    popq  %r12
    popq  %rbx
    popq  %rbp
    popq  %rcx
    jmp   *%rcx
    .size shim_swap, . - shim_swap
)");
#endif

// Return memory for `count` stacks, each above an inaccessible guard; null if mmap fails.
inline char* new_stacks(size_t count) {
    const size_t each = STACK + GUARD;
    void* at = mmap(nullptr, count * each, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return nullptr;
    for (size_t i = 0; i < count; i++) mprotect((char*)at + i * each, GUARD, PROT_NONE);
    return (char*)at;
}

inline char* stack_of(char* stacks, size_t number) {
    return stacks + number * (STACK + GUARD) + GUARD;
}

// Prepare a context that begins with `entry`, which never returns.
inline void prepare(Context& context, char* stack, void (*entry)()) {
    context.stack = stack;
    context.size = STACK;
#ifdef __SANITIZE_ADDRESS__
    // Fibers that an error left behind have poisoned their frames.
    __asan_unpoison_memory_region(stack, STACK);
    context.fake = nullptr;
#endif
#ifdef SHIM_UCONTEXT
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = stack;
    context.saved.uc_stack.ss_size = STACK;
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, entry, 0);
#else
    // As after a call of `entry`: 8 bytes beyond a multiple of 16, where a return address (none)
    // would lie. Below it what shim_swap pops: six registers, and the address to jump to.
    void** top = (void**)(stack + STACK) - 3;
    top[0] = nullptr;
    top[-1] = (void*)entry;
    for (int i = 2; i <= 7; i++) top[-i] = nullptr;
    context.top = top - 7;
#endif
}

// Switch to `to`; return on a switch back to `from`. `ends`: there will be none.
inline void swap(Context& from, Context& to, bool ends = false) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake, to.stack, to.size);
#else
    (void)ends;
#endif
#ifdef SHIM_UCONTEXT
    swapcontext(&from.saved, &to.saved);
#else
    shim_swap(&from.top, to.top);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

// To be called first by the `entry` of `prepare`. Notes in `home` where the launching stack lies.
inline void begin(Context& home) {
#ifdef __SANITIZE_ADDRESS__
    const void* stack;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
    if (!home.stack) home.stack = (char*)stack, home.size = size;
#else
    (void)home;
#endif
}

}  // namespace shim

#endif
