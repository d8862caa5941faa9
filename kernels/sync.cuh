// How threads of different blocks wait for each other: a 32-bit number in global memory that is stored with release and
// loaded with acquire, in the scope of the whole device. What a thread wrote before a release, and what it had seen, a
// thread sees after the acquire that read the number; __syncthreads() carries that on to its block. (CUDA's memory
// model: PTX ISA, "Memory Consistency Model".)
//
// Waiting for another block takes a cooperative launch: in any other, it may be one that has not been started.
#pragma once

#ifdef FASTGRAD_ON_CPU
// Functions of these names come with the engine, whose checker knows what they order.
#else

__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
    unsigned value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
}

__device__ __forceinline__ void store_release(unsigned* p, unsigned value) {
    asm volatile("st.release.gpu.u32 [%0], %1;" : : "l"(p), "r"(value) : "memory");
}

// These two return the number as it was.
__device__ __forceinline__ unsigned atomic_add_release(unsigned* p, unsigned value) {
    unsigned old;
    asm volatile("atom.release.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
    return old;
}

__device__ __forceinline__ unsigned atomic_add_acquire_release(unsigned* p, unsigned value) {
    unsigned old;
    asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
    return old;
}

#endif

// Wait until `arrivals` blocks have come here since `counter` was 0: (k + 1) * blocks at the k-th of its barriers.
__device__ __forceinline__ void grid_barrier(unsigned* counter, unsigned arrivals) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        atomic_add_release(counter, 1u);
        while (load_acquire(counter) < arrivals) __nanosleep(32);
    }
    __syncthreads();
}
