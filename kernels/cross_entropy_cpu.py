"""Mean softmax cross-entropy with its gradient in one pass over the rows, M rows of V classes.

    loss = mean over rows of  log sum_j exp(z_j) - z_target,    dz_j = (softmax(z)_j - [j = target]) / M

Bytes: 8 a logit in float32; a row stays in the cache between its maximum, its sum and its gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import runtime, vecmath
from .simd import Machine, Value, traced
from .streams import PARALLEL_SIZE

ROWS = 16  # rows of one block


@runtime.kernel
def _softmax_rows(dtype: np.dtype) -> Any:
    """pointers: logits, targets, M, V, dlogits, results (M, 2): sum of exp(z - max), z_target - max."""
    item = dtype.itemsize

    def row(m: Machine, z: Value, dz: Value, target: Value, classes: Value, rows: Value, result: Value) -> None:
        lowest = m.full(-np.inf)

        def largest(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            x = m.load(z + index * item, mask)
            x = x if mask is None else m.select(mask, x, lowest)
            return [m.select((x > state[0]) | m.is_nan(x), x, state[0])]

        def pick(a: Value, b: Value) -> Value:
            narrow = m.with_lanes(a.ir.type.count)
            return narrow.select((b > a) | narrow.is_nan(b), b, a)

        top = m.splat(m.reduce(m.fold(0, classes, [lowest], largest)[0], pick))
        one = m.mask(classes * 0 + 1)
        chosen = m.load(z + target * item, one) - m.select(one, top, 0.0)
        m.store_double(result + 8, m.reduce(chosen, lambda a, b: a + b))

        def exponentials(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            e = vecmath.exp(m, m.load(z + index * item, mask) - top)
            m.store(dz + index * item, e, mask)
            return [state[0] + (e if mask is None else m.select(mask, e, 0.0))]

        total = m.reduce(m.fold(0, classes, [m.zero()], exponentials)[0], lambda a, b: a + b)
        m.store_double(result, total)
        count = m.splat(m.to_double(rows))
        divisor = m.splat(total) * count

        def gradient(index: Value, mask: Value | None) -> None:
            m.store(dz + index * item, m.load(dz + index * item, mask) / divisor, mask)

        m.over(0, classes, gradient)
        at = dz + target * item
        m.store(at, m.load(at, one) - m.full(1.0) / count, one)

    run_row = traced(row, dtype)

    def kernel(block, pointers):
        rows, classes = pointers[2], pointers[3]
        for r in range(block * ROWS, min(rows, (block + 1) * ROWS)):
            at = r * classes * item
            target = runtime.peek(pointers[1], r)
            run_row(pointers[0] + at, pointers[4] + at, target, classes, rows, pointers[5] + r * 16)

    return kernel


def cross_entropy(logits: np.ndarray, targets: np.ndarray, dlogits: np.ndarray) -> float:
    """Return the loss and write the gradient into dlogits (M, V), may be logits; targets int64 (M,). NaN if M = 0."""
    rows, classes = logits.shape
    if rows == 0:
        return math.nan
    results = np.empty((rows, 2))
    pointers = np.array(
        [
            runtime.address(logits), runtime.address(targets), rows, classes,
            runtime.address(dlogits), runtime.address(results),
        ],
        np.int64,
    )  # fmt: skip
    runtime.run(_softmax_rows(logits.dtype), -(-rows // ROWS), pointers, parallel=logits.size > PARALLEL_SIZE // 4)
    with np.errstate(all="ignore"):
        return float(np.mean(np.log(results[:, 0]) - results[:, 1]))
