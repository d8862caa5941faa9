// The last stage of a loss: the mean of terms that other kernels wrote.
#include "common.cuh"

// terms (count,) in; loss () out: their sum over divisor. One block, a multiple of a warp: a thread takes every
// blockDim.x-th term, so the order is fixed. counted (1,) in, or null: stands for divisor.
extern "C" __global__ void fg_loss_mean(const double* terms, storage_t* loss, index_t count, double divisor,
                                        const index_t* counted) {
    double total = 0;
#pragma unroll 4
    for (index_t i = threadIdx.x; i < count; i += blockDim.x) total += terms[i];
    total = block_sum(total);
    if (threadIdx.x == 0) *loss = storage_t(total / (counted ? double(*counted) : divisor));
}
