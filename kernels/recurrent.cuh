// What the LSTM and GRU kernels share. Dimensions: T time, B batch, I input, H hidden.
//
// The states h (T + 1, B, H): slot t holds the state before step t, or, in reverse, after it.
#pragma once
#include "vecmath.cuh"

// W neighbours, as they are computed with.
template <int W> using Reals = vector_of<real_t, W>;

template <int W> __device__ Reals<W> read(const storage_t* p) {
    const auto stored = load<vector_of<storage_t, W>>(p);
    Reals<W> result;
#pragma unroll
    for (int k = 0; k < W; ++k) result.at[k] = real_t(stored.at[k]);
    return result;
}
template <int W> __device__ Reals<W> read_or_zero(const storage_t* p, index_t at) {
    return p ? read<W>(p + at) : Reals<W>{};
}
template <int W> __device__ void write(storage_t* p, const Reals<W>& values) {
    vector_of<storage_t, W> stored;
#pragma unroll
    for (int k = 0; k < W; ++k) stored.at[k] = storage_t(values.at[k]);
    store(p, stored);
}

// Inside of [-bound, bound]; infinity is no bound, NaN stays NaN.
__device__ inline real_t clamped(real_t x, real_t bound) { return minimum(maximum(x, -bound), bound); }

// One step of W hidden units of one sequence.
template <int W> struct Cell {
    index_t b, unit;      // sequence, first unit
    index_t at;           // in (B, H)
    index_t row;          // t B + b
    index_t before, now;  // in (T + 1, B, H)
    bool any, valid;      // is there such a cell; does the step belong to its sequence

    __device__ Cell(index_t t, index_t batch, index_t hidden, int reverse, const index_t* lengths) {
        const index_t across = hidden / W, index = global_thread();
        any = index < batch * across;
        b = any ? index / across : 0;
        unit = (index - b * across) * W;
        at = b * hidden + unit;
        row = t * batch + b;
        before = (t + (reverse ? 1 : 0)) * batch * hidden + at;
        now = (t + (reverse ? 0 : 1)) * batch * hidden + at;
        valid = any && (!lengths || t < lengths[b]);
    }
};

// At a step past its length a sequence keeps its state and gives 0.
template <int W> __device__ void keep_state(const Cell<W>& cell, storage_t* h, storage_t* y, index_t hidden) {
    write<W>(h + cell.now, read<W>(h + cell.before));
    write<W>(y + cell.row * hidden + cell.unit, Reals<W>{});
}

template <int W>
__device__ Reals<W> sum_of(const storage_t* sums, const storage_t* bias_ih, const storage_t* bias_hh, index_t at) {
    Reals<W> sum = read<W>(sums);
    const Reals<W> one = read_or_zero<W>(bias_ih, at), two = read_or_zero<W>(bias_hh, at);
#pragma unroll
    for (int w = 0; w < W; ++w) sum.at[w] += one.at[w] + two.at[w];
    return sum;
}
