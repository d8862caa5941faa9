"""What batch normalisation computes of each channel between its two passes.

batch_norm_gpu.py takes these functions; batch_norm_cpu.py has the same operations, in this order, in compiled code,
where they take 2 us in place of 20.

A pass sums up two terms of each element, u and u d with d = x - shift: u = d forward, u = dy backward. The other writes
(x - centre) scale + constant forward, and dy scale + (x - centre) slope + constant backward. centre is the mean
rounded to the arrays' dtype; what that loses goes into the constant. Arrays here are (C,), float64 but for those passed
on to a kernel. Only operators are used: nothing waits for a device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class Coefficients(NamedTuple):
    """Arrays (C,) of the dtype of x; slope is None forward."""

    centre: Array
    scale: Array
    constant: Array
    slope: Array | None = None


def statistics(shift: Array, sums: Array, square_sums: Array, count: int) -> tuple[Array, Array]:
    """Return mean and variance of each channel from the sums of d = x - shift and of its squares.

    shift is an entry of the channel: what cancels is at most a factor of `count`, of a double's 16 digits.
    """
    ahead = sums / count
    variance = square_sums / count - ahead * ahead
    return ahead + shift, variance * (variance > 0)  # a rounding below 0 is 0; NaN stays


def update(running: tuple[Array, Array], mean: Array, variance: Array, count: int, momentum: float) -> None:
    """Move the running mean and variance towards those of a batch, of which the variance is made unbiased."""
    for kept, new in zip(running, (mean, variance * (count / (count - 1))), strict=True):
        kept[...] = (kept * (1 - momentum) + new * momentum).astype(kept.dtype)


def rstd_of(variance: Array, eps: float) -> Array:
    return 1.0 / (variance + eps) ** 0.5


def forward(mean: Array, rstd: Array, weight: Array, bias: Array) -> Coefficients:
    """Return what makes y = weight xhat + bias of x."""
    dtype = weight.dtype
    centre, scale = mean.astype(dtype), rstd * weight
    return Coefficients(centre, scale.astype(dtype), (bias - (mean - centre) * scale).astype(dtype))


def backward(
    mean: Array, rstd: Array, weight: Array, centre: Array, sums: Array, products: Array, count: int
) -> tuple[Coefficients, Array]:
    """Return what makes dx of dy and x in training, and dweight in float64; sums of dy and dy (x - centre)."""
    dtype = weight.dtype
    low, scale = mean - centre, rstd * weight
    dweight = (products - low * sums) * rstd
    slope = scale * rstd * dweight * (-1.0 / count)
    constant = scale * sums * (-1.0 / count) - slope * low
    return Coefficients(centre, scale.astype(dtype), constant.astype(dtype), slope.astype(dtype)), dweight
