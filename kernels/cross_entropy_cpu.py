"""Mean softmax cross-entropy with its gradient in one pass over the rows, M counted rows of V classes.

    q_j = (1 - smoothing) [j = target] + smoothing / V
    loss = mean over rows of  log sum_j exp(z_j) - sum_j q_j z_j,    dz_j = (softmax(z)_j - q_j) / M

Bytes: 8 a logit in float32; a row stays in the cache between its maximum, its sum and its gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import runtime, vecmath
from .simd import Machine, Value, traced
from .streams import PARALLEL_SIZE
from .sums import pairwise

ROWS = 16  # rows of one block


@runtime.kernel
def _softmax_rows(dtype: np.dtype, smoothed: bool) -> Any:
    """pointers: logits, targets, dlogits, rows, V, results (2, rows): sums of exp(z - max), sums of q (z - max); M,
    whether a target is ignored, which; 1 - smoothing, smoothing / V (doubles).
    """
    item = dtype.itemsize

    def row(
        m: Machine, z: Value, dz: Value, target: Value, classes: Value, rows: Value, result: Value, linear_at: Value,
        kept: Value, spread: Value,
    ) -> None:  # fmt: skip
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
        chosen = m.reduce(m.load(z + target * item, one) - m.select(one, top, 0.0), lambda a, b: a + b)
        if not smoothed:
            m.store_double(linear_at, chosen)

        def exponentials(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            shifted = m.load(z + index * item, mask) - top
            e = vecmath.exp(m, shifted)
            m.store(dz + index * item, e, mask)
            terms = [e, shifted][: len(state)]
            if mask is not None:
                terms = [m.select(mask, term, 0.0) for term in terms]
            return [sum_ + term for sum_, term in zip(state, terms, strict=True)]

        sums = m.fold(0, classes, [m.zero()] * (2 if smoothed else 1), exponentials)
        total = m.reduce(sums[0], lambda a, b: a + b)
        m.store_double(result, total)
        count = m.splat(m.to_double(rows))
        divisor = m.splat(total) * count
        hit = each = m.full(1.0)
        if smoothed:
            hit, each = m.splat(kept), m.splat(spread)
            linear = m.splat(m.reduce(sums[1], lambda a, b: a + b))
            m.store_double(linear_at, m.reduce(m.fma(linear, each, m.splat(chosen) * hit), lambda a, b: a))

        def gradient(index: Value, mask: Value | None) -> None:
            share = m.load(dz + index * item, mask) / divisor
            m.store(dz + index * item, share - each / count if smoothed else share, mask)

        m.over(0, classes, gradient)
        at = dz + target * item
        m.store(at, m.load(at, one) - hit / count, one)

    def nothing(m: Machine, dz: Value, classes: Value) -> None:
        m.over(0, classes, lambda index, mask: m.store(dz + index * item, m.zero(), mask))

    run_row, clear = traced(row, dtype), traced(nothing, dtype)

    def kernel(block, pointers):
        rows, classes = pointers[3], pointers[4]
        for r in range(block * ROWS, min(rows, (block + 1) * ROWS)):
            at = r * classes * item
            target, result = runtime.peek(pointers[1], r), pointers[5] + r * 8
            if pointers[7] and target == pointers[8]:
                clear(pointers[2] + at, classes)
                runtime.poke_double(result, 0, 1.0)
                runtime.poke_double(result, rows, 0.0)
            else:
                run_row(
                    pointers[0] + at, pointers[2] + at, target, classes, pointers[6], result, result + rows * 8,
                    runtime.as_double(pointers[9]), runtime.as_double(pointers[10]),
                )  # fmt: skip

    return kernel


def _count(targets, rows, ignored):
    counted = 0
    for r in range(rows):
        counted += runtime.peek(targets, r) != ignored
    return counted


def _sum_losses(logs, linear, rows):
    for r in range(rows):
        runtime.poke_double(linear, r, runtime.peek_double(logs, r) - runtime.peek_double(linear, r))
    return pairwise(linear, rows)


_counter = runtime.compiled(_count, returns=int)
_summer = runtime.compiled(_sum_losses, returns=float)


def cross_entropy(
    logits: np.ndarray, targets: np.ndarray, dlogits: np.ndarray, smoothing: float = 0.0, ignored: int | None = None
) -> float:
    """Return the loss and write the gradient into dlogits (M, V), may be logits; targets int64 (M,). NaN if M = 0.

    Where a target is `ignored` the gradient is 0 and the row is not counted.
    """
    rows, classes = logits.shape
    if rows == 0:
        return math.nan
    counted = rows if ignored is None else _counter()(runtime.address(targets), rows, ignored)
    results = np.empty((2, rows))
    sums = results[0]
    sums_at = runtime.address(results)
    pointers = runtime.table(
        *map(runtime.handle, (logits, targets, dlogits)), rows, classes, sums_at, counted,
        ignored is not None, ignored or 0, runtime.bits(1 - smoothing), runtime.bits(smoothing / classes),
    )  # fmt: skip
    kernel = _softmax_rows(logits.dtype, smoothing != 0)
    runtime.run(kernel, -(-rows // ROWS), pointers, logits.size > PARALLEL_SIZE // 4, 3)
    if not counted:
        return math.nan
    np.log(sums, out=sums)  # of 1 or more, or NaN: nothing to warn of
    return _summer()(sums_at, sums_at + rows * 8, rows) / counted
