// Mean squared error with its gradient in one pass: loss = mean of (p - t)^2, dp = 2 (p - t) / n.
//
// Bytes: 12 an element in float32. The squares are summed in double: first over a block, whose sum is one entry of
// `partial`; fg_loss_mean in loss.cu adds these up. Both in a fixed order.
#include "common.cuh"

constexpr int UNROLL = 4;  // vectors of each array that a thread has on the way at a time

using Vector = vector<storage_t>;

// pred, target (n,) in; dpred (n,) out, may be either; partial (blocks,) out; scale: 2 / n. A block takes blockDim.x
// UNROLL VECTOR elements.
extern "C" __global__ void fg_mse(const storage_t* pred, const storage_t* target, storage_t* dpred, double* partial,
                                  index_t n, real_t scale) {
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
            for (int k = 0; k < VECTOR; ++k) {
                const real_t error = real_t(p[u].at[k]) - real_t(t[u].at[k]);
                p[u].at[k] = storage_t(error * scale);
                total = fma_(double(error), double(error), total);
            }
            store(dpred + at + u * step, p[u]);
        }
    } else {
        const index_t end = first + span < n ? first + span : n;
        for (index_t i = first + threadIdx.x; i < end; i += blockDim.x) {
            const real_t error = real_t(pred[i]) - real_t(target[i]);
            dpred[i] = storage_t(error * scale);
            total = fma_(double(error), double(error), total);
        }
    }
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}
