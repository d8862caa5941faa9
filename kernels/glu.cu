// Gated linear units and their gradients in one pass over memory, for the activation FG_KIND of the gate.
//
//     y = f(gate) up,    dgate = dy up f'(gate),    dup = dy f(gate)
//
// Bytes an element: 12 forward and 20 backward in float32. The products are those of kernels/glu_cpu.py, in its order.
// Every array is read and written 16 bytes at a time where all begin on 16 bytes; the rest goes element by element.
#include "activations.cuh"

constexpr int UNROLL = 4, UNROLL_BACKWARD = 2;  // vectors of each array that a thread has on the way at a time

__device__ inline real_t f(real_t x) { return kind::FG_KIND(x, 0, 0); }
__device__ inline real_t derivative(real_t x) { return kind::FG_JOIN(FG_KIND, _derivative)(x, 0, 0); }

using Vector = vector<storage_t>;

// gate, up (n,) in; y (n,) out, may be gate or up. A block takes blockDim.x UNROLL VECTOR elements.
extern "C" __global__ void fg_glu(const storage_t* gate, const storage_t* up, storage_t* y, index_t n) {
    const index_t span = index_t(blockDim.x) * UNROLL * VECTOR, first = blockIdx.x * span;
    if (first + span <= n && aligned16(gate, up, y)) {
        const index_t at = first + threadIdx.x * VECTOR, step = index_t(blockDim.x) * VECTOR;
        Vector gates[UNROLL], ups[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            gates[u] = load<Vector>(gate + at + u * step);
            ups[u] = load<Vector>(up + at + u * step);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k)
                gates[u].at[k] = storage_t(f(real_t(gates[u].at[k])) * real_t(ups[u].at[k]));
            store(y + at + u * step, gates[u]);
        }
        return;
    }
    const index_t end = first + span < n ? first + span : n;
    for (index_t i = first + threadIdx.x; i < end; i += blockDim.x)
        y[i] = storage_t(f(real_t(gate[i])) * real_t(up[i]));
}

struct Gradients { real_t gate, up; };
__device__ inline Gradients gradients(real_t dy, real_t gate, real_t up) {
    return {dy * up * derivative(gate), dy * f(gate)};
}

// dy, gate, up (n,) in; dgate, dup (n,) out, each may be one of dy, gate, up. A block takes blockDim.x UNROLL_BACKWARD
// VECTOR elements.
extern "C" __global__ void fg_glu_backward(const storage_t* dy, const storage_t* gate, const storage_t* up,
                                           storage_t* dgate, storage_t* dup, index_t n) {
    const index_t span = index_t(blockDim.x) * UNROLL_BACKWARD * VECTOR, first = blockIdx.x * span;
    if (first + span <= n && aligned16(dy, gate, up, dgate, dup)) {
        const index_t at = first + threadIdx.x * VECTOR, step = index_t(blockDim.x) * VECTOR;
        Vector upstream[UNROLL_BACKWARD], gates[UNROLL_BACKWARD], ups[UNROLL_BACKWARD];
#pragma unroll
        for (int u = 0; u < UNROLL_BACKWARD; ++u) {
            upstream[u] = load<Vector>(dy + at + u * step);
            gates[u] = load<Vector>(gate + at + u * step);
            ups[u] = load<Vector>(up + at + u * step);
        }
#pragma unroll
        for (int u = 0; u < UNROLL_BACKWARD; ++u) {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) {
                const Gradients g =
                    gradients(real_t(upstream[u].at[k]), real_t(gates[u].at[k]), real_t(ups[u].at[k]));
                gates[u].at[k] = storage_t(g.gate);
                ups[u].at[k] = storage_t(g.up);
            }
            store(dgate + at + u * step, gates[u]);
            store(dup + at + u * step, ups[u]);
        }
        return;
    }
    const index_t end = first + span < n ? first + span : n;
    for (index_t i = first + threadIdx.x; i < end; i += blockDim.x) {
        const Gradients g = gradients(real_t(dy[i]), real_t(gate[i]), real_t(up[i]));
        dgate[i] = storage_t(g.gate);
        dup[i] = storage_t(g.up);
    }
}
