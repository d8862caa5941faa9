// What the entries of every tensor of a list look like, in one pass over memory and one launch to finish.
//
//     norm = sqrt(sum a^2),   max |a|,   how many are NaN, Inf, zero, subnormal
//
// NaN and Inf are rare: a thread whose largest magnitude is neither has seen none, and one that has goes through its
// entries again, out of the cache. The sum of squares is the one of norm.cu, bit for bit: an optimizer's step takes its
// norm from here.
//
// Bytes: 4 an element in float32, as for the norm alone.
#include "health.cuh"

// table: see lists.cuh; its stream `stream` is read. partial (chunks, TERMS) out. counts (chunks, COUNTS) out: how many, and
// the bits of the largest magnitude. Block: a chunk.
extern "C" __global__ void fg_health_chunks(const index_t* table, int streams, int tensors, int stream,
                                            double* partial, index_t* counts) {
    const Table lists{table, streams, tensors};
    const Chunk chunk(lists);
    const storage_t* x = chunk.in(lists, stream);
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
    const Total total = Total::of(sums).of_block();
    index_t own[COUNTS] = {nan, beyond - nan, zero, below - zero, index_t(largest)};
    fold_counts(own);
    if (threadIdx.x == 0) {
        index_t* row = counts + index_t(blockIdx.x) * COUNTS;
#pragma unroll
        for (int i = 0; i < COUNTS; ++i) row[i] = own[i];
        total.put(partial + index_t(blockIdx.x) * TERMS);
    }
}

// table: see lists.cuh. partial (chunks, TERMS), counts (chunks, COUNTS) in. found (6, tensors) out: see finish_counts.
// Block: a tensor.
extern "C" __global__ void fg_health_finish(const index_t* table, int streams, int tensors, const double* partial,
                                            const index_t* counts, double* found) {
    const Table lists{table, streams, tensors};
    const int tensor = blockIdx.x;
    Total total;
    for (index_t c = lists.first_chunk(tensor) + threadIdx.x; c < lists.first_chunk(tensor + 1); c += blockDim.x)
        total.take(partial + c * TERMS);
    total = total.of_block();
    finish_counts(lists, tensor, counts, found);
    if (threadIdx.x == 0) found[tensor] = total.norm();
}
