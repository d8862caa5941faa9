// Clip each unit of a list of tensors by its own norm, in one launch: a unit is a row along axis 0, the whole tensor
// where that has fewer than two axes. One block a unit, which reads it for the norm and again, out of the L2 cache for
// all but the longest, where it is scaled.
//
// Bytes: fg_clip_units 4 an element in float32, 8 more where it is clipped; 4 more with FG_ADAPTIVE.
#include "norms.cuh"

// Call f(first, count) for every chunk of a unit, in order.
template <class F> __device__ void each_chunk(index_t length, F f) {
    for (index_t first = 0; first < length; first += CHUNK) {
        const index_t left = length - first;
        f(first, int(left < CHUNK ? left : CHUNK));
    }
}

// The norm of a unit that begins at x, in the first warp.
__device__ inline double norm_of(const storage_t* x, index_t length) {
    Total sums[VECTOR];
    each_chunk(length, [&](index_t first, int count) {
        each_element(x + first, count, [&](int k, real_t value) { sums[k].take(value); });
    });
#pragma unroll
    for (int apart = VECTOR / 2; apart > 0; apart /= 2) {
#pragma unroll
        for (int k = 0; k < apart; ++k) sums[k].take(sums[k + apart]);
    }
    return sums[0].of_block().norm();
}

// table: see lists.cuh, a tensor's number is the units before it; stream 0 is scaled, with FG_ADAPTIVE stream 1 holds
// the parameters. units: of all tensors. norms (units,) out: of stream 0, before. limit: the norm to clip to; with
// FG_ADAPTIVE limit times that of the parameters, or eps where it is larger. Block: a unit.
extern "C" __global__ void fg_clip_units(const index_t* table, int streams, int tensors, index_t units, double* norms, double limit, double eps) {
    __shared__ double coefficient;
    const Table lists{table, streams, tensors};
    const index_t unit = blockIdx.x;
    int low = 0, high = tensors - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (lists.number(middle) <= unit)
            low = middle;
        else
            high = middle - 1;
    }
    const index_t before = lists.number(low);
    const index_t count = (low + 1 < tensors ? lists.number(low + 1) : units) - before;
    const index_t length = lists.size(low) / count, start = (unit - before) * length;
    const double norm = norm_of(Chunk(low, start, 0).in(lists, 0), length);
#if FG_ADAPTIVE
    const double size = norm_of(Chunk(low, start, 0).in(lists, 1), length);
    limit *= size < eps ? eps : size;
#endif
    if (threadIdx.x == 0) {
        norms[unit] = norm;
#if FG_ADAPTIVE
        coefficient = norm <= limit ? 1.0 : limit / norm;
#else
        coefficient = clip_coefficient(norm, limit);
#endif
    }
    __syncthreads();
    if (coefficient == 1) return;
    const real_t factor = real_t(coefficient);
    each_chunk(length, [&](index_t first, int count) {
        update_elements<1, 1>(lists, Chunk(low, start + first, count), [&](real_t(&x)[1]) { x[0] = x[0] * factor; });
    });
}
