// Batch normalisation of the channels of x (outer, channels, inner): the sums of a pass, and what the other writes.
//
//     sums of u and u d, d = x - shift:  u = d forward, u = dy backward
//     y = (x - centre) scale + constant,    dx = dy scale + (x - centre) slope + constant
//
// shift is an entry of the channel forward, the mean, rounded to storage_t, backward. Bytes an element from memory: 4 + 8
// forward, 8 + 12 backward in float32. The sums are sums of doubles; one launch over the channels adds up what the blocks
// leave, in the order of fg_column_sums, and goes on to what the second pass takes, by the equations of channels.py.
// Where inner is 1 a thread goes down the columns of a matrix, as in columns.cuh; else a block takes a row (outer, channel).
#include "columns.cuh"

constexpr int ROWS_AHEAD = 2;  // rows on the way at a time, where a thread goes down the columns

template <int W>
__device__ void sums_tile(const storage_t* dy, const storage_t* x, const double* mean, double* partial_u,
                          double* partial_d, index_t rows, index_t columns, bool backward, double* shared) {
    using Part = vector_of<storage_t, W>;
    const Place<W> place(columns);
    const index_t column = place.column;
    double of_u[W] = {}, of_d[W] = {};
    if (column < columns) {
        Part k0 = load<Part>(x + column);
        if (backward) {
#pragma unroll
            for (int k = 0; k < W; ++k) k0.at[k] = storage_t(mean[column + k]);
        }
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

// dy (rows, columns), mean (columns,) in, read where backward; x (rows, columns) in; partial_u, partial_d (row blocks,
// columns) out. Block (x, y). vectors: the columns divide by VECTOR, the arrays begin on 16 bytes, the grid is for that.
extern "C" __global__ void fg_batch_norm_sums_across(const storage_t* dy, const storage_t* x, const double* mean,
                                                     double* partial_u, double* partial_d, index_t rows,
                                                     index_t columns, int backward, int vectors) {
    extern __shared__ double shared[];
    if (vectors)
        sums_tile<VECTOR>(dy, x, mean, partial_u, partial_d, rows, columns, backward, shared);
    else
        sums_tile<1>(dy, x, mean, partial_u, partial_d, rows, columns, backward, shared);
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

// dy (outer channels, inner), mean (channels,) in, read where backward; x as dy; partial_u, partial_d (outer, channels)
// out. A block for each row. vectors: inner divides by VECTOR and the arrays begin on 16 bytes.
extern "C" __global__ void fg_batch_norm_sums_along(const storage_t* dy, const storage_t* x, const double* mean,
                                                    double* partial_u, double* partial_d, index_t channels,
                                                    index_t inner, int backward, int vectors) {
    const index_t row = blockIdx.x, at = row * inner;
    const index_t channel = row % channels;
    const double middle = double(backward ? storage_t(mean[channel]) : x[channel * inner]);
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

// The sums over the rows of partial_u and partial_d (count, channels), of the channel of this column of threads: in the
// threads of the first row, if they have a channel. Block (x, y), y a power of two, at most 1024 threads.
struct Totals { double u, d; };
__device__ inline Totals totals_of_channel(const double* partial_u, const double* partial_d, index_t count,
                                           index_t channels, index_t channel) {
    __shared__ double sums[2][1024];
    const int place = threadIdx.y * blockDim.x + threadIdx.x;
    double u = 0, d = 0;
    if (channel < channels)
#pragma unroll 4
        for (index_t row = threadIdx.y; row < count; row += blockDim.y) {
            u += partial_u[row * channels + channel];
            d += partial_d[row * channels + channel];
        }
    sums[0][place] = u;
    sums[1][place] = d;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.y) < half) {
            const int other = place + half * int(blockDim.x);
            sums[0][place] += sums[0][other];
            sums[1][place] += sums[1][other];
        }
    }
    return {sums[0][place], sums[1][place]};
}

// Between the passes forward. partial_u, partial_d (partials, channels) in; x (outer, channels, inner) in; weight, bias
// (channels,) in; running_mean, running_var (channels,) in/out, or null; mean, rstd, centre, scale, constant (channels,)
// out. n: numbers in a channel. training: by the sums, and running is updated; else by running. Block (x, y): channels.
extern "C" __global__ void fg_batch_norm_statistics(const double* partial_u, const double* partial_d, index_t partials,
                                                    const storage_t* x, index_t inner, const storage_t* weight,
                                                    const storage_t* bias, storage_t* running_mean,
                                                    storage_t* running_var, double* mean, double* rstd,
                                                    storage_t* centre, storage_t* scale, storage_t* constant,
                                                    index_t channels, double n, double momentum, double eps,
                                                    int training) {
    const index_t c = index_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const Totals sums = totals_of_channel(partial_u, partial_d, training ? partials : 0, channels, c);
    if (threadIdx.y != 0 || c >= channels) return;
    double middle, variance;
    if (training) {
        const double ahead = sums.u / n;
        variance = sums.d / n - ahead * ahead;
        variance *= double(variance > 0);  // a rounding below 0 is 0; NaN stays
        middle = ahead + double(x[c * inner]);
        if (running_mean) {
            const real_t rest = real_t(1 - momentum);
            running_mean[c] = storage_t(double(real_t(running_mean[c]) * rest) + middle * momentum);
            running_var[c] = storage_t(double(real_t(running_var[c]) * rest) + variance * (n / (n - 1)) * momentum);
        }
    } else {
        middle = double(running_mean[c]);
        variance = double(running_var[c]);
    }
    const double r = 1.0 / sqrt_(variance + eps), factor = r * double(weight[c]);
    const storage_t rounded = storage_t(middle);
    mean[c] = middle;
    rstd[c] = r;
    centre[c] = rounded;
    scale[c] = storage_t(factor);
    constant[c] = storage_t(double(bias[c]) - (middle - double(rounded)) * factor);
}

// Between the passes backward. partial_u, partial_d (partials, channels) in; mean, rstd, weight (channels,) in; dweight,
// dbias, centre, scale, constant, slope (channels,) out: in evaluation those of dy scale alone. n, training: as above.
extern "C" __global__ void fg_batch_norm_gradients(const double* partial_u, const double* partial_d, index_t partials,
                                                   const double* mean, const double* rstd, const storage_t* weight,
                                                   storage_t* dweight, storage_t* dbias, storage_t* centre,
                                                   storage_t* scale, storage_t* constant, storage_t* slope,
                                                   index_t channels, double n, int training) {
    const index_t c = index_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const Totals sums = totals_of_channel(partial_u, partial_d, partials, channels, c);
    if (threadIdx.y != 0 || c >= channels) return;
    const double r = rstd[c], factor = r * double(weight[c]), share = -1.0 / n;
    const storage_t rounded = storage_t(mean[c]);
    const double low = mean[c] - double(rounded), product = (sums.d - low * sums.u) * r;
    const double along = factor * r * product * share;
    dweight[c] = storage_t(product);
    dbias[c] = storage_t(sums.u);
    scale[c] = storage_t(factor);
    centre[c] = training ? rounded : storage_t(0);
    constant[c] = training ? storage_t(factor * sums.u * share - along * low) : storage_t(0);
    slope[c] = storage_t(along);
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
