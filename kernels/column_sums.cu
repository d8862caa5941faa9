// The second stage of a sum over rows: add up the rows of partial sums, in double and a fixed order.
#include "common.cuh"

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
