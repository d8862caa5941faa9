// What the code of a kernel asks of the engine. device.h builds CUDA's names on it, engine.cpp and checker.h do it.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

namespace cuda_on_cpu {

// Where in the kernel's source a call stands: a default argument, so that the place is the caller's.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

enum class Collective { BARRIER, COUNT, AND, OR, SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, BALLOT, SYNCWARP };
enum class Order { RELAXED, RELEASE, ACQUIRE_RELEASE };
enum class Access { STORE, EXCHANGE };

// One launch. Python fills it in (module.py, _Launch): the two must agree.
struct Launch {
    unsigned grid[3], block[3];
    size_t shared;       // bytes of dynamic shared memory
    void** arguments;    // address of each argument's value
    const char* kinds;   // kind of each: p pointer, f floating point, i integer, s struct
    const size_t* sizes; // bytes of each
    int policy;          // order of threads and blocks: 0 ascending, 1 descending, from 2 on random with that seed
    int cooperative;     // all blocks at once, rather than one after the other
    int flush;           // subnormal numbers are zeros
};

// Parameters of a kernel.
struct Signature {
    const char* kinds;
    const size_t* sizes;
};

uint3 thread_index();
uint3 block_index();
dim3 block_shape();
dim3 grid_shape();
void* dynamic_shared();
bool is_shared(const void* address);

int barrier(Collective, int value, Site);
uint64_t warp(Collective, unsigned mask, uint64_t value, int argument, int width, Site);
void fence();
void before_atomic(const void* address, unsigned size, Access, Order, Site);  // called before the access itself
void progress();                                                              // memory that others wait for has changed
void idle(Site);                                                              // let the other threads run first
unsigned poll(const unsigned* address, Site);                                 // load with acquire, and idle
void sleep(Site);                                                             // idle, unless the thread just has
void fail_at(const char* what, Site);                                         // ends the launch; doesn't return

// Runs `entry(argument)` once for each thread of the launch; returns what went wrong, or "".
const char* run(const Launch&, const Signature&, void (*entry)(void*), void* argument);

}  // namespace cuda_on_cpu
