"""Launch what may come between the steps of an LSTM or GRU on a device; see between_steps.cu."""

from __future__ import annotations

import math
from typing import Any

from . import cuda
from .between_steps_ref import DROPOUT_H, DROPOUT_X, ZONEOUT_C, ZONEOUT_H, Noise, threshold_of
from .dropout_gpu import dropout

Array = Any

STEP_BLOCK = 128  # as of the steps themselves, see recurrent_gpu.py
MOST_STEP_BLOCKS = 1024  # blocks along the steps: more than the largest device has room for

_ZONES = (
    "lengths: i64*?, seed: u64, offset_h: u64, offset_c: u64, threshold_h: u32, threshold_c: u32, p_h: A, p_c: A, "
    "random: i32, t: i64, batch: i64, hidden: i64"
)
_MASK_STEPS = cuda.Kernel("between_steps", "fg_mask_steps", "a: T*, mask: T*, out: T*, steps: i64, n: i64")
_ZONEOUT = cuda.Kernel("between_steps", "fg_zoneout", f"h: T*, c: T*?, y: T*, {_ZONES}, reverse: i32")
_ZONEOUT_BACKWARD = cuda.Kernel(
    "between_steps", "fg_zoneout_backward", f"dh: T*, dc: T*?, dy: T*?, kept_h: T*, kept_c: T*?, {_ZONES}"
)
_FINISH_STEP = cuda.Kernel(
    "between_steps",
    "fg_finish_step",
    "dh: T*, dc: T*?, products: T*?, mask: T*?, kept_h: T*?, kept_c: T*?, lengths: i64*?, bound: A, overwrite: i32, "
    "t: i64, batch: i64, hidden: i64",
)


class Between:
    """What comes between the steps of one call; nothing is launched for what is not asked for.

    Args:
        state: an array (..., B, H) of the layer's dtype.
        states: 2 for h and c, 1 for h.
        bound: of the state's gradient; only in a backward call.
    """

    def __init__(
        self,
        noise: Noise | None,
        state: Array,
        states: int,
        lengths: Array | None,
        reverse: bool = False,
        bound: float | None = None,
    ) -> None:
        self._device, self._dtype, self._noise = cuda.device_of(state), state.dtype, noise
        self._shape, self._states, self._lengths = state.shape[-2:], states, lengths
        self._reverse, self._bound = reverse, bound
        self._block = cuda.threads(self._device, STEP_BLOCK)
        self._grid = cuda.blocks(math.prod(self._shape), self._block)
        empty = self._device.xp.empty
        self._zones = noise is not None and noise.zones
        self.mask_h = mask_h(noise, state)
        self._product: Any = None if self.mask_h is None else empty(self._shape, self._dtype)
        self._kept = [empty(self._shape, self._dtype) if self._zones else None for _ in range(states)]

    def _random(self) -> tuple[Any, ...]:
        noise = self._noise
        assert noise is not None
        random = noise.training
        thresholds = [threshold_of(p) if random else 0 for p in (noise.zoneout_h, noise.zoneout_c)]
        offsets = noise.counter(ZONEOUT_H), noise.counter(ZONEOUT_C)
        return self._lengths, noise.seed, *offsets, *thresholds, noise.zoneout_h, noise.zoneout_c, random

    def entering(self, h: Array) -> Array:
        """Return h (B, H) as it enters the products of a step."""
        if self.mask_h is None:
            return h
        return masked_steps(h[None], self.mask_h, self._product[None])[0]

    def after(self, t: int, h: Array, c: Array | None, y: Array) -> None:
        """Mix the state (T + 1, B, H) that step t has written with the one before, and write y."""
        if self._zones:
            _ZONEOUT(
                self._device, self._dtype, self._grid, self._block, h, c, y, *self._random(), t, *self._shape,
                self._reverse,
            )  # fmt: skip

    def before_backward(self, t: int, dh: Array, dc: Array | None, dy: Array | None) -> Array | None:
        """Take from dh and dc (B, H) what goes past step t, and return the dy that is left for the step."""
        if not self._zones:
            return dy
        kept_c = self._kept[1] if self._states == 2 else None
        _ZONEOUT_BACKWARD(
            self._device, self._dtype, self._grid, self._block, dh, dc, dy, self._kept[0], kept_c, *self._random(), t,
            *self._shape,
        )  # fmt: skip
        return None

    def leaving(self, dh: Array) -> Array:
        """Return where the product goes that gives the gradient of `entering`: dh itself without a mask."""
        return dh if self.mask_h is None else self._product

    def after_backward(self, t: int, dh: Array, dc: Array | None, overwrite: bool) -> None:
        """Finish dh and dc (B, H); overwrite: dh holds nothing but the product, wherever that is."""
        if self.mask_h is None and not self._zones and self._bound is None:
            return
        kept_c = self._kept[1] if self._states == 2 else None
        bound = math.inf if self._bound is None else self._bound
        _FINISH_STEP(
            self._device, self._dtype, self._grid, self._block, dh, dc, self._product, self.mask_h, self._kept[0],
            kept_c, self._lengths, bound, overwrite, t, *self._shape,
        )  # fmt: skip


def mask_h(noise: Noise | None, state: Array) -> Array | None:
    """Return m_h (B, H) of a state (..., B, H), None where nothing is dropped."""
    return _drawn(noise, DROPOUT_H, noise.dropout_h, state) if noise and noise.drops_h else None


def mask_x(noise: Noise | None, x: Array) -> Array | None:
    """Return m_x (B, I) of x (T, B, I), None where nothing is dropped."""
    return _drawn(noise, DROPOUT_X, noise.dropout_x, x) if noise and noise.drops_x else None


def _drawn(noise: Noise, stream: int, p: float, like: Array) -> Array:
    ones = cuda.device_of(like).xp.empty(like.shape[-2:], like.dtype)
    cuda.fill(1, ones)
    flat = ones.reshape(-1)
    dropout(flat, threshold_of(p), 1.0 / (1.0 - p), noise.seed, noise.counter(stream), flat)
    return ones


def masked_steps(x: Array, mask: Array | None, out: Array | None = None) -> Array:
    """Return x (T, B, N) times a mask (B, N) at each step, in `out`, which may be x; x itself without a mask."""
    if mask is None:
        return x
    device = cuda.device_of(mask)
    if out is None:
        out = device.xp.empty(x.shape, x.dtype)
    block = cuda.threads(device)
    grid = cuda.blocks(mask.size, block), min(x.shape[0], MOST_STEP_BLOCKS)
    _MASK_STEPS(device, x.dtype, grid, block, x, mask, out, x.shape[0], mask.size)
    return out
