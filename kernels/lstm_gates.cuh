// The gates of one cell of an LSTM: those of kernels/lstm_cpu.py, operation for operation.
#pragma once
#include "vecmath.cuh"

// Sums of products and biases in, gates out: i, f, g, o.
struct LstmState { real_t c, h; };
__device__ inline LstmState lstm_gates(real_t (&gates)[4], real_t c) {
    const real_t i = sigmoid_of(gates[0]), f = sigmoid_of(gates[1]), g = tanh_of(gates[2]), o = sigmoid_of(gates[3]);
    gates[0] = i, gates[1] = f, gates[2] = g, gates[3] = o;
    const real_t next = fma_(f, c, i * g);
    return {next, o * tanh_of(next)};
}

// The gates i, f, g, o in, the gradients of their sums out. dc in/out: gradient of c', then of c; c is the state before
// the step. c' is computed again: that takes less than reading it.
__device__ inline void lstm_gates_backward(real_t (&gates)[4], real_t c, real_t dh, real_t& dc) {
    const real_t i = gates[0], f = gates[1], g = gates[2], o = gates[3];
    const real_t tanh_c = tanh_of(fma_(f, c, i * g));
    const real_t all = fma_(dh * o, fma_(-tanh_c, tanh_c, real_t(1)), dc);
    gates[0] = all * g * (i * (real_t(1) - i));
    gates[1] = all * c * (f * (real_t(1) - f));
    gates[2] = all * i * fma_(-g, g, real_t(1));
    gates[3] = dh * tanh_c * (o * (real_t(1) - o));
    dc = all * f;
}
