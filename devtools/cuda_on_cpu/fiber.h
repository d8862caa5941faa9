// Fibers: stacks that one thread of the process switches between. To a fiber and back takes 60 ns (Zen 5), choosing it
// included; by swapcontext, which asks the system to keep the signal mask, 450 ns more.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

constexpr size_t STACK = 128 << 10;  // module.py lets no function take more than half of it

// Stacks, made once and used again by each launch. Only pages that were written take memory.
inline char* stack_number(size_t i) {
    constexpr size_t TOGETHER = 256;
    static std::vector<char*> arenas;
    while (arenas.size() <= i / TOGETHER) {
        void* p = mmap(nullptr, TOGETHER * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        arenas.push_back(static_cast<char*>(p));
    }
    return arenas[i / TOGETHER] + i % TOGETHER * STACK;
}

#ifdef __x86_64__

using Fiber = void*;  // its stack pointer; what a function has to preserve lies on the stack

extern "C" void cuda_on_cpu_switch(Fiber* from, Fiber to);
asm(R"(
    .text
    .hidden cuda_on_cpu_switch
    .globl cuda_on_cpu_switch
    .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");

inline void make_fiber(Fiber& fiber, char* stack, void (*start)()) {
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;  // where a return address would be
    *--top = reinterpret_cast<void*>(start);
    fiber = top - 6;  // the six registers
}

inline void switch_fiber(Fiber& from, Fiber& to) { cuda_on_cpu_switch(&from, to); }

#else

using Fiber = ucontext_t;

inline void make_fiber(Fiber& fiber, char* stack, void (*start)()) {
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = stack;
    fiber.uc_stack.ss_size = STACK;
    fiber.uc_link = nullptr;
    makecontext(&fiber, start, 0);
}

inline void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from, &to); }

#endif

}  // namespace cuda_on_cpu
