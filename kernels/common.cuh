// What every kernel shares: the two types, indices, vectors of 16 bytes, sums over a block.
//
// storage_t is the type of the arrays, real_t that of the arithmetic. Both come from the launcher (kernels/cuda.py) as
// FG_STORAGE and FG_REAL, with FG_F32 or FG_F64 defined.
#pragma once

using storage_t = FG_STORAGE;
using real_t = FG_REAL;
using index_t = long long;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Neighbours in an array, moved by one instruction; a vector is 16 bytes of them.
template <class T, int N> struct alignas(N * sizeof(T)) vector_of { T at[N]; };
constexpr int VECTOR = 16 / sizeof(storage_t);
template <class T> using vector = vector_of<T, 16 / sizeof(T)>;

// Read one, and write one to global memory, at an address that suits it. By way of uint4, and of an instruction for the
// store: the compiler was seen to take a struct apart and store it number by number.
template <class V> __device__ V load(const void* from) {
    if constexpr (sizeof(V) == 16) {
        const uint4 raw = *static_cast<const uint4*>(from);
        V value;
        memcpy(&value, &raw, sizeof(V));
        return value;
    } else {
        return *static_cast<const V*>(from);
    }
}
template <class V> __device__ void store(void* to, const V& value) {
    if constexpr (sizeof(V) == 16) {
        uint4 raw;
        memcpy(&raw, &value, sizeof(V));
        __stcg(static_cast<uint4*>(to), raw);
    } else {
        *static_cast<V*>(to) = value;
    }
}

__device__ inline bool aligned16(const void* p) { return (reinterpret_cast<unsigned long long>(p) & 15) == 0; }
template <class... P> __device__ bool aligned16(const void* p, const P*... others) {
    return aligned16(p) && aligned16(others...);
}

__device__ inline index_t global_thread() { return index_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline index_t global_threads() { return index_t(gridDim.x) * blockDim.x; }

// Round to nearest once, the same on every processor.
__device__ inline float fma_(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fma_(double a, double b, double c) { return fma(a, b, c); }
__device__ inline float sqrt_(float x) { return sqrtf(x); }
__device__ inline double sqrt_(double x) { return sqrt(x); }
__device__ inline float abs_(float x) { return fabsf(x); }
__device__ inline double abs_(double x) { return fabs(x); }
__device__ inline float copysign_(float magnitude, float sign) { return copysignf(magnitude, sign); }
__device__ inline double copysign_(double magnitude, double sign) { return copysign(magnitude, sign); }
__device__ inline real_t infinity() { return real_t(__uint_as_float(0x7f800000u)); }
__device__ inline real_t not_a_number() { return real_t(__uint_as_float(0x7fc00000u)); }
__device__ inline bool is_nan(float x) { return x != x; }
__device__ inline bool is_nan(double x) { return x != x; }

// b where a < b, else a (and the other way round): NaN in a stays, one in b does not enter.
__device__ inline real_t maximum(real_t a, real_t b) { return a < b ? b : a; }
__device__ inline real_t minimum(real_t a, real_t b) { return a > b ? b : a; }

// The sum over the lanes of a warp, in every lane: neighbours first, a fixed order.
template <class T> __device__ T warp_sum(T value) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

// The sum over the threads of a block (a multiple of a warp, at most 1024), in every thread of the first warp.
// Ends with a barrier's worth of safety for the next call only if the caller puts a __syncthreads() between two.
template <class T> __device__ T block_sum(T value) {
    __shared__ T parts[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    value = warp_sum(value);
    if (lane == 0) parts[warp] = value;
    __syncthreads();
    return warp == 0 ? warp_sum(lane < warps ? parts[lane] : T(0)) : T(0);
}
