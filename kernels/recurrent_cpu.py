"""What the LSTM and GRU kernels share: rows of a step, the products over all steps, the split of a batch."""

from __future__ import annotations

import numpy as np

from fastgrad._memory import empty

from . import runtime
from .matmul_cpu import product
from .simd import Machine, Value

Array = np.ndarray

GATE_BYTES = 64  # vector of the gate formulas: with five functions in flight a longer one spills registers


def copy_row(m: Machine, source: Value, target: Value, columns: Value) -> None:
    """Copy `columns` elements."""
    m.over(0, columns, lambda i, mask: m.store(m.at(target, i), m.load(m.at(source, i), mask), mask))


def zero_row(m: Machine, target: Value, columns: Value) -> None:
    """Clear `columns` elements."""
    m.over(0, columns, lambda i, mask: m.store(m.at(target, i), m.zero(), mask))


def tasks_for(batch: int) -> int:
    """Return into how many parts the sequences of a batch are split: one per thread."""
    return min(batch, runtime.num_threads())


def zeroed_padding(x: Array, lengths: Array | None) -> Array:
    """Return x (T, B, I) with zeros past each length: what lies there, NaN perhaps, must reach no gradient."""
    if lengths is None:
        return x
    valid = np.arange(x.shape[0])[:, None] < lengths
    return np.where(valid[:, :, None], x, x.dtype.type(0))


def input_products(queue: runtime.Queue, x: Array, weight_ih: Array, bias: Array | None) -> Array:
    """Return an array for x W_ih^T + bias of all steps, (T, B, gates), which the queue is to fill."""
    steps, batch, inputs = x.shape
    gates = weight_ih.shape[0]
    products = empty((steps * batch, gates), x.dtype)
    product(queue, x.reshape(steps * batch, inputs), weight_ih.T, products, bias)
    return products.reshape(steps, batch, gates)


def weight_gradients(queue: runtime.Queue, dgates: Array, inputs: list[Array], outs: list[Array]) -> None:
    """Have the queue write dgates^T inputs of all steps: dgates (T B, G), inputs (T, B, N) contiguous, outs (G, N)."""
    product(queue, dgates.T, [x.reshape(dgates.shape[0], x.shape[2]) for x in inputs], outs)
