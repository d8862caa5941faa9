// The activation of this variant, and its backward pass over the rows of a matrix with their sum.
#pragma once
#include "activations.cuh"
#include "columns.cuh"

constexpr int ROWS_AHEAD = 2;  // rows a thread has on the way at a time

__device__ inline real_t f(real_t x, real_t p0, real_t p1) { return kind::FG_KIND(x, p0, p1); }
__device__ inline real_t derivative(real_t x, real_t p0, real_t p1) {
    return kind::FG_JOIN(FG_KIND, _derivative)(x, p0, p1);
}

// slope(dy, x, entry) into dx, for a tile of W columns for each thread and ROWS_EACH rows for each row of threads, and its
// sums over the rows. `sums` is dynamic shared memory, see write_partial_sums.
template <int W, class F>
__device__ void backward_tile(const storage_t* dy, const storage_t* x, storage_t* dx, real_t* partial, index_t rows,
                              index_t columns, real_t* sums, F slope) {
    using Part = vector_of<storage_t, W>;
    const Place<W> place(columns);
    const index_t column = place.column, first = place.first_row;
    real_t own[W] = {};
    if (column < columns) {
        for (int step = 0; step < ROWS_EACH; step += ROWS_AHEAD) {
            Part gradient[ROWS_AHEAD], input[ROWS_AHEAD];
#pragma unroll
            for (int u = 0; u < ROWS_AHEAD; ++u) {
                const index_t row = first + index_t(step + u) * blockDim.y, at = row * columns + column;
                if (row < rows) {
                    gradient[u] = load<Part>(dy + at);
                    input[u] = load<Part>(x + at);
                }
            }
#pragma unroll
            for (int u = 0; u < ROWS_AHEAD; ++u) {
                const index_t row = first + index_t(step + u) * blockDim.y, at = row * columns + column;
                if (row >= rows) break;
#pragma unroll
                for (int k = 0; k < W; ++k) {
                    const real_t value = slope(real_t(gradient[u].at[k]), real_t(input[u].at[k]), at + k);
                    gradient[u].at[k] = storage_t(value);
                    own[k] += value;
                }
                store(dx + at, gradient[u]);
            }
        }
    }
    write_partial_sums<W>(own, sums, partial + place.row_block * columns, column, columns);
}
