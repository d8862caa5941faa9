"""Means of a loss over pairs of numbers, with its gradient in one pass.

Each block of BLOCK elements gives one double; those are added up in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import runtime
from .simd import Machine, Value, traced
from .streams import BLOCK, PARALLEL_SIZE
from .sums import total

Formula = Callable[[Machine, Value, Value, Value, Callable[[Value], Value], Machine, Value], tuple[Value, Value]]


def mean_loss_kernel(formula: Formula, dtype: np.dtype) -> Any:
    """Return the Python function of a kernel; pointers: pred, target, dpred, sums (blocks,), n, factor.

    formula : (m, prediction, target, factor, to_double, machine of doubles, total) -> gradient, total; totals are
        vectors of doubles
    """
    item = dtype.itemsize

    def chunk(m, pred, target, dpred, first, last, sums, factor):
        wide = m.with_lanes(m.lanes, np.float64)
        scale = m.splat(factor)

        def body(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            def to_double(value: Value) -> Value:
                return m.convert(value if mask is None else m.select(mask, value, 0.0), np.float64)

            p, t = m.load(pred + index * item, mask), m.load(target + index * item, mask)
            gradient, total = formula(m, p, t, scale, to_double, wide, state[0])
            m.store(dpred + index * item, gradient, mask)
            return [total]

        (total,) = m.fold(first, last, [wide.zero()], body)
        m.store_double(sums, m.reduce(total, lambda a, b: a + b))

    run_chunk = traced(chunk, dtype)

    def kernel(block, pointers):
        first = block * BLOCK
        last = min(first + BLOCK, pointers[4])
        factor = runtime.as_double(pointers[5])
        run_chunk(pointers[0], pointers[1], pointers[2], first, last, pointers[3] + block * 8, factor)

    return kernel


def mean_loss(
    kernel: runtime.Kernel, pred: np.ndarray, target: np.ndarray, dpred: np.ndarray, numerator: float
) -> float:
    """Return the mean, and write the gradient with the factor numerator / n. NaN for empty arrays."""
    n = pred.size
    if n == 0:
        return math.nan
    blocks = -(-n // BLOCK)
    memory = np.empty(blocks)
    sums = runtime.address(memory)
    pointers = pred, target, dpred, memory, n, numerator / n
    runtime.run(kernel, blocks, pointers, n > PARALLEL_SIZE)
    return total(sums, blocks) / n
