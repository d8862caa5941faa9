// Batch normalisation of the channels of x (outer, channels, inner): the sums of a pass, and what the other writes.
//
//     sums of u and u d, d = x - shift:  u = d forward, u = dy backward
//     y = (x - centre) scale + constant,    dx = dy scale + (x - centre) slope + constant
//
// Bytes an element from memory: 4 + 8 forward, 8 + 12 backward in float32. The sums are sums of doubles; fg_column_sums
// adds up what the blocks leave. Where inner is 1 a thread goes down the columns of a matrix, as in columns.cuh; else a
// block takes a row (outer, channel).
#include "columns.cuh"

constexpr int ROWS_AHEAD = 2;  // rows on the way at a time, where a thread goes down the columns

template <int W>
__device__ void sums_tile(const storage_t* dy, const storage_t* x, const storage_t* shift, double* partial_u,
                          double* partial_d, index_t rows, index_t columns, bool backward, double* shared) {
    using Part = vector_of<storage_t, W>;
    const Place<W> place(columns);
    const index_t column = place.column;
    double of_u[W] = {}, of_d[W] = {};
    if (column < columns) {
        const Part k0 = load<Part>(shift + column);
        for (int step = 0; step < ROWS_EACH; step += ROWS_AHEAD) {
            Part gradient[ROWS_AHEAD], input[ROWS_AHEAD];
#pragma unroll
            for (int u = 0; u < ROWS_AHEAD; ++u) {
                const index_t row = place.first_row + index_t(step + u) * blockDim.y, at = row * columns + column;
                if (row < rows) {
                    input[u] = load<Part>(x + at);
                    if (backward) gradient[u] = load<Part>(dy + at);
                }
            }
#pragma unroll
            for (int u = 0; u < ROWS_AHEAD; ++u) {
                if (place.first_row + index_t(step + u) * blockDim.y >= rows) break;
#pragma unroll
                for (int k = 0; k < W; ++k) {
                    const double d = double(input[u].at[k]) - double(k0.at[k]);
                    const double term = backward ? double(gradient[u].at[k]) : d;
                    of_u[k] += term;
                    of_d[k] = fma_(term, d, of_d[k]);
                }
            }
        }
    }
    write_partial_sums<W>(of_u, shared, partial_u + place.row_block * columns, column, columns);
    __syncthreads();
    write_partial_sums<W>(of_d, shared, partial_d + place.row_block * columns, column, columns);
}

// dy (rows, columns) in, read where backward; x (rows, columns), shift (columns,) in; partial_u, partial_d (row blocks,
// columns) out. Block (x, y). vectors: the columns divide by VECTOR, the arrays begin on 16 bytes, the grid is for that.
extern "C" __global__ void fg_batch_norm_sums_across(const storage_t* dy, const storage_t* x, const storage_t* shift,
                                                     double* partial_u, double* partial_d, index_t rows,
                                                     index_t columns, int backward, int vectors) {
    extern __shared__ double shared[];
    if (vectors)
        sums_tile<VECTOR>(dy, x, shift, partial_u, partial_d, rows, columns, backward, shared);
    else
        sums_tile<1>(dy, x, shift, partial_u, partial_d, rows, columns, backward, shared);
}

template <int W>
__device__ void sums_row(const storage_t* dy, const storage_t* x, double shift, index_t inner, bool backward,
                         double& of_u, double& of_d) {
    using Part = vector_of<storage_t, W>;
    for (index_t at = index_t(threadIdx.x) * W; at < inner; at += index_t(blockDim.x) * W) {
        const Part input = load<Part>(x + at);
        Part gradient = input;
        if (backward) gradient = load<Part>(dy + at);
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const double d = double(input.at[k]) - shift;
            const double term = backward ? double(gradient.at[k]) : d;
            of_u += term;
            of_d = fma_(term, d, of_d);
        }
    }
}

// dy (outer channels, inner) in, read where backward; x the same, shift (channels,) in; partial_u, partial_d (outer,
// channels) out. A block for each row. vectors: inner divides by VECTOR and the arrays begin on 16 bytes.
extern "C" __global__ void fg_batch_norm_sums_along(const storage_t* dy, const storage_t* x, const storage_t* shift,
                                                    double* partial_u, double* partial_d, index_t channels,
                                                    index_t inner, int backward, int vectors) {
    const index_t row = blockIdx.x, at = row * inner;
    const double middle = double(shift[row % channels]);
    double of_u = 0, of_d = 0;
    if (vectors)
        sums_row<VECTOR>(dy + at, x + at, middle, inner, backward, of_u, of_d);
    else
        sums_row<1>(dy + at, x + at, middle, inner, backward, of_u, of_d);
    of_u = block_sum(of_u);
    __syncthreads();
    of_d = block_sum(of_d);
    if (threadIdx.x == 0) {
        partial_u[row] = of_u;
        partial_d[row] = of_d;
    }
}

// dy (n,) in, read where backward; x (n,) in, all (outer, channels, inner); centre, scale, constant, slope (channels,)
// in; out (n,) out, may be dy or x. A thread takes 16 bytes where all begin there and inner divides (vectors), else one.
extern "C" __global__ void fg_batch_norm_apply(const storage_t* dy, const storage_t* x, const storage_t* centre,
                                               const storage_t* scale, const storage_t* constant,
                                               const storage_t* slope, storage_t* out, index_t n, index_t channels,
                                               index_t inner, int backward, int vectors) {
    using Part = vector<storage_t>;
    if (vectors) {
        const index_t at = global_thread() * VECTOR;
        if (at >= n) return;
        Part value = load<Part>(x + at), gradient = value;
        if (backward) gradient = load<Part>(dy + at);
        const index_t first = at / inner % channels;
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
            const index_t c = inner == 1 ? first + k : first;
            const real_t d = real_t(value.at[k]) - real_t(centre[c]), rest = real_t(constant[c]);
            value.at[k] = storage_t(backward ? fma_(real_t(gradient.at[k]), real_t(scale[c]),
                                                    fma_(d, real_t(slope[c]), rest))
                                             : fma_(d, real_t(scale[c]), rest));
        }
        store(out + at, value);
        return;
    }
    const index_t at = global_thread();
    if (at >= n) return;
    const index_t c = at / inner % channels;
    const real_t d = real_t(x[at]) - real_t(centre[c]), rest = real_t(constant[c]);
    out[at] = storage_t(backward ? fma_(real_t(dy[at]), real_t(scale[c]), fma_(d, real_t(slope[c]), rest))
                                 : fma_(d, real_t(scale[c]), rest));
}
