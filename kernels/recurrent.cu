// What comes before and after the steps of a recurrent layer.
#include "columns.cuh"

// x, out (T, B, I); lengths (B,). out is x, with zeros past each length: what lies there, NaN perhaps, must reach no
// gradient.
extern "C" __global__ void fg_zero_padding(const storage_t* x, const index_t* lengths, storage_t* out, index_t steps,
                                           index_t batch, index_t inputs) {
    const index_t n = steps * batch * inputs;
    for (index_t i = global_thread(); i < n; i += global_threads()) {
        const index_t row = i / inputs, t = row / batch;
        out[i] = t < lengths[row - t * batch] ? x[i] : storage_t(0);
    }
}

template <int W>
__device__ void sum_tile(const storage_t* x, real_t* partial, index_t rows, index_t columns, real_t* sums) {
    const Place<W> place(columns);
    real_t own[W] = {};
    if (place.column < columns) {
#pragma unroll 4
        for (int step = 0; step < ROWS_EACH; ++step) {
            const index_t row = place.first_row + index_t(step) * blockDim.y;
            if (row >= rows) break;
            const auto part = load<vector_of<storage_t, W>>(x + row * columns + place.column);
#pragma unroll
            for (int k = 0; k < W; ++k) own[k] += real_t(part.at[k]);
        }
    }
    write_partial_sums<W>(own, sums, partial + place.row_block * columns, place.column, columns);
}

// The first stage of the sums over rows, see columns.cuh: x (rows, columns) in; partial (row blocks, columns) out.
// Block (x, y). vectors: the columns divide by VECTOR, x begins on 16 bytes, and the grid was made for that.
extern "C" __global__ void fg_sum_rows(const storage_t* x, real_t* partial, index_t rows, index_t columns,
                                       int vectors) {
    extern __shared__ real_t sums[];
    if (vectors)
        sum_tile<VECTOR>(x, partial, rows, columns, sums);
    else
        sum_tile<1>(x, partial, rows, columns, sums);
}
