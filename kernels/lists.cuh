// Kernels over any lists of tensors in one launch: where a block finds its elements, and how it goes through them.
//
// All tensors are cut into chunks of CHUNK elements, one block a chunk, tensor by tensor. Which elements a thread adds up
// depends on the size of the block alone, neither on the device nor on the alignment of a tensor.
#pragma once
#include "common.cuh"

constexpr int CHUNK = 16384;  // elements: 64 KB of float32; as in table_gpu.py

using Vector = vector<storage_t>;

// A table made by table_gpu.py, int64: addresses (streams, tensors), then of each tensor its size, its number for its
// caller, and the chunks before it (tensors + 1), then of each chunk its tensor.
struct Table {
    const index_t* at;
    int streams, tensors;

    __device__ index_t size(int tensor) const { return at[index_t(streams) * tensors + tensor]; }
    __device__ index_t number(int tensor) const { return at[index_t(streams + 1) * tensors + tensor]; }
    __device__ index_t first_chunk(int tensor) const { return at[index_t(streams + 2) * tensors + tensor]; }
    __device__ index_t chunks() const { return first_chunk(tensors); }
    __device__ int tensor_of(index_t chunk) const { return int(at[index_t(streams + 3) * tensors + 1 + chunk]); }
};

// The chunk of a block.
struct Chunk {
    int tensor, count;
    index_t first;

    __device__ explicit Chunk(const Table& table) {
        const index_t chunk = blockIdx.x;
        tensor = table.tensor_of(chunk);
        first = (chunk - table.first_chunk(tensor)) * CHUNK;
        const index_t left = table.size(tensor) - first;
        count = int(left < CHUNK ? left : CHUNK);
    }

    __device__ Chunk(int tensor, index_t first, int count) : tensor(tensor), count(count), first(first) {}

    // Its elements in one of the streams.
    __device__ storage_t* in(const Table& table, int stream) const {
        storage_t* base = reinterpret_cast<storage_t*>(table.at[index_t(stream) * table.tensors + tensor]);
        __builtin_assume(__isGlobal(base));  // an address out of memory is generic to the compiler: LD, not LDG
        return base + first;
    }
};

// Call f(k, x[i]) for every element, k its place in a vector. Thread t takes the vectors t, t + blockDim.x, ..., also
// where x does not begin on 16 bytes and they are read number by number.
template <class F> __device__ void each_element(const storage_t* x, int count, F f) {
    constexpr int AHEAD = 4;  // vectors a thread has on the way
    const int whole = aligned16(x) ? count / VECTOR : 0, step = blockDim.x;
    int v = threadIdx.x;
    for (; v < whole; v += AHEAD * step) {
        Vector values[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; ++u)
            if (v + u * step < whole) values[u] = load<Vector>(x + (v + u * step) * VECTOR);
#pragma unroll
        for (int u = 0; u < AHEAD; ++u)
            if (v + u * step < whole) {
#pragma unroll
                for (int k = 0; k < VECTOR; ++k) f(k, real_t(values[u].at[k]));
            }
    }
    // Nothing but the last, partial vector is left, or all of them.
    for (v = whole + (threadIdx.x + step - whole % step) % step; v * VECTOR < count; v += step)
        for (int k = 0; k < VECTOR; ++k)
            if (v * VECTOR + k < count) f(k, real_t(x[v * VECTOR + k]));
}

// Call f(x) with x[s] the element of each of N streams, and store those whose bit in WRITTEN is set.
template <int N, unsigned WRITTEN, class F> __device__ void update_elements(const Table& table, const Chunk& chunk, F f) {
    constexpr int AHEAD = N > 3 ? 2 : 4;
    storage_t* streams[N];
    bool aligned = true;
#pragma unroll
    for (int s = 0; s < N; ++s) {
        streams[s] = chunk.in(table, s);
        aligned = aligned && aligned16(streams[s]);
    }
    const int whole = aligned ? chunk.count / VECTOR : 0, step = blockDim.x;
    for (int v = threadIdx.x; v < whole; v += AHEAD * step) {
        Vector values[AHEAD][N];
#pragma unroll
        for (int u = 0; u < AHEAD; ++u)
            if (v + u * step < whole) {
#pragma unroll
                for (int s = 0; s < N; ++s) values[u][s] = load<Vector>(streams[s] + (v + u * step) * VECTOR);
            }
#pragma unroll
        for (int u = 0; u < AHEAD; ++u)
            if (v + u * step < whole) {
#pragma unroll
                for (int k = 0; k < VECTOR; ++k) {
                    real_t x[N];
#pragma unroll
                    for (int s = 0; s < N; ++s) x[s] = real_t(values[u][s].at[k]);
                    f(x);
#pragma unroll
                    for (int s = 0; s < N; ++s) values[u][s].at[k] = storage_t(x[s]);
                }
#pragma unroll
                for (int s = 0; s < N; ++s)
                    if (WRITTEN >> s & 1) store(streams[s] + (v + u * step) * VECTOR, values[u][s]);
            }
    }
    for (int i = whole * VECTOR + threadIdx.x; i < chunk.count; i += step) {
        real_t x[N];
#pragma unroll
        for (int s = 0; s < N; ++s) x[s] = real_t(streams[s][i]);
        f(x);
#pragma unroll
        for (int s = 0; s < N; ++s)
            if (WRITTEN >> s & 1) streams[s][i] = storage_t(x[s]);
    }
}

// Fold what the threads of a block hold, neighbours first, into the first warp; `none` is what changes nothing.
template <class T, class F> __device__ T block_fold(T value, T none, F fold) {
    __shared__ T parts[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const auto fold_warp = [&](T mine) {
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) mine = fold(mine, __shfl_xor_sync(ALL_LANES, mine, step));
        return mine;
    };
    value = fold_warp(value);
    __syncthreads();  // the parts of an earlier call have been read
    if (lane == 0) parts[warp] = value;
    __syncthreads();
    return warp == 0 ? fold_warp(lane < warps ? parts[lane] : none) : none;
}
