// The bias of an affine map y = x W^T + b, added to the product.
//
// Bytes: 8 an element of y in float32; the product itself writes 4.
#include "columns.cuh"

constexpr int ROWS_AHEAD = 4;  // rows on the way at a time

template <int W> __device__ void add_to_tile(storage_t* y, const storage_t* bias, index_t rows, index_t columns) {
    using Part = vector_of<storage_t, W>;
    const Place<W> place(columns);
    if (place.column >= columns) return;
    const Part b = load<Part>(bias + place.column);
    for (int step = 0; step < ROWS_EACH; step += ROWS_AHEAD) {
        Part value[ROWS_AHEAD];
#pragma unroll
        for (int u = 0; u < ROWS_AHEAD; ++u) {
            const index_t row = place.first_row + index_t(step + u) * blockDim.y;
            if (row < rows) value[u] = load<Part>(y + row * columns + place.column);
        }
#pragma unroll
        for (int u = 0; u < ROWS_AHEAD; ++u) {
            const index_t row = place.first_row + index_t(step + u) * blockDim.y;
            if (row >= rows) return;
#pragma unroll
            for (int k = 0; k < W; ++k) value[u].at[k] = storage_t(real_t(value[u].at[k]) + real_t(b.at[k]));
            store(y + row * columns + place.column, value[u]);
        }
    }
}

// y (rows, columns) in/out; bias (columns,) in. Block (x, y). vectors: the columns divide by VECTOR, the arrays begin on
// 16 bytes, and the grid was made for that.
extern "C" __global__ void fg_add_bias(storage_t* y, const storage_t* bias, index_t rows, index_t columns,
                                       int vectors) {
    if (vectors)
        add_to_tile<VECTOR>(y, bias, rows, columns);
    else
        add_to_tile<1>(y, bias, rows, columns);
}
