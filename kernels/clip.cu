// The in-place half of clipping: multiply tensors by their coefficients, or clamp their entries, in one launch.
//
// Bytes: 8 an element in float32, none where the coefficient is 1.
#include "lists.cuh"

// table: see lists.cuh; its one stream is changed. coefficients in: one for each tensor, (tensors,), or one for all.
extern "C" __global__ void fg_scale(const index_t* table, int streams, int tensors, const double* coefficients, int each) {
    const Table lists{table, streams, tensors};
    const Chunk chunk(lists);
    const double coefficient = coefficients[each ? chunk.tensor : 0];
    if (coefficient == 1) return;
    const real_t factor = real_t(coefficient);
    update_elements<1, 1>(lists, chunk, [&](real_t(&x)[1]) { x[0] = x[0] * factor; });
}

// table: see lists.cuh; its one stream is clamped to [low, high]. NaN stays.
extern "C" __global__ void fg_clamp(const index_t* table, int streams, int tensors, real_t low, real_t high) {
    const Table lists{table, streams, tensors};
    update_elements<1, 1>(lists, Chunk(lists), [&](real_t(&x)[1]) { x[0] = minimum(maximum(x[0], low), high); });
}
