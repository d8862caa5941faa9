"""An activation and the dropout of what comes out of it, in one pass each way: activation_cpu.py and dropout_cpu.py.

    y = f(x) s where it is kept, else 0;    dx = (dy s where it is kept, else 0) f'(x),    s = 1 / (1 - p)

Bytes an element in float32: 8 forward, 12 backward, and no mask. The bits are those of one function after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime
from .activation_cpu import FUNCTIONS, rows_kernel, run_rows
from .dropout_cpu import GROUP, flat_kernel, parts_of_group, random_words, run_flat
from .simd import CACHE_LINE, Value
from .streams import may_stream

RECORD_BYTES = 2 * GROUP * 4  # what a block of the rows has of its own: the words of two groups


@runtime.kernel
def _forward(kind: str, dtype: np.dtype, params: int, streaming: bool) -> Any:
    function = FUNCTIONS[kind][0]
    return flat_kernel(lambda m, dy, x, drop, constants: drop(function(m, x(), *constants)), dtype, params, streaming)


@runtime.kernel
def _backward(kind: str, dtype: np.dtype, params: int, streaming: bool) -> Any:
    derivative = FUNCTIONS[kind][1]
    return flat_kernel(
        lambda m, dy, x, drop, constants: drop(dy()) * derivative(m, x(), *constants), dtype, params, streaming
    )


@runtime.kernel
def _backward_rows(kind: str, dtype: np.dtype, params: int, streaming: bool) -> Any:
    """Backward of rows and their sum, as in activation_cpu.py.

    A row begins anywhere in a group of random words. So the words of the group that a vector begins in and of the next
    one lie behind each other in memory, from where the 64 that it takes are read; each group is drawn once a row.
    """
    derivative = FUNCTIONS[kind][1]
    item = dtype.itemsize

    def step(m, dy, x, dx, sums, width, numbers, entry, record):
        seed, offset, threshold = (m.load_int(numbers + i * 8) for i in range(3))
        scale, *constants = [m.splat(m.load_double(numbers + i * 8)) for i in range(3, 4 + params)]
        whole, bits = m.with_lanes(GROUP), m.with_lanes(GROUP, np.float32)
        first = entry // GROUP
        begin = record + (entry - first * GROUP) * 4

        def body(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            following = random_words(m, first + index // GROUP + 1, seed, offset)
            bits.store(record, bits.from_bits(state[0]))
            bits.store(record + GROUP * 4, bits.from_bits(following))
            words = bits.to_bits(bits.load(begin))
            for start, own, drop in parts_of_group(m, words, mask, threshold, scale):
                at = (index + start) * item
                value = drop(m.load_ahead(dy + at, own)) * derivative(m, m.load_ahead(x + at, own), *constants)
                m.store(dx + at, value, own, streaming and mask is None)
                m.store(sums + at, m.load(sums + at, own) + value, own)
            return [following]

        whole.fold(0, width, [random_words(m, first, seed, offset)], body)

    return rows_kernel(step, dtype, streaming)


def activation_dropout(
    x: np.ndarray, kind: str, params: tuple[float, ...], threshold: int, scale: float, seed: int, offset: int,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Write f(x) scale where the random number is at least `threshold`, else 0, into `out` (may be x)."""
    flat, result = x.reshape(-1), out.reshape(-1)
    run_flat(
        lambda streaming: _forward(kind, x.dtype, len(params), streaming),
        flat, flat, threshold, scale, seed, offset, params, result,
    )  # fmt: skip


def activation_dropout_backward(
    dy: np.ndarray, x: np.ndarray, kind: str, params: tuple[float, ...], threshold: int, scale: float, seed: int,
    offset: int, out: np.ndarray, bias_grad: np.ndarray | None,
) -> None:  # fmt: skip
    """Write dx into `out` (may be dy or x), and its sum over all axes but the last into `bias_grad` (N,)."""
    if bias_grad is None:
        run_flat(
            lambda streaming: _backward(kind, x.dtype, len(params), streaming),
            dy.reshape(-1), x.reshape(-1), threshold, scale, seed, offset, params, out.reshape(-1),
        )  # fmt: skip
        return
    streaming = may_stream(out, [dy, x]) and bias_grad.nbytes % CACHE_LINE == 0
    kernel = _backward_rows(kind, x.dtype, len(params), streaming)
    run_rows(kernel, dy, x, out, bias_grad, (seed, offset, threshold, scale, *params), RECORD_BYTES)
