// Layer normalisation of the rows of a matrix (rows, columns), and its gradients in one pass over memory.
//
//     xhat = (x - mean) rstd,    y = weight xhat + bias
//     dx = rstd (g - mean of g - xhat mean of (g xhat)),    g = weight dy,    dweight = sum of dy xhat, dbias = sum of dy
//
// Bytes an element from memory: 8 forward and 12 backward in float32. A block takes a row at a time; what it reads of it
// a second and third time is still in the L1 cache (4 KB for a row of 1024). Sums along a row are sums of doubles, the
// variance around the mean: two conversions and two additions an element, an eighth of what an H200 has time for.
// The sums over the rows of a block lie in shared memory, each with the thread that owns its column, or in `partial`
// where they do not fit; fg_column_sums adds the blocks up.
#include "rows.cuh"

template <int W>
__device__ void forward_row(const storage_t* x, storage_t* y, const storage_t* weight, const storage_t* bias,
                            double* mean_at, double* rstd_at, index_t columns, double eps, double (&parts)[2][WARP]) {
    using Part = vector_of<storage_t, W>;
    const index_t first = index_t(threadIdx.x) * W, step = index_t(blockDim.x) * W;
    double own = 0;
    for (index_t at = first; at < columns; at += step) {
        const Part value = load<Part>(x + at);
#pragma unroll
        for (int k = 0; k < W; ++k) own += double(value.at[k]);
    }
    const double mean = block_totals(own, 0, parts).a / double(columns);
    own = 0;
    for (index_t at = first; at < columns; at += step) {
        const Part value = load<Part>(x + at);
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const double d = double(value.at[k]) - mean;
            own = fma_(d, d, own);
        }
    }
    const double rstd = 1.0 / sqrt_(block_totals(own, 0, parts).a / double(columns) + eps);
    if (threadIdx.x == 0) {
        *mean_at = mean;
        *rstd_at = rstd;
    }
    const Normalised xhat(mean, rstd);
    for (index_t at = first; at < columns; at += step) {
        Part value = load<Part>(x + at);
        const Part w = load<Part>(weight + at), b = load<Part>(bias + at);
#pragma unroll
        for (int k = 0; k < W; ++k)
            value.at[k] = storage_t(fma_(xhat.of(real_t(value.at[k])), real_t(w.at[k]), real_t(b.at[k])));
        store(y + at, value);
    }
}

// x (rows, columns) in; weight, bias (columns,) in; y (rows, columns) out; mean, rstd (rows,) out. A block for each row.
// vectors: the columns divide by VECTOR and the arrays begin on 16 bytes.
extern "C" __global__ void fg_layer_norm(const storage_t* x, const storage_t* weight, const storage_t* bias,
                                         storage_t* y, double* mean, double* rstd, index_t columns, double eps,
                                         int vectors) {
    __shared__ double parts[2][WARP];
    const index_t row = blockIdx.x, at = row * columns;
    if (vectors)
        forward_row<VECTOR>(x + at, y + at, weight, bias, mean + row, rstd + row, columns, eps, parts);
    else
        forward_row<1>(x + at, y + at, weight, bias, mean + row, rstd + row, columns, eps, parts);
}

// One row; sum_w and sum_b (columns,) are added to, each entry by the thread that owns its column.
template <int W>
__device__ void backward_row(const storage_t* dy, const storage_t* x, const storage_t* weight, storage_t* dx,
                             real_t* sum_w, real_t* sum_b, index_t columns, const Normalised& xhat,
                             double (&parts)[2][WARP]) {
    using Part = vector_of<storage_t, W>;
    const index_t first = index_t(threadIdx.x) * W, step = index_t(blockDim.x) * W;
    double of_g = 0, of_product = 0;
    for (index_t at = first; at < columns; at += step) {
        const Part gradient = load<Part>(dy + at), value = load<Part>(x + at), w = load<Part>(weight + at);
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const real_t upstream = real_t(gradient.at[k]), normalised = xhat.of(real_t(value.at[k]));
            const real_t g = upstream * real_t(w.at[k]);
            sum_w[at + k] = fma_(upstream, normalised, sum_w[at + k]);
            sum_b[at + k] += upstream;
            of_g += double(g);
            of_product += double(g * normalised);
        }
    }
    const Two total = block_totals(of_g, of_product, parts);
    const real_t mean = real_t(total.a / double(columns)), along = real_t(total.b / double(columns));
    for (index_t at = first; at < columns; at += step) {
        const Part value = load<Part>(x + at), w = load<Part>(weight + at);
        Part gradient = load<Part>(dy + at);
#pragma unroll
        for (int k = 0; k < W; ++k) {
            const real_t g = real_t(gradient.at[k]) * real_t(w.at[k]);
            gradient.at[k] = storage_t(fma_(xhat.of(real_t(value.at[k])), -along, g - mean) * xhat.rstd);
        }
        store(dx + at, gradient);
    }
}

// dy, x (rows, columns) in; weight (columns,), mean, rstd (rows,) in; dx (rows, columns) out, may be dy or x; partial_w,
// partial_b (blocks, columns) out: the sums for dweight and dbias over the `each` rows of a block.
// vectors: as above. in_shared: there is dynamic shared memory for 2 columns real_t.
extern "C" __global__ void fg_layer_norm_backward(const storage_t* dy, const storage_t* x, const storage_t* weight,
                                                  const double* mean, const double* rstd, storage_t* dx,
                                                  real_t* partial_w, real_t* partial_b, index_t rows, index_t columns,
                                                  index_t each, int vectors, int in_shared) {
    extern __shared__ real_t sums[];
    __shared__ double parts[2][WARP];
    real_t* const out_w = partial_w + index_t(blockIdx.x) * columns;
    real_t* const out_b = partial_b + index_t(blockIdx.x) * columns;
    real_t* const sum_w = in_shared ? sums : out_w;
    real_t* const sum_b = in_shared ? sums + columns : out_b;
    const index_t width = vectors ? VECTOR : 1, step = index_t(blockDim.x) * width;
    for (index_t at = index_t(threadIdx.x) * width; at < columns; at += step)
        for (index_t k = 0; k < width; ++k) sum_w[at + k] = sum_b[at + k] = 0;
    const index_t first = index_t(blockIdx.x) * each, end = first + each < rows ? first + each : rows;
    for (index_t row = first; row < end; ++row) {
        const Normalised xhat(mean[row], rstd[row]);
        const index_t at = row * columns;
        if (vectors)
            backward_row<VECTOR>(dy + at, x + at, weight, dx + at, sum_w, sum_b, columns, xhat, parts);
        else
            backward_row<1>(dy + at, x + at, weight, dx + at, sum_w, sum_b, columns, xhat, parts);
    }
    if (in_shared)
        for (index_t at = index_t(threadIdx.x) * width; at < columns; at += step)
            for (index_t k = 0; k < width; ++k) {
                out_w[at + k] = sum_w[at + k];
                out_b[at + k] = sum_b[at + k];
            }
}
