// What the entries of every tensor of a list look like, in one pass over memory and one launch to finish.
//
//     norm = sqrt(sum a^2),   max |a|,   how many are NaN, Inf, zero, subnormal
//
// Entries are counted by their bits, for -ftz takes subnormal numbers for 0. NaN and Inf are rare: a thread whose
// largest magnitude is neither has seen none, and one that has goes through its entries again, out of the cache.
//
// Bytes: 4 an element in float32, as for the norm alone.
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

// table: see lists.cuh; its one stream is read. partial (chunks, TERMS) out. counts (chunks, COUNTS) out: how many, and
// the bits of the largest magnitude. Block: a chunk.
extern "C" __global__ void fg_health_chunks(const index_t* table, int streams, int tensors, double* partial,
                                            index_t* counts) {
    const Table lists{table, streams, tensors};
    const Chunk chunk(lists);
    const storage_t* x = chunk.in(lists, 0);
    Total sums[VECTOR];
    int zero = 0, below = 0, nan = 0, beyond = 0;
    bits_t largest = 0;
    each_element(x, chunk.count, [&](int k, real_t value) {
        const bits_t size = magnitude(value);
        sums[k].take(value);
        zero += size == 0;
        below += size < NORMAL;
        largest = largest < size ? size : largest;
    });
    if (largest >= INFINITE) {
        largest = 0;
        each_element(x, chunk.count, [&](int, real_t value) {
            const bits_t size = magnitude(value);
            nan += size > INFINITE;
            beyond += size >= INFINITE;
            largest = size <= INFINITE && largest < size ? size : largest;
        });
    }
#pragma unroll
    for (int k = 1; k < VECTOR; ++k) sums[0].take(sums[k]);
    const Total total = sums[0].of_block();
    const index_t own[COUNTS] = {nan, beyond - nan, zero, below - zero, index_t(largest)};
    index_t* row = counts + index_t(blockIdx.x) * COUNTS;
#pragma unroll
    for (int i = 0; i < COUNTS; ++i) {
        const index_t all = i == LARGEST ? block_fold(own[i], index_t(0), most) : block_fold(own[i], index_t(0), sum);
        if (threadIdx.x == 0) row[i] = all;
    }
    if (threadIdx.x == 0) total.put(partial + index_t(blockIdx.x) * TERMS);
}

// table: see lists.cuh. partial (chunks, TERMS), counts (chunks, COUNTS) in. found (6, tensors) out: norm, max |a|, and
// the counts, which a double holds exactly. Block: a tensor.
extern "C" __global__ void fg_health_finish(const index_t* table, int streams, int tensors, const double* partial,
                                            const index_t* counts, double* found) {
    const Table lists{table, streams, tensors};
    const int tensor = blockIdx.x;
    Total total;
    index_t own[COUNTS] = {};
    for (index_t c = lists.first_chunk(tensor) + threadIdx.x; c < lists.first_chunk(tensor + 1); c += blockDim.x) {
        total.take(partial + c * TERMS);
#pragma unroll
        for (int i = 0; i < COUNTS; ++i) {
            const index_t other = counts[c * COUNTS + i];
            own[i] = i == LARGEST ? most(own[i], other) : own[i] + other;
        }
    }
    total = total.of_block();
#pragma unroll
    for (int i = 0; i < COUNTS; ++i)
        own[i] = i == LARGEST ? block_fold(own[i], index_t(0), most) : block_fold(own[i], index_t(0), sum);
    if (threadIdx.x == 0) {
        const bits_t bits = bits_t(own[LARGEST]);
        real_t largest;
        memcpy(&largest, &bits, sizeof(bits));
        found[tensor] = total.norm();
        // A subnormal float32 would be taken for 0: its bits are its value in units of the smallest one.
        found[tensors + tensor] = sizeof(real_t) == 4 && bits < NORMAL ? double(bits) * 0x1p-149 : double(largest);
#pragma unroll
        for (int i = 0; i < LARGEST; ++i) found[index_t(2 + i) * tensors + tensor] = double(own[i]);
    }
}
