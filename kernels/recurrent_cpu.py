"""What the LSTM and GRU kernels share: rows of a step, the products over all steps, the split of a batch."""

from __future__ import annotations

import numpy as np

from fastgrad._memory import empty

from . import runtime
from .linear_cpu import are_small, small_products
from .matmul_cpu import most_steps, panel_columns, product, zeros
from .simd import Machine, Value

Array = np.ndarray

FEWEST_BYTES = 1 << 17  # of W_hh, for a step to be worth a meeting of the threads
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


def parts_of_units(batch: int, gates: int, hidden: int, dtype: np.dtype) -> int:
    """Return into how many parts the hidden units are split, where that is better than by sequences; else 0.

    By units each thread reads its own columns of W_hh alone, but all meet after each step. An LSTM with H = 256 took
    on two threads 0.54 of the time with one sequence, 0.65 with two, 0.8 to 0.9 with three and four, 0.97 with eight;
    with H = 128 0.84, 0.91 with two and three, and 1.07 with four; with twelve and more there was no difference beyond
    2 %.
    """
    threads = runtime.team_size()
    parts = min(threads, -(-hidden // panel_columns(dtype)))
    size = gates * hidden * hidden * dtype.itemsize
    if (
        not batch
        or parts < 2
        or size < FEWEST_BYTES
        or (batch >= 2 * parts and (size < 4 * FEWEST_BYTES or batch > 4 * parts))
    ):
        return 0
    return parts


@runtime.inner
def own_units(place, parts, hidden, width):
    """Return, of a thread among those that split the units: its place, their number, first panel, panels, first unit,
    units. A panel has `width` columns. A thread whose place is the number or more has nothing to do."""
    member, members = runtime.member_of(place), min(runtime.members_of(place), parts)
    panels = (hidden + width - 1) // width
    first, last = panels * member // members, panels * (member + 1) // members
    return member, members, first, last - first, first * width, min(last * width, hidden) - first * width


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
    products = empty((steps, batch, gates), x.dtype)
    rows = steps * batch
    if are_small(rows, inputs, gates) and inputs <= most_steps(x.dtype):
        start = zeros(gates, x.dtype) if bias is None else bias
        small = x, False, inputs * x.itemsize, weight_ih, True, start, products, rows, inputs, gates
        queue.launches.append(small_products(small))
    else:
        product(queue, x.reshape(rows, inputs), weight_ih.T, products.reshape(rows, gates), bias)
    return products


def small_gradients(steps: int, batch: int, gates: int, inputs: int, hidden: int, dtype: np.dtype) -> bool:
    """Say whether dx and the gradients of weights and biases take less time one entry after the other."""
    return are_small(steps * batch, gates, max(inputs, hidden)) and gates <= most_steps(dtype)


def weight_gradients(queue: runtime.Queue, dgates: Array, inputs: list[Array], outs: list[Array]) -> None:
    """Have the queue write dgates^T inputs of all steps: dgates (T B, G), inputs (T, B, N) contiguous, outs (G, N)."""
    product(queue, dgates.T, [x.reshape(dgates.shape[0], x.shape[2]) for x in inputs], outs)
