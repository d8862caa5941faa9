"""What may come between the steps of an LSTM or GRU, as parts of their kernels: see between_steps_ref.py.

The steps of a kernel stay what they are. Before them a thread draws z of its sequences for this step into scratch of
its own, and behind a step it mixes the state with the one before, both in the cache. Philox takes 2.5 of its ten-round
counters for ten entries; of a step with 256 hidden units all this is a small part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import runtime
from .between_steps_ref import DROPOUT_H, DROPOUT_X, ZONEOUT_C, ZONEOUT_H, Noise, threshold_of
from .dropout_cpu import GROUP, dropout, random_words
from .simd import I32, Machine, Value, traced

Array = np.ndarray

# The table that a kernel is given: int64 entries.
SEED, COUNTER_H, THRESHOLD_H, COUNTER_C, THRESHOLD_C, ZONES, P_H, P_C, MASK, SCRATCH, SCRATCH_BYTES, BOUND = range(12)
NONE, CONSTANT, RANDOM = range(3)  # of ZONES
# Of scratch, each for the states of a thread: z of h and of c, masked h or a product, what z keeps of two gradients.
ROOMS = 5


# --- on `count` elements next to each other


def _draw(m: Machine, z: Value, first: Value, count: Value, seed: Value, counter: Value, threshold: Value) -> None:
    """Write 1 where the random number of place first + i is below the threshold, else 0."""
    last = first + count
    limit = m._broadcast(m.builder.trunc(threshold.ir, I32), GROUP)

    def group(index: Value, state: list[Value]) -> list[Value]:
        start = index * GROUP
        words = random_words(m, index, seed, counter)
        zoned = Value(m, m.builder.icmp_unsigned("<", words.ir, limit))
        inside = m.mask(m.choose(last - start < GROUP, last - start, GROUP))
        before = m.mask(m.choose(first - start > 0, first - start, 0))
        inside = Value(m, m.builder.and_(inside.ir, m.builder.not_(before.ir)))
        m.store(z + (start - first) * m.dtype.itemsize, m.select(zoned, 1.0, 0.0), inside)
        return []

    m.loop(first // GROUP, (last + (GROUP - 1)) // GROUP, 1, [], group)


def _fill(m: Machine, target: Value, count: Value, number: Value) -> None:
    """Write one number, the address of a double."""
    value = m.splat(m.load_double(number))
    m.over(0, count, lambda i, lanes: m.store(m.at(target, i), value, lanes))


def _masked(m: Machine, a: Value, factor: Value) -> Value:
    return m.select(factor > 0.0, a * factor, 0.0)


def _mask(m: Machine, a: Value, factors: Value, out: Value, count: Value) -> None:
    """Write a times its factor, 0 where that is 0; out may be a."""

    def body(i: Value, lanes: Value | None) -> None:
        m.store(m.at(out, i), _masked(m, m.load(m.at(a, i), lanes), m.load(m.at(factors, i), lanes)), lanes)

    m.over(0, count, body)


def _add_masked(m: Machine, a: Value, factors: Value, out: Value, count: Value) -> None:
    """Add what _mask writes."""

    def body(i: Value, lanes: Value | None) -> None:
        own = _masked(m, m.load(m.at(a, i), lanes), m.load(m.at(factors, i), lanes))
        m.store(m.at(out, i), m.load(m.at(out, i), lanes) + own, lanes)

    m.over(0, count, body)


def _add(m: Machine, a: Value, out: Value, count: Value) -> None:
    m.over(0, count, lambda i, lanes: m.store(m.at(out, i), m.load(m.at(out, i), lanes) + m.load(m.at(a, i), lanes),
                                              lanes))  # fmt: skip


def _mix(m: Machine, z: Value, before: Value, now: Value, count: Value) -> None:
    """Write z before + (1 - z) now into `now`; where z is 0 or 1 the other does not enter."""

    def body(i: Value, lanes: Value | None) -> None:
        share, old, new = (m.load(m.at(a, i), lanes) for a in (z, before, now))
        value = m.fma(share, old, (1.0 - share) * new)
        value = m.select(share >= 1.0, old, m.select(share > 0.0, value, new))
        m.store(m.at(now, i), value, lanes)

    m.over(0, count, body)


def _split(m: Machine, z: Value, gradient: Value, above: Value, kept: Value, count: Value) -> None:
    """Add `above` to the gradient in/out and leave (1 - z) of it there, z of it in `kept`."""

    def body(i: Value, lanes: Value | None) -> None:
        share, d = m.load(m.at(z, i), lanes), m.load(m.at(gradient, i), lanes) + m.load(m.at(above, i), lanes)
        m.store(m.at(kept, i), m.select(share > 0.0, share * d, 0.0), lanes)
        m.store(m.at(gradient, i), m.select(share >= 1.0, 0.0, (1.0 - share) * d), lanes)

    m.over(0, count, body)


def _clamp(m: Machine, x: Value, count: Value, bound: Value) -> None:
    """Bring x inside of [-bound, bound], the address of a double; NaN stays."""
    high = m.splat(m.load_double(bound))
    low = -high

    def body(i: Value, lanes: Value | None) -> None:
        m.store(m.at(x, i), m.minimum(m.maximum(m.load(m.at(x, i), lanes), low), high), lanes)

    m.over(0, count, body)


class Parts:
    """The parts of a dtype's kernels; arguments are addresses, but for counts.

    Attributes:
        start_zones, draw_zones: Numba functions (table, z_h, z_c, count) and (table, z_h, z_c, first, count): z of
            `count` entries, the first of which is entry `first` of (T, B, H). One call before the steps, one in each.
        mask, add_masked, add, mix, split, clamp: intrinsics, see above.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.mask, self.add_masked, self.add = (traced(f, dtype) for f in (_mask, _add_masked, _add))
        self.mix, self.split, self.clamp = (traced(f, dtype) for f in (_mix, _split, _clamp))
        fill, draw = traced(_fill, dtype), traced(_draw, dtype, GROUP)
        peek = runtime.peek

        def start_zones(table, z_h, z_c, count):
            if peek(table, ZONES) != NONE:
                fill(z_h, count, peek(table, P_H))
                fill(z_c, count, peek(table, P_C))

        def draw_zones(table, z_h, z_c, first, count):
            if peek(table, ZONES) == RANDOM:
                if peek(table, THRESHOLD_H) != 0:
                    draw(z_h, first, count, peek(table, SEED), peek(table, COUNTER_H), peek(table, THRESHOLD_H))
                if peek(table, THRESHOLD_C) != 0:
                    draw(z_c, first, count, peek(table, SEED), peek(table, COUNTER_C), peek(table, THRESHOLD_C))

        self.start_zones, self.draw_zones = runtime.inner(start_zones), runtime.inner(draw_zones)


def table_of(
    noise: Noise | None, state: Array, tasks: int, bound: float | None = None
) -> tuple[runtime.Pointers | Array | int | None, ...]:
    """Return the table of a launch.

    state : an array (..., B, H) of the layer's dtype
    tasks : parts of the batch, each on a thread of its own
    """
    (batch, hidden), dtype = state.shape[-2:], state.dtype
    share = ROOMS * -(-batch // max(tasks, 1)) * hidden
    scratch, size = empty(tasks * share, dtype), share * dtype.itemsize
    limit = None if bound is None else (bound,)
    if noise is None:
        return 0, 0, 0, 0, 0, NONE, (0.0,), (0.0,), None, scratch, size, limit
    z_h, z_c, random = noise.zoneout_h, noise.zoneout_c, noise.training
    thresholds = (threshold_of(z_h), threshold_of(z_c)) if random else (0, 0)
    return (
        noise.seed, noise.counter(ZONEOUT_H), thresholds[0], noise.counter(ZONEOUT_C), thresholds[1],
        NONE if not noise.zones else RANDOM if random else CONSTANT,
        # In training z is 0 where nothing is drawn.
        (0.0 if random else z_h,), (0.0 if random else z_c,), mask_h(noise, batch, hidden, dtype), scratch, size, limit,
    )  # fmt: skip


def mask_h(noise: Noise | None, batch: int, hidden: int, dtype: np.dtype) -> Array | None:
    """Return m_h (B, H), None where nothing is dropped."""
    return _drawn(noise, DROPOUT_H, noise.dropout_h, (batch, hidden), dtype) if noise and noise.drops_h else None


def mask_x(noise: Noise | None, x: Array) -> Array | None:
    """Return m_x (B, I) of x (T, B, I), None where nothing is dropped."""
    return _drawn(noise, DROPOUT_X, noise.dropout_x, x.shape[1:], x.dtype) if noise and noise.drops_x else None


def _drawn(noise: Noise, stream: int, p: float, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    ones = np.ones(shape, dtype)
    flat = ones.reshape(-1)
    if flat.size:
        dropout(flat, threshold_of(p), 1.0 / (1.0 - p), noise.seed, noise.counter(stream), flat)
    return ones


@runtime.kernel
def _mask_steps(dtype: np.dtype) -> Any:
    """A block is a step. pointers: a (T, n), factors (n,), out (T, n), may be a, n."""
    item, mask = dtype.itemsize, traced(_mask, dtype)

    def kernel(block, pointers):
        at = block * pointers[3] * item
        mask(pointers[0] + at, pointers[1], pointers[2] + at, pointers[3])

    return kernel


def masked_steps(x: Array, mask: Array | None, out: Array | None = None) -> Array:
    """Return x (T, B, N) times a mask (B, N) at each step, in `out`, which may be x; x itself without a mask."""
    if mask is None:
        return x
    if out is None:
        out = empty(x.shape, x.dtype)
    if x.size:
        pointers = np.array([*map(runtime.address, (x, mask, out)), mask.size], np.int64)
        runtime.run(_mask_steps(x.dtype), x.shape[0], pointers, parallel=x.size > 16384)
    return out


def clamped(gradient: Array, bound: float | None) -> Array:
    """Clamp a gradient in place to [-bound, bound], and return it; NaN stays."""
    return gradient if bound is None else np.clip(gradient, -bound, bound, out=gradient)
