// The sums over the rows of a matrix; see columns.cuh. The second stage adds up rows of partial sums, in double.
#include "columns.cuh"

constexpr int ROWS_AHEAD = 4;  // rows on the way at a time

template <int W>
__device__ void matrix_tile(const storage_t* matrix, real_t* partial, index_t rows, index_t columns, real_t* sums) {
    using Part = vector_of<storage_t, W>;
    const Place<W> place(columns);
    real_t own[W] = {};
    if (place.column < columns) {
        for (int step = 0; step < ROWS_EACH; step += ROWS_AHEAD) {
            Part value[ROWS_AHEAD];
#pragma unroll
            for (int u = 0; u < ROWS_AHEAD; ++u) {
                const index_t row = place.first_row + index_t(step + u) * blockDim.y;
                if (row < rows) value[u] = load<Part>(matrix + row * columns + place.column);
            }
#pragma unroll
            for (int u = 0; u < ROWS_AHEAD; ++u) {
                if (place.first_row + index_t(step + u) * blockDim.y >= rows) break;
#pragma unroll
                for (int k = 0; k < W; ++k) own[k] += real_t(value[u].at[k]);
            }
        }
    }
    write_partial_sums<W>(own, sums, partial + place.row_block * columns, place.column, columns);
}

// The first stage, of a matrix as it is: matrix (rows, columns) in; partial (row blocks, columns) out. Block (x, y).
// vectors: the columns divide by VECTOR, the matrix begins on 16 bytes, and the grid was made for that.
extern "C" __global__ void fg_matrix_partial_sums(const storage_t* matrix, real_t* partial, index_t rows,
                                                  index_t columns, int vectors) {
    extern __shared__ real_t sums[];
    if (vectors)
        matrix_tile<VECTOR>(matrix, partial, rows, columns, sums);
    else
        matrix_tile<1>(matrix, partial, rows, columns, sums);
}

// The second stage: partial (count, columns) in; out (columns,) out. Block (x, y), y a power of two, at most 1024
// threads: a column for each x, every y-th row for each row of threads, whose sums are then added up in pairs.
extern "C" __global__ void fg_column_sums(const real_t* partial, storage_t* out, index_t count, index_t columns) {
    __shared__ double sums[1024];
    const index_t column = index_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int place = threadIdx.y * blockDim.x + threadIdx.x;
    double total = 0;
    if (column < columns)
#pragma unroll 4
        for (index_t row = threadIdx.y; row < count; row += blockDim.y) total += double(partial[row * columns + column]);
    sums[place] = total;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.y) < half) sums[place] += sums[place + half * int(blockDim.x)];
    }
    if (threadIdx.y == 0 && column < columns) out[column] = storage_t(sums[place]);
}
