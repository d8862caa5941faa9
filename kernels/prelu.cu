// PReLU with one weight per channel of x (outer, channels, inner), and its gradients in one pass over memory.
//
//     y = x where x > 0, else w x,    dx = dy (1 where x > 0, else w),    dw = sum of dy min(x, 0)
//
// Bytes an element: 8 forward and 12 backward in float32. Where inner is 1 a thread goes down the columns of a matrix
// (outer, channels), as in columns.cuh. Else a group of `width` threads takes a piece of a row (outer, channel), which
// has one weight, and writes its sum as partial[outer piece][channel]: fg_column_sums adds these up.
#include "columns.cuh"

constexpr int ROWS_AHEAD = 2;  // rows on the way at a time, where a thread goes down the columns
constexpr int ITEMS = 8;       // vectors that a thread takes of a piece,
constexpr int AHEAD = 4;       // so many of them on the way at a time

__device__ inline real_t prelu(real_t x, real_t w) { return x > 0 ? x : x * w; }
__device__ inline real_t derivative(real_t x, real_t w) { return is_nan(x) ? x : x > 0 ? real_t(1) : w; }
__device__ inline real_t weight_term(real_t dy, real_t x) { return dy * minimum(x, 0); }

template <int W>
__device__ void forward_tile(const storage_t* x, const storage_t* weight, storage_t* y, index_t rows, index_t columns) {
    using Part = vector_of<storage_t, W>;
    const Place<W> place(columns);
    if (place.column >= columns) return;
    const Part w = load<Part>(weight + place.column);
    for (int step = 0; step < ROWS_EACH; step += ROWS_AHEAD) {
        Part value[ROWS_AHEAD];
#pragma unroll
        for (int u = 0; u < ROWS_AHEAD; ++u) {
            const index_t row = place.first_row + index_t(step + u) * blockDim.y;
            if (row < rows) value[u] = load<Part>(x + row * columns + place.column);
        }
#pragma unroll
        for (int u = 0; u < ROWS_AHEAD; ++u) {
            const index_t row = place.first_row + index_t(step + u) * blockDim.y;
            if (row >= rows) return;
#pragma unroll
            for (int k = 0; k < W; ++k) value[u].at[k] = storage_t(prelu(real_t(value[u].at[k]), real_t(w.at[k])));
            store(y + row * columns + place.column, value[u]);
        }
    }
}

// x (rows, columns) in; weight (columns,) in; y (rows, columns) out, may be x. Block (x, y).
// vectors: the columns divide by VECTOR, the arrays begin on 16 bytes, and the grid was made for that.
extern "C" __global__ void fg_prelu_across(const storage_t* x, const storage_t* weight, storage_t* y, index_t rows,
                                           index_t columns, int vectors) {
    if (vectors)
        forward_tile<VECTOR>(x, weight, y, rows, columns);
    else
        forward_tile<1>(x, weight, y, rows, columns);
}

template <int W>
__device__ void backward_tile(const storage_t* dy, const storage_t* x, const storage_t* weight, storage_t* dx,
                              real_t* partial, index_t rows, index_t columns, real_t* sums) {
    using Part = vector_of<storage_t, W>;
    const Place<W> place(columns);
    const index_t column = place.column, first = place.first_row;
    real_t own[W] = {};
    if (column < columns) {
        const Part w = load<Part>(weight + column);
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
                    const real_t g = real_t(gradient[u].at[k]), z = real_t(input[u].at[k]);
                    gradient[u].at[k] = storage_t(g * derivative(z, real_t(w.at[k])));
                    own[k] += weight_term(g, z);
                }
                store(dx + at, gradient[u]);
            }
        }
    }
    write_partial_sums<W>(own, sums, partial + place.row_block * columns, column, columns);
}

// dy, x (rows, columns) in; weight (columns,) in; dx (rows, columns) out, may be dy or x; partial (row blocks, columns)
// out. Block (x, y); vectors: as above.
extern "C" __global__ void fg_prelu_backward_across(const storage_t* dy, const storage_t* x, const storage_t* weight,
                                                    storage_t* dx, real_t* partial, index_t rows, index_t columns,
                                                    int vectors) {
    extern __shared__ real_t sums[];
    if (vectors)
        backward_tile<VECTOR>(dy, x, weight, dx, partial, rows, columns, sums);
    else
        backward_tile<1>(dy, x, weight, dx, partial, rows, columns, sums);
}

// Where a thread stands in its piece of a row: `width` threads (a power of two, at most a warp) take width W ITEMS
// elements of it. Pieces of a row are numbered first, then rows. Threads past the end have nothing to do, but stay for
// the sums of the others.
template <int W> struct Piece {
    index_t row, number, at, end, step;
    bool first_thread;
    __device__ Piece(index_t rows, index_t inner, index_t pieces, int width) {
        const index_t index = global_thread() / width, first = index % pieces * width * W * ITEMS;
        row = index / pieces;
        number = index % pieces;
        step = index_t(width) * W;
        first_thread = threadIdx.x % width == 0;
        at = first + threadIdx.x % width * W;
        end = row >= rows ? 0 : first + step * ITEMS < inner ? first + step * ITEMS : inner;
    }
    // Where the elements begin that make no vector; the first thread takes them.
    __device__ index_t rest() const { return first_thread ? end / W * W : end; }
};

template <int W>
__device__ void forward_piece(const storage_t* x, const storage_t* weight, storage_t* y, index_t rows, index_t channels,
                              index_t inner, index_t pieces, int width) {
    using Part = vector_of<storage_t, W>;
    const Piece<W> piece(rows, inner, pieces, width);
    if (piece.at >= piece.end) return;
    const real_t w = real_t(weight[piece.row % channels]);
    x += piece.row * inner;
    y += piece.row * inner;
#pragma unroll 1
    for (int item = 0; item < ITEMS; item += AHEAD) {
        const index_t first = piece.at + item * piece.step;
        Part value[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; ++u)
            if (first + u * piece.step + W <= piece.end) value[u] = load<Part>(x + first + u * piece.step);
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            if (first + u * piece.step + W > piece.end) break;
#pragma unroll
            for (int k = 0; k < W; ++k) value[u].at[k] = storage_t(prelu(real_t(value[u].at[k]), w));
            store(y + first + u * piece.step, value[u]);
        }
    }
#pragma unroll 1
    for (index_t i = piece.rest(); i < piece.end; ++i) y[i] = storage_t(prelu(real_t(x[i]), w));
}

// x (rows, inner) in; weight (channels,) in, of row r that of r % channels; y (rows, inner) out, may be x.
// vectors: rows begin on 16 bytes.
extern "C" __global__ void fg_prelu_along(const storage_t* x, const storage_t* weight, storage_t* y, index_t rows,
                                          index_t channels, index_t inner, index_t pieces, int width, int vectors) {
    if (vectors)
        forward_piece<VECTOR>(x, weight, y, rows, channels, inner, pieces, width);
    else
        forward_piece<1>(x, weight, y, rows, channels, inner, pieces, width);
}

template <int W>
__device__ void backward_piece(const storage_t* dy, const storage_t* x, const storage_t* weight, storage_t* dx,
                               real_t* partial, index_t rows, index_t channels, index_t inner, index_t pieces,
                               int width) {
    using Part = vector_of<storage_t, W>;
    const Piece<W> piece(rows, inner, pieces, width);
    real_t own = 0;
    if (piece.at < piece.end) {
        const real_t w = real_t(weight[piece.row % channels]);
        dy += piece.row * inner;
        x += piece.row * inner;
        dx += piece.row * inner;
#pragma unroll 1
        for (int item = 0; item < ITEMS; item += AHEAD) {
            const index_t first = piece.at + item * piece.step;
            Part gradient[AHEAD], input[AHEAD];
#pragma unroll
            for (int u = 0; u < AHEAD; ++u) {
                const index_t at = first + u * piece.step;
                if (at + W <= piece.end) {
                    gradient[u] = load<Part>(dy + at);
                    input[u] = load<Part>(x + at);
                }
            }
#pragma unroll
            for (int u = 0; u < AHEAD; ++u) {
                if (first + u * piece.step + W > piece.end) break;
#pragma unroll
                for (int k = 0; k < W; ++k) {
                    const real_t g = real_t(gradient[u].at[k]), z = real_t(input[u].at[k]);
                    gradient[u].at[k] = storage_t(g * derivative(z, w));
                    own += weight_term(g, z);
                }
                store(dx + first + u * piece.step, gradient[u]);
            }
        }
#pragma unroll 1
        for (index_t i = piece.rest(); i < piece.end; ++i) {
            const real_t g = real_t(dy[i]), z = real_t(x[i]);
            dx[i] = storage_t(g * derivative(z, w));
            own += weight_term(g, z);
        }
    }
    for (int lanes = 1; lanes < width; lanes *= 2) own += __shfl_xor_sync(ALL_LANES, own, lanes);
    if (piece.first_thread && piece.row < rows)
        partial[(piece.row / channels * pieces + piece.number) * channels + piece.row % channels] = own;
}

// dy, x (rows, inner) in; weight (channels,) in; dx (rows, inner) out, may be dy or x;
// partial (rows / channels pieces, channels) out. vectors: rows begin on 16 bytes.
extern "C" __global__ void fg_prelu_backward_along(const storage_t* dy, const storage_t* x, const storage_t* weight,
                                                   storage_t* dx, real_t* partial, index_t rows, index_t channels,
                                                   index_t inner, index_t pieces, int width, int vectors) {
    if (vectors)
        backward_piece<VECTOR>(dy, x, weight, dx, partial, rows, channels, inner, pieces, width);
    else
        backward_piece<1>(dy, x, weight, dx, partial, rows, channels, inner, pieces, width);
}
