// Activations and their backward pass in one pass over memory, for the kind FG_KIND.
//
//     y = f(x),    dx = dy f'(x),    bias_grad = sum of dx over all axes but the last
//
// Bytes an element: 8 forward and 12 backward in float32. Every array is read and written 16 bytes at a time where it
// begins on 16 bytes; the rest goes element by element.
#include "activation_rows.cuh"

constexpr int UNROLL = 4;  // vectors a thread has on the way at a time

using Vector = vector<storage_t>;

// x (n,) in; y (n,) out, may be x. A block takes blockDim.x UNROLL VECTOR elements.
extern "C" __global__ void fg_activation(const storage_t* x, storage_t* y, index_t n, real_t p0, real_t p1) {
    const index_t span = index_t(blockDim.x) * UNROLL * VECTOR, first = blockIdx.x * span;
    if (first + span <= n && aligned16(x, y)) {
        const index_t at = first + threadIdx.x * VECTOR, step = index_t(blockDim.x) * VECTOR;
        Vector values[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) values[u] = load<Vector>(x + at + u * step);
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) values[u].at[k] = storage_t(f(real_t(values[u].at[k]), p0, p1));
            store(y + at + u * step, values[u]);
        }
        return;
    }
    const index_t end = first + span < n ? first + span : n;
    for (index_t i = first + threadIdx.x; i < end; i += blockDim.x) y[i] = storage_t(f(real_t(x[i]), p0, p1));
}

// dy, x (n,) in; dx (n,) out, may be dy or x. A block takes blockDim.x UNROLL VECTOR elements.
extern "C" __global__ void fg_activation_backward(const storage_t* dy, const storage_t* x, storage_t* dx, index_t n,
                                                  real_t p0, real_t p1) {
    const index_t span = index_t(blockDim.x) * UNROLL * VECTOR, first = blockIdx.x * span;
    if (first + span <= n && aligned16(dy, x, dx)) {
        const index_t at = first + threadIdx.x * VECTOR, step = index_t(blockDim.x) * VECTOR;
        Vector gradient[UNROLL], input[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            gradient[u] = load<Vector>(dy + at + u * step);
            input[u] = load<Vector>(x + at + u * step);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k)
                gradient[u].at[k] = storage_t(real_t(gradient[u].at[k]) * derivative(real_t(input[u].at[k]), p0, p1));
            store(dx + at + u * step, gradient[u]);
        }
        return;
    }
    const index_t end = first + span < n ? first + span : n;
    for (index_t i = first + threadIdx.x; i < end; i += blockDim.x)
        dx[i] = storage_t(real_t(dy[i]) * derivative(real_t(x[i]), p0, p1));
}

// dy, x (rows, columns) in; dx (rows, columns) out, may be dy or x; partial (row blocks, columns) out. Block (x, y).
// vectors: the columns divide by VECTOR, the arrays begin on 16 bytes, and the grid was made for that.
extern "C" __global__ void fg_activation_backward_rows(const storage_t* dy, const storage_t* x, storage_t* dx,
                                                       real_t* partial, index_t rows, index_t columns, int vectors,
                                                       real_t p0, real_t p1) {
    extern __shared__ real_t sums[];
    const auto slope = [&](real_t gradient, real_t input, index_t) { return gradient * derivative(input, p0, p1); };
    if (vectors)
        backward_tile<VECTOR>(dy, x, dx, partial, rows, columns, sums, slope);
    else
        backward_tile<1>(dy, x, dx, partial, rows, columns, sums, slope);
}
