"""Clip each unit of a list of tensors by its own norm, in one launch; see units_ref.py for what a unit is.

A block holds as many whole units as fit into BLOCK elements, at least one, and takes the norm and the scaling of a unit
one after the other: it is read from memory once. A unit is one thread's, so its norm has one order of summation, and a
single array of one axis is not spread over threads.

Squares are summed in double. Those of float64 may leave the safe range: such a unit is read again, scaled by a power of
two, as in norm_cpu.py.

Bytes: adaptive_clip 8 an element in float32 and 8 for those that are clipped; clip_units 4 and 8.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import runtime
from .norm_cpu import SAFE_SQUARES, clip_coefficient
from .runtime import peek, peek_double, poke_double
from .simd import Machine, Value, traced
from .streams import BLOCK, PARALLEL_SIZE, table_of, tensor_of_block


@runtime.kernel
def _clip_units(dtype: np.dtype, adaptive: bool) -> Any:
    """pointers: see `_run`."""
    item, double = dtype.itemsize, dtype == np.float64
    safe_low, safe_high = SAFE_SQUARES

    def squares(m: Machine, base: Value, last: Value, factor: Value, target: Value) -> None:
        sums = m.with_lanes(m.lanes, np.float64)
        scale = sums.splat(factor)

        def body(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            x = m.convert(m.load_ahead(base + index * item, mask), np.float64)
            x = x * scale if double else x
            return [sums.fma(x, x, state[0])]

        (total,) = m.fold(0, last, [sums.zero()], body)
        m.store_double(target, m.reduce(total, lambda a, b: a + b))

    def largest(m: Machine, base: Value, last: Value, target: Value) -> None:
        def pick(machine: Machine, a: Value, b: Value) -> Value:
            return machine.select((b > a) | machine.is_nan(b), b, a)

        def body(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            return [pick(m, state[0], m.abs(m.load(base + index * item, mask)))]

        (top,) = m.fold(0, last, [m.zero()], body)
        m.store_double(target, m.reduce(top, lambda a, b: pick(m.with_lanes(a.ir.type.count), a, b)))

    def scale(m: Machine, base: Value, last: Value, coefficient: Value) -> None:
        factor = m.splat(coefficient)
        m.over(
            0, last, lambda index, mask: m.store(base + index * item, m.load(base + index * item, mask) * factor, mask)
        )

    sum_squares, max_abs, multiply = traced(squares, dtype), traced(largest, dtype), traced(scale, dtype)

    @runtime.inner
    def norm_of(base, length, scratch):
        sum_squares(base, length, 1.0, scratch)
        total = peek_double(scratch, 0)
        if not double or safe_low < total < safe_high:
            return math.sqrt(total)
        max_abs(base, length, scratch)
        top = peek_double(scratch, 0)
        if not 0.0 < top < math.inf:
            return top
        exponent = max(-1022, min(math.frexp(top)[1], 1024))
        sum_squares(base, length, math.ldexp(1.0, -exponent), scratch)
        return math.ldexp(math.sqrt(peek_double(scratch, 0)), exponent)

    def kernel(block, pointers):
        tensors = pointers[1]
        tensor = tensor_of_block(pointers[2], tensors, block)
        units, length, before = peek(pointers[3], tensor), peek(pointers[4], tensor), peek(pointers[5], tensor)
        share = max(1, BLOCK // max(length, 1))
        first = (block - peek(pointers[2], tensor)) * share
        for unit in range(first, min(first + share, units)):
            at = unit * length * item
            here, found = peek(pointers[0], tensor) + at, pointers[6] + (before + unit) * 8
            if adaptive:
                size = norm_of(peek(pointers[0], tensors + tensor) + at, length, found)
                floor = peek_double(pointers[7], 1)
                limit = peek_double(pointers[7], 0) * (floor if size < floor else size)
                norm = norm_of(here, length, found)
                coefficient = 1.0 if norm <= limit else limit / norm
            else:
                norm = norm_of(here, length, found)
                coefficient = clip_coefficient(norm, peek_double(pointers[7], 0))
            poke_double(found, 0, norm)
            if coefficient != 1.0:
                multiply(here, length, coefficient)

    return kernel


def _run(lists: Sequence[Sequence[np.ndarray]], adaptive: bool, numbers: tuple[float, ...]) -> list[np.ndarray]:
    """Run the kernel and return the norms of the units of each array of the first list before it, views of one array.

    pointers: table (streams, tensors), tensors, blocks before each tensor (tensors + 1), units of each, their length,
    units before each, norms of all units, numbers (2,): the limit, or clipping and eps.
    """
    table, stream = table_of(lists)
    shapes = [a.shape for a in lists[0]]
    units = [shape[0] if len(shape) > 1 else 1 for shape in shapes]
    lengths = [math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape) for shape in shapes]
    blocks = [-(-count // max(1, BLOCK // max(length, 1))) for count, length in zip(units, lengths, strict=True)]
    before = [0, *itertools.accumulate(units)]
    starts = [0, *itertools.accumulate(blocks)]
    geometry = [np.array(part, np.int64) for part in (starts, units, lengths, before)]
    norms, given = np.empty(before[-1]), np.array(numbers)
    first = runtime.address(table.addresses) + stream * table.tensors * 8
    parts = [runtime.address(part) for part in (*geometry, norms, given)]
    pointers = np.array([first, table.tensors, *parts], np.int64)
    kernel = _clip_units(table.dtype, adaptive)
    runtime.run(kernel, starts[-1], pointers, parallel=table.elements > PARALLEL_SIZE)
    return [norms[start:end] for start, end in itertools.pairwise(before)]


def clip_units(arrays: Sequence[np.ndarray], max_norm: float) -> list[np.ndarray]:
    """Scale each unit in place by min(1, max_norm / (norm + 1e-6)); return the norms before, (units,) of each array."""
    return _run([arrays], False, (max_norm, 0.0))


def adaptive_clip(grads: Sequence[np.ndarray], params: Sequence[np.ndarray], clipping: float, eps: float) -> None:
    """Scale each unit G of the gradients in place so that |G| <= clipping * max(|W|, eps), W its parameters."""
    _run([grads, params], True, (clipping, eps))
