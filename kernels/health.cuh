// What the entries of a tensor look like beside its norm: how a chunk leaves it, and how chunks become a tensor's.
//
// Entries are counted by their bits, for -ftz takes subnormal numbers for 0.
#pragma once
#include "norms.cuh"

#ifdef FG_F32
using bits_t = unsigned;
constexpr bits_t MAGNITUDE = 0x7fffffffu, INFINITE = 0x7f800000u, NORMAL = 0x00800000u;
#else
using bits_t = unsigned long long;
constexpr bits_t MAGNITUDE = 0x7fffffffffffffffull, INFINITE = 0x7ff0000000000000ull, NORMAL = 0x0010000000000000ull;
#endif

__device__ inline bits_t magnitude(real_t x) {
    bits_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits & MAGNITUDE;
}

enum { NAN_COUNT, INF_COUNT, ZERO_COUNT, SUBNORMAL_COUNT, LARGEST, COUNTS };  // rows of `counts`

__device__ inline index_t sum(index_t a, index_t b) { return a + b; }
__device__ inline index_t most(index_t a, index_t b) { return a < b ? b : a; }

// Fold the numbers of all threads of a block into the first warp's.
__device__ inline void fold_counts(index_t (&own)[COUNTS]) {
#pragma unroll
    for (int i = 0; i < COUNTS; ++i)
        own[i] = i == LARGEST ? block_fold(own[i], index_t(0), most) : block_fold(own[i], index_t(0), sum);
}

// Write what is found in a tensor, all but its norm. counts (chunks, COUNTS) in. found (6, tensors) out: norm, max |a|,
// and the counts, which a double holds exactly. For all threads of a block.
__device__ inline void finish_counts(const Table& table, int tensor, const index_t* counts, double* found) {
    index_t own[COUNTS] = {};
    for (index_t c = table.first_chunk(tensor) + threadIdx.x; c < table.first_chunk(tensor + 1); c += blockDim.x) {
#pragma unroll
        for (int i = 0; i < COUNTS; ++i) {
            const index_t other = counts[c * COUNTS + i];
            own[i] = i == LARGEST ? most(own[i], other) : own[i] + other;
        }
    }
    fold_counts(own);
    if (threadIdx.x == 0) {
        const bits_t bits = bits_t(own[LARGEST]);
        real_t largest;
        memcpy(&largest, &bits, sizeof(bits));
        // A subnormal float32 would be taken for 0: its bits are its value in units of the smallest one.
        found[table.tensors + tensor] = sizeof(real_t) == 4 && bits < NORMAL ? double(bits) * 0x1p-149 : double(largest);
#pragma unroll
        for (int i = 0; i < LARGEST; ++i) found[index_t(2 + i) * table.tensors + tensor] = double(own[i]);
    }
}
