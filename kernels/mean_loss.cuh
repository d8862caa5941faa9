// Means of a loss over pairs of numbers, with its gradient in one pass.
//
// Losses are summed in double: first over a block, whose sum is one entry of `partial`; fg_loss_mean in loss.cu adds
// these up. Both in a fixed order.
#pragma once
#include "common.cuh"

constexpr int UNROLL = 4;  // vectors of each array that a thread has on the way at a time

using Vector = vector<storage_t>;

// f(prediction, target, total) adds to total and returns the gradient. pred, target (n,) in; dpred (n,) out, may be
// either; partial (blocks,) out. A block takes blockDim.x UNROLL VECTOR elements.
template <class F>
__device__ void mean_loss(const storage_t* pred, const storage_t* target, storage_t* dpred, double* partial, index_t n, F f) {
    const index_t span = index_t(blockDim.x) * UNROLL * VECTOR, first = blockIdx.x * span;
    double total = 0;
    if (first + span <= n && aligned16(pred, target, dpred)) {
        const index_t at = first + threadIdx.x * VECTOR, step = index_t(blockDim.x) * VECTOR;
        Vector p[UNROLL], t[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            p[u] = load<Vector>(pred + at + u * step);
            t[u] = load<Vector>(target + at + u * step);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) p[u].at[k] = storage_t(f(real_t(p[u].at[k]), real_t(t[u].at[k]), total));
            store(dpred + at + u * step, p[u]);
        }
    } else {
        const index_t end = first + span < n ? first + span : n;
        for (index_t i = first + threadIdx.x; i < end; i += blockDim.x)
            dpred[i] = storage_t(f(real_t(pred[i]), real_t(target[i]), total));
    }
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}
