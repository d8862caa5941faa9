"""Activations with their derivatives: contracts and checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgrad._arrays import Array, empty
from fastgrad._checks import finish, float_array, float_array_like, number, output
from fastgrad._dispatch import kernels

# kind -> its parameters with their defaults, in the order that the kernels take them.
KINDS: dict[str, dict[str, float]] = {
    "identity": {},
    "relu": {},
    "leaky_relu": {"negative_slope": 0.01},
    "relu6": {},
    "hardtanh": {"min_val": -1.0, "max_val": 1.0},
    "elu": {"alpha": 1.0},
    "celu": {"alpha": 1.0},
    "selu": {},
    "gelu": {},
    "gelu_tanh": {},
    "silu": {},
    "mish": {},
    "softplus": {"beta": 1.0},
    "softsign": {},
    "sigmoid": {},
    "logsigmoid": {},
    "tanh": {},
    "hardsigmoid": {},
    "hardswish": {},
}
_DEFAULTS: dict[str, tuple[float, ...]] = {kind: tuple(defaults.values()) for kind, defaults in KINDS.items()}


# What rounds to 0 in float32, and the last that does not round to infinity.
_NOTHING, _LARGEST = 2.0**-150, float(np.finfo(np.float32).max)


def parameters_of(kind: Any, given: dict[str, Any], x: Array) -> tuple[float, ...]:
    """Return all parameters of a kind for `x` in the order of the kernels, by default where none is given."""
    if not given and type(kind) is str and kind in _DEFAULTS:
        return _DEFAULTS[kind]
    if not isinstance(kind, str):
        raise TypeError(f"kind: expected a string, got {type(kind).__qualname__}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    defaults = KINDS[kind]
    for name in given:
        if name not in defaults:
            takes = f"takes {', '.join(defaults)}" if defaults else "takes no parameters"
            raise TypeError(f"{name}: {kind} {takes}")
    values = {name: number(name, given.get(name, default)) for name, default in defaults.items()}
    if kind == "celu" and values["alpha"] == 0:
        raise ValueError("alpha: expected a number other than 0 for celu, got 0.0")
    if kind == "softplus" and values["beta"] <= 0:
        raise ValueError(f"beta: expected a number > 0 for softplus, got {values['beta']}")
    if kind == "hardtanh" and values["min_val"] > values["max_val"]:
        raise ValueError(f"min_val: expected at most max_val = {values['max_val']}, got {values['min_val']}")
    if x.dtype == np.float32:
        # 0 times infinity, and 0 divided by 0, are NaN; torch refuses such numbers too.
        low = _NOTHING if kind in ("celu", "softplus") else -1.0
        for name, value in values.items():
            if not low < abs(value) <= _LARGEST:
                raise ValueError(f"{name}: expected a number in the range of float32, the dtype of x, got {value!r}")
    return tuple(values.values())


def activation(x: Array, kind: str, *, out: Array | None = None, **params: float) -> Array:
    """Apply an activation to every entry.

    ============================================ ==========================================================
    kind and its parameters                      y
    ============================================ ==========================================================
    identity                                     x
    relu                                         max(x, 0)
    leaky_relu(negative_slope=0.01)              x if x > 0 else negative_slope x
    relu6                                        min(max(x, 0), 6)
    hardtanh(min_val=-1, max_val=1)              min(max(x, min_val), max_val)
    elu(alpha=1)                                 x if x > 0 else alpha (exp(x) - 1)
    celu(alpha=1)                                x if x > 0 else alpha (exp(x / alpha) - 1)
    selu                                         1.0507... elu(x, alpha=1.6732...)
    gelu                                         x Phi(x), Phi the distribution function of the normal law
    gelu_tanh                                    x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
    silu                                         x sigmoid(x)
    mish                                         x tanh(log(1 + exp(x)))
    softplus(beta=1)                             log(1 + exp(beta x)) / beta
    softsign                                     x / (1 + abs(x))
    sigmoid                                      1 / (1 + exp(-x))
    logsigmoid                                   -log(1 + exp(-x))
    tanh                                         tanh(x)
    hardsigmoid                                  min(max(x + 3, 0), 6) / 6
    hardswish                                    x min(max(x + 3, 0), 6) / 6
    ============================================ ==========================================================

    The meaning is that of torch.nn.functional, with two differences: softplus is exact for every x (torch turns to a
    straight line at beta x > 20), and x = +-inf gives the limit where torch gives NaN (gelu(-inf) is 0). NaN gives NaN.

    Args:
        x: any shape, float32 or float64. A strided array is copied first.
        kind: a name of the table.
        out: array of the shape and dtype of x that receives y. It may be x, and may not overlap it otherwise.
        params: the parameters of the kind, finite numbers in the dtype of x.

    Returns:
        y, the shape and dtype of x; `out` itself where it is given.

    Raises:
        TypeError: x or out is no array, or not float32 or float64; a parameter that the kind does not have.
        ValueError: the kind is not known, a parameter is out of its range (celu: alpha other than 0; softplus:
            beta > 0; hardtanh: min_val <= max_val), out has another shape, is read-only or overlaps x.

    Sources: ELU, Clevert et al. 2016; CELU, Barron 2017; SELU, Klambauer et al. 2017; GELU, Hendrycks and Gimpel 2016;
    SiLU, Elfwing et al. 2018; Mish, Misra 2019; hardswish, Howard et al. 2019.
    """
    source = float_array("x", x)
    values = parameters_of(kind, params, source)
    y = empty(x.shape, x.dtype, source) if out is None else output("out", out, "x", x, aliases=(("x", x),))
    kernels("activation", source).activation(source, kind, values, y)
    return y if out is None else finish(out, y)


def activation_backward(
    dy: Array, x: Array, kind: str, *, out: Array | None = None, bias_grad: Array | None = None, **params: float
) -> Array:
    """Multiply a gradient by the derivative of an activation, dx = dy f'(x), and sum it up for a bias in the same pass.

    The derivative is right to a few units in the last place wherever it is not itself near a zero crossing, also far
    out in the tails, where frameworks return 0. At a kink it is torch's: 0 for relu, relu6, hardtanh and hardsigmoid,
    negative_slope for leaky_relu, alpha for elu, 0 at -3 and 1 at 3 for hardswish. At x = +-inf it is the limit.

    The product is an IEEE product: NaN in dy gives NaN, and so does an infinite dy where f'(x) = 0. NaN in x gives NaN
    for every kind but identity, which does not look at x.

    Args:
        dy: gradient of y, any shape, float32 or float64.
        x: what the activation was applied to, the shape and dtype of dy.
        kind: as in `activation`.
        out: array of the shape and dtype of x that receives dx. It may be dy or x, and may not overlap them otherwise.
        bias_grad: C-contiguous array (N,), N the last axis of x, of the dtype of x. Overwritten with the sum of dx over
            all axes but the last, which has the same bits for any number of threads. May not overlap the other arrays.
        params: as in `activation`.

    Returns:
        dx, the shape and dtype of x; `out` itself where it is given.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of x; a parameter that the kind
            does not have.
        ValueError: the kind is not known, a parameter is out of its range, a shape does not fit, an output is read-only
            or overlaps.
    """
    source = float_array("x", x)
    values = parameters_of(kind, params, source)
    gradient = float_array_like("dy", dy, "x", source)
    dx = empty(x.shape, x.dtype, source) if out is None else output("out", out, "x", x, aliases=(("dy", dy), ("x", x)))
    total = None
    if bias_grad is not None:
        if x.ndim == 0:
            raise ValueError("bias_grad: x has no axes, so there is no last one to keep; leave bias_grad out")
        apart = [("dy", dy), ("x", x)] if out is None else [("dy", dy), ("x", x), ("out", out)]
        total = output("bias_grad", bias_grad, "x", x, shape=x.shape[-1:], apart=apart)
    kernels("activation", source).activation_backward(gradient, source, kind, values, dx, total)
    if total is not None:
        finish(bias_grad, total)
    return dx if out is None else finish(out, dx)


def _by_channel(x: Array, weight: Any) -> tuple[Array, Array]:
    weight = float_array_like("weight", weight, "x", x, shape=np.shape(weight))
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.shape == (1,):
        return x.reshape(1, 1, x.size), weight
    if weight.shape != (channels,):
        per_channel = f" or ({channels},), one per channel on axis 1 of x {x.shape}" if x.ndim > 1 else ""
        raise ValueError(f"weight: expected shape (1,){per_channel}, got {weight.shape}")
    inner = 1
    for size in x.shape[2:]:
        inner *= size
    return x.reshape(x.shape[0], channels, inner), weight


def prelu(x: Array, weight: Array, *, out: Array | None = None) -> Array:
    """Apply y = x where x > 0, else weight x, with a learned weight (PReLU; He et al., 2015).

    Args:
        x: any shape, float32 or float64.
        weight: (1,), or (C,) with one weight per channel, C the size of axis 1 of x; the dtype of x.
        out: array of the shape and dtype of x that receives y. It may be x, and may not overlap it otherwise.

    Returns:
        y, the shape and dtype of x; `out` itself where it is given. NaN gives NaN.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of x.
        ValueError: a shape does not fit, out is read-only or overlaps.
    """
    source = float_array("x", x)
    x3, w = _by_channel(source, weight)
    y = output("out", out, "x", x, aliases=(("x", x),), apart=(("weight", weight),))
    kernels("prelu", source).prelu(x3, w, y.reshape(x3.shape))
    return finish(out, y)


def prelu_backward(dy: Array, x: Array, weight: Array, *, out: Array | None = None) -> tuple[Array, Array]:
    """Return the gradients of `prelu`: dx = dy (1 where x > 0, else weight), dweight = sum of dy min(x, 0).

    Args:
        dy: gradient of y, the shape and dtype of x.
        x, weight: as in `prelu`.
        out: array of the shape and dtype of x that receives dx. It may be dy or x, and may not overlap them otherwise.

    Returns:
        dx, the shape of x (`out` itself where it is given), and dweight, the shape of weight, summed in a fixed order:
        the same bits for any number of threads. NaN in x or dy gives NaN in both.

    Raises:
        TypeError, ValueError: as in `prelu`.
    """
    source = float_array("x", x)
    gradient = float_array_like("dy", dy, "x", source)
    x3, w = _by_channel(source, weight)
    dx = output("out", out, "x", x, aliases=(("dy", dy), ("x", x)), apart=(("weight", weight),))
    dweight = empty(w.shape, w.dtype, w)
    kernels("prelu", source).prelu_backward(gradient.reshape(x3.shape), x3, w, dx.reshape(x3.shape), dweight)
    return finish(out, dx), dweight
