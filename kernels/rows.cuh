// What the layer normalisations share: sums over a row that a block takes, and its normalised elements.
#pragma once
#include "common.cuh"

struct Two { double a, b; };

// The sums over the threads of a block, in every thread; parts is shared memory for a pair from each warp.
__device__ inline Two block_totals(double a, double b, double (&parts)[2][WARP]) {
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    a = warp_sum(a);
    b = warp_sum(b);
    __syncthreads();  // the parts of the call before have been read
    if (threadIdx.x % WARP == 0) {
        parts[0][warp] = a;
        parts[1][warp] = b;
    }
    __syncthreads();
    Two total = {0, 0};
    for (int w = 0; w < warps; ++w) {
        total.a += parts[0][w];
        total.b += parts[1][w];
    }
    return total;
}

// xhat of the elements of a row. x - mean in two steps, mean = high + low: see layer_norm_cpu.py.
struct Normalised {
    real_t high, rstd, low;
    __device__ Normalised(double mean, double r) : high(real_t(mean)), rstd(real_t(r)) {
        low = -(real_t(mean - double(high)) * rstd);
    }
    __device__ real_t of(real_t x) const { return fma_(x - high, rstd, low); }
};
