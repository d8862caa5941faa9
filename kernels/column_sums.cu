// Sums over the rows of a matrix, see columns.cuh: the first stage where nothing else is done in the same pass, and the
// second stage, which adds up the rows of partial sums in double.
#include "columns.cuh"

template <int W>
__device__ void sum_tile(const storage_t* x, real_t* partial, index_t rows, index_t columns, real_t* sums) {
    const Place<W> place(columns);
    real_t own[W] = {};
    if (place.column < columns) {
#pragma unroll 4
        for (int step = 0; step < ROWS_EACH; ++step) {
            const index_t row = place.first_row + index_t(step) * blockDim.y;
            if (row >= rows) break;
            const auto part = *reinterpret_cast<const vector_of<storage_t, W>*>(x + row * columns + place.column);
#pragma unroll
            for (int k = 0; k < W; ++k) own[k] += real_t(part.at[k]);
        }
    }
    write_partial_sums<W>(own, sums, partial + place.row_block * columns, place.column, columns);
}

// x (rows, columns) in; partial (row blocks, columns) out. Block (x, y). vectors: the columns divide by VECTOR, the
// arrays begin on 16 bytes, and the grid was made for that.
extern "C" __global__ void fg_partial_column_sums(const storage_t* x, real_t* partial, index_t rows, index_t columns,
                                                  int vectors) {
    extern __shared__ real_t sums[];
    if (vectors)
        sum_tile<VECTOR>(x, partial, rows, columns, sums);
    else
        sum_tile<1>(x, partial, rows, columns, sums);
}

// partial (count, columns) in; out (columns,) out. Block (32, y): a column for each lane, every y-th row for each row
// of threads.
extern "C" __global__ void fg_column_sums(const real_t* partial, storage_t* out, index_t count, index_t columns) {
    __shared__ double sums[32][33];
    const index_t column = index_t(blockIdx.x) * 32 + threadIdx.x;
    double total = 0;
    if (column < columns)
        for (index_t row = threadIdx.y; row < count; row += blockDim.y) total += double(partial[row * columns + column]);
    sums[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y == 0 && column < columns) {
        for (int row = 1; row < int(blockDim.y); ++row) total += sums[row][threadIdx.x];
        out[column] = storage_t(total);
    }
}
