"""What the LSTM and GRU launchers share, and the choice between their two ways through the steps.

"stepwise": a product and a kernel for each step. Every launch may be captured into a graph, which takes the launches'
time off the host. "persistent": one cooperative kernel for all steps, which keeps W_hh in registers, see
persistent.cuh: float32, H a multiple of 4 up to 1024, a GRU with reset_after, nothing between the steps but the bound
of the state's gradient. The rest goes stepwise, and why:

    reset_after=False   the candidate's product needs r h of all units: a second barrier of the grid in each step, which
                        is what bounds a step already
    zoneout             a mix with each unit's state before, by random numbers of (t, b, unit): not written yet
    recurrent_dropout   a mask of h for each sequence: no factor of W_hh, it would go into each product and each sum
    float64             twice the registers a number: the slice of W_hh of a block halves, at a lower rate of FMAs
    other H             rows of W_hh that do not begin on 16 bytes: a copy of the weights with padding in each call
    larger H            more than 128 numbers of W_hh a thread, or more blocks than multiprocessors

input_dropout, and all of recurrent_dropout in evaluation, leave the steps alone: they go either way. What can go either
way goes by its size, as recurrent_choice.py says.

Either may be captured into a graph, after a call of the same sizes on the same stream, which compiles the kernels and
starts cuBLAS; lengths must lie on the device then. What a captured call has allocated is never freed.

What bounds a step of the persistent LSTM on an H200 (132 multiprocessors, 128 FMA a clock each at 1.98 GHz; 5.5 TB/s
taken for the level-2 cache), U = 8 units and 32 rows of W_hh a block (6 and 24 at H = 768), G groups that share out the
batch; a GRU has 3/4 of the flops:

    forward    8 B H^2 flops;  reads B H numbers in each block of a group: 4 B H (H / U) bytes from the level-2 cache
    backward   8 B H^2 flops;  writes and reads B H partial sums a block: twice those bytes
    both       a barrier of H / U blocks, 1 to 2 us, and about 1 us of latency around the products

    ==== ======= === ==== ============ ============== ===============
    H    blocks  G   B    FMA, fwd     level 2, fwd   level 2, bwd
    ==== ======= === ==== ============ ============== ===============
    64   8 x 16  16  16   0.01         0.006          0.01
    256  32 x 4  4   16   0.13         0.10           0.19
    512  64 x 2  2   16   0.5          0.4            0.8
    512  64 x 2  2   64   2.1          1.5            3.1
    768  128 x 1 1   16   1.2          1.1            2.3
    1024 128 x 1 1   1    0.13         0.1            0.2
    1024 128 x 1 1   16   2.1          1.5            3.1
    1024 128 x 1 1   64   8.3          6.1            12.2
    ==== ======= === ==== ============ ============== ===============

All of it microseconds by calculation; nothing here was measured. Up to a few sequences a group the barrier is the
bound, beyond that the FMAs, and backward the traffic of the partial sums. A thread meets R rows by DEPTH vectors of 4
in registers, 128 numbers at H = 1024: forward, for each sequence, 128 FMAs a thread (32 clocks of a multiprocessor for
a warp) stand against 4 loads of 16 bytes (a warp loads 128 bytes at a time, 4 clocks) and 7 shuffles (7 clocks);
backward 128 FMAs against 8 broadcast loads of 16 bytes from shared memory (8 clocks) and one store.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import cuda
from .between_steps_ref import Noise
from .linear_gpu import sum_rows
from .matmul_gpu import matmul
from .recurrent_choice import choice

Array = Any

METHODS = ("auto", "stepwise", "persistent")

STEP_BLOCK = 128  # threads: a step has few cells, which are to reach all multiprocessors

_ZERO_PADDING = cuda.Kernel(
    "recurrent", "fg_zero_padding", "x: T*, lengths: i64*, out: T*, steps: i64, batch: i64, inputs: i64"
)


def zeroed_padding(x: Array, lengths: Array | None) -> Array:
    """Return x (T, B, I) with zeros past each length; x itself without lengths."""
    if lengths is None:
        return x
    device = cuda.device_of(x)
    out = device.xp.empty(x.shape, x.dtype)
    block = cuda.threads(device)
    grid = min(cuda.blocks(x.size, block), 16 * device.multiprocessors)
    _ZERO_PADDING(device, x.dtype, grid, block, x, lengths, out, *x.shape)
    return out


def undisturbed(noise: Noise | None) -> bool:
    """Say whether the steps follow each other with nothing between them."""
    return noise is None or not noise.every_step


def flat(array: Array) -> Array:
    """Return (T, B, N) as the matrix (T B, N) of the same memory."""
    steps, batch, columns = array.shape
    return array.reshape(steps * batch, columns)


def input_products(x: Array, weight_ih: Array) -> Array:
    """Return x W_ih^T for all steps at once, (T, B, gates)."""
    products = cuda.device_of(x).xp.empty((*x.shape[:2], weight_ih.shape[0]), x.dtype)
    matmul(flat(x), weight_ih, flat(products), transpose_b=True)
    return products


def states(initial: Array, steps: int, reverse: bool) -> Array:
    """Return (T + 1, B, H) with the initial state in the slot before the first step."""
    result = cuda.device_of(initial).xp.empty((steps + 1, *initial.shape), initial.dtype)
    result[steps if reverse else 0] = initial
    return result


def own_or_zeros(gradient: Array | None, like: Array) -> Array:
    """Return a copy that may be written, or zeros in the shape of `like`."""
    return cuda.zeros(cuda.device_of(like), like.shape, like.dtype) if gradient is None else cuda.copy(gradient)


def bias_gradient(dgates: Array) -> Array:
    """Return the sum of (T, B, N) over steps and sequences, (N,)."""
    out = cuda.device_of(dgates).xp.empty((dgates.shape[2],), dgates.dtype)
    sum_rows(flat(dgates), out)
    return out


class StepShape:
    """How the cells of one step are spread over threads.

    Attributes:
        vectors: each thread takes 16 bytes of units.
        grid, block: blocks, threads.
    """

    __slots__ = ("block", "grid", "vectors")

    def __init__(self, device: cuda.Device, state: Array, arrays: tuple[Array | None, ...]) -> None:
        batch, hidden = state.shape[-2:]
        width = 16 // state.itemsize
        self.vectors = hidden % width == 0 and not any(a.data.ptr % 16 for a in arrays if a is not None)
        self.block = cuda.threads(device, STEP_BLOCK)
        self.grid = cuda.blocks(batch * hidden // (width if self.vectors else 1), self.block)


# --- the persistent way

PERSISTENT_BLOCK = 256  # LARGEST in persistent.cuh: with 255 registers a thread one block fills a multiprocessor
ROW_LANES = 4  # as in persistent.cuh
COUNTER_STRIDE = 32  # as in persistent.cuh
DEPTHS = 4  # vectors of h for each thread at most: 8 rows of 16 numbers are 128 registers
PASS = 32  # sequences multiplied before their gates are computed

_method: str = "auto"


def set_method(name: str) -> None:
    """Choose the way through the steps for the process: "auto", "stepwise", or "persistent" wherever it can be.

    "auto" goes by size, see recurrent_choice.py. The environment variable FASTGRAD_RECURRENT sets the method at the
    start.

    Raises:
        ValueError: the name is not known.
    """
    global _method
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    _method = name


def method() -> str:
    """Return what `set_method` set."""
    return _method


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Choose the way inside a `with` block, in all threads of the process."""
    before = _method
    set_method(name)
    try:
        yield
    finally:
        set_method(before)


set_method(os.environ.get("FASTGRAD_RECURRENT", "auto"))


class Plan(NamedTuple):
    """A launch of the persistent kernels.

    Attributes:
        units: hidden units a block.
        depth: vectors of h a thread, forward.
        members, groups: blocks that share the units, and groups of them that share the batch.
        most: sequences of the largest group.
        at_a_time: sequences multiplied at a time, forward.
        forward, backward: threads a block.
        shared_forward, shared_backward: bytes of shared memory a block.
    """

    units: int
    depth: int
    members: int
    groups: int
    most: int
    at_a_time: int
    forward: int
    backward: int
    shared_forward: int
    shared_backward: int

    @property
    def blocks(self) -> int:
        """All blocks."""
        return self.members * self.groups

    @property
    def variant(self) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {"units": self.units, "depth": self.depth}


def persistent_plan(
    device: cuda.Device, gates: int, steps: int, state: Array, arrays: tuple[Array | None, ...]
) -> Plan | None:
    """Return how the persistent kernels go about a layer of `gates` gates, or None where they are not to be used.

    Args:
        state: an array (..., B, H) of the layer's dtype.
        arrays: what the kernel is given.
    """
    batch, hidden = state.shape[-2:]
    if _method == "stepwise" or state.dtype != np.float32 or hidden % 4 or 0 in (steps, batch, hidden):
        return None
    if any(a is not None and a.data.ptr % 16 for a in arrays):
        return None
    best = best_plan(device, gates, batch, hidden)
    if best is None or steps * best.members >= 1 << 32:
        return None
    if _method == "auto" and work(best, gates, hidden) > choice(device).limit(gates, hidden):
        return None
    return best


def best_plan(device: cuda.Device, gates: int, batch: int, hidden: int) -> Plan | None:
    """Return how the persistent kernels would go about these sizes, None where they do not fit the device."""
    # The fewest numbers for a block to multiply; of equals the fewest blocks to wait for each other.
    plans = filter(None, (_plan(device, gates, units, batch, hidden) for units in (8, 6, 4)))
    return min(plans, key=lambda plan: plan.most * plan.units, default=None)


def work(plan: Plan, gates: int, hidden: int) -> int:
    """Return the fused multiply-adds of a block of the largest group in a step."""
    return plan.most * gates * plan.units * hidden


def _plan(device: cuda.Device, gates: int, units: int, batch: int, hidden: int) -> Plan | None:
    vector, item, rows = 4, 4, gates * units
    members = -(-hidden // units)
    limit = cuda.threads(device, PERSISTENT_BLOCK)
    parts = limit // ROW_LANES * vector  # numbers of h that the threads take at a time
    depth = -(-hidden // parts)
    if rows % ROW_LANES or members > device.multiprocessors or hidden > limit * vector:
        return None
    if depth > (DEPTHS if units > 4 else DEPTHS - 1):  # with 3 rows a lane, more than 255 registers
        return None
    groups = min(batch, device.multiprocessors // members)
    most = -(-batch // groups)
    forward = cuda.WARP * -(-hidden // (depth * vector * cuda.WARP // ROW_LANES))
    fixed = most * (rows + units) + 2 * rows
    each = forward // cuda.WARP * rows
    at_a_time = min(most, PASS, (device.shared_memory // item - fixed) // each)
    shared_backward = item * (most * (rows + 8 * units) + max(most * units, limit * vector))
    if at_a_time < 1 or shared_backward > device.shared_memory:
        return None
    return Plan(
        units, depth, members, groups, most, at_a_time, forward, limit, item * (fixed + at_a_time * each),
        shared_backward,
    )  # fmt: skip


def counters(device: cuda.Device, plan: Plan | None) -> Array | None:
    """Return the counters of the groups' barriers, at 0."""
    return None if plan is None else cuda.zeros(device, (plan.groups, COUNTER_STRIDE), np.uint32)


def partial_sums(device: cuda.Device, plan: Plan | None, hidden: int) -> Array | None:
    """Return room for what each block gives to the gradient of h, for two steps."""
    return None if plan is None else device.xp.empty((2, plan.blocks, plan.most, hidden), np.float32)
