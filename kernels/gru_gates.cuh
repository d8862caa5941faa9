// The gates of one cell of a GRU: those of kernels/gru_cpu.py, operation for operation.
#pragma once
#include "vecmath.cuh"

// h' = (1 - z) n + z h
__device__ inline real_t gru_mixed(real_t z, real_t n, real_t h) { return fma_(z, h, (real_t(1) - z) * n); }

// With reset_after. gates: sums in, without the product of n; r, z, n out. inner: W_hn h + b_hn. Returns h'.
__device__ inline real_t gru_gates(real_t (&gates)[3], real_t inner, real_t h) {
    const real_t r = sigmoid_of(gates[0]), z = sigmoid_of(gates[1]), n = tanh_of(fma_(r, inner, gates[2]));
    gates[0] = r, gates[1] = z, gates[2] = n;
    return gru_mixed(z, n, h);
}

// Gradients of the sums of z and n, and the part of h's that no product gives. dh: gradient of h'.
struct GruCandidate { real_t kept, dz, dn; };
__device__ inline GruCandidate gru_candidate_backward(real_t z, real_t n, real_t h, real_t dh) {
    const real_t rest = real_t(1) - z;
    return {dh * z, dh * (h - n) * (z * rest), dh * rest * fma_(-n, n, real_t(1))};
}

// The gradient of the sum of r, given that of r itself.
__device__ inline real_t gru_reset_backward(real_t r, real_t dr) { return dr * (r * (real_t(1) - r)); }
