// Sums over the rows of a matrix, in two stages and a fixed order.
//
// First a block takes ROWS_EACH rows for each of its rows of threads, sums them and then the rows of threads, in
// real_t (or in double): one row of partial sums per block. fg_column_sums adds these up in double. Nothing depends on the number of
// blocks that run at a time.
#pragma once
#include "common.cuh"

constexpr int ROWS_EACH = 16;

// Where a thread of block (x, y) stands in a (rows, columns) matrix; a thread takes W columns. Blocks are numbered along
// the columns first, all in gridDim.x, since the other axes of a grid are short.
template <int W> struct Place {
    index_t row_block, first_row, column;
    __device__ explicit Place(index_t columns) {
        const index_t span = index_t(blockDim.x) * W, across = (columns + span - 1) / span;
        row_block = blockIdx.x / across;
        first_row = row_block * blockDim.y * ROWS_EACH + threadIdx.y;
        column = blockIdx.x % across * span + index_t(threadIdx.x) * W;
    }
};

// Add up what each row of threads holds for its columns and write it: W columns for each thread, block (x, y).
// `sums` is dynamic shared memory of blockDim.x blockDim.y W of T.
template <int W, class T>
__device__ void write_partial_sums(const T (&own)[W], T* sums, T* partial_row, index_t column, index_t columns) {
    const int width = blockDim.x * W;
#pragma unroll
    for (int k = 0; k < W; ++k) sums[threadIdx.y * width + threadIdx.x * W + k] = own[k];
    __syncthreads();
    if (threadIdx.y == 0 && column < columns) {
#pragma unroll
        for (int k = 0; k < W; ++k) {
            T total = 0;
            for (int row = 0; row < int(blockDim.y); ++row) total += sums[row * width + threadIdx.x * W + k];
            partial_row[column + k] = total;
        }
    }
}
