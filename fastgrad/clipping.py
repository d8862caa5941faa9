"""Norms of gradients and clipping: contracts and checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from fastgrad._arrays import array_module
from fastgrad._checks import Array, number
from fastgrad._dispatch import list_kernels, on_device
from fastgrad._tensor_lists import TensorGroups

# As in torch.nn.utils.clip_grad_norm_: keeps the coefficient finite for a norm of 0.
NORM_EPS = 1e-6


_ORDERS = {1: 1.0, 2: 2.0, math.inf: math.inf}


def _order(value: Any) -> float:
    known = _ORDERS.get(value) if type(value) in (int, float) else None
    if known is not None:
        return known
    order = number("ord", value, finite=False)
    if order not in (1.0, 2.0, math.inf):
        raise ValueError(f"ord: expected 1, 2 or inf, got {value!r}")
    return order


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Return min(1, max_norm / (norm + 1e-6)); NaN for a NaN norm."""
    coefficient = max_norm / (norm + NORM_EPS)
    # Written so that NaN falls through: min(1.0, nan) is 1.0.
    return 1.0 if coefficient >= 1.0 else coefficient


def first_nonfinite(name: str, arrays: Sequence[Array]) -> str:
    """Name the first array with a NaN or an Inf, for an error: "grads[3] (64, 128)"."""
    for k, a in enumerate(arrays):
        if not array_module(a).isfinite(a).all():
            return f"{name}[{k}] {a.shape}"
    return f"no single entry of {name}: their norm overflows"


def as_scalar(norm: float | Array) -> Array:
    """Return a 0-d array of a host number; one that lies on a device as it is."""
    return np.array(norm) if isinstance(norm, float) else norm


def global_norm(grads: Array | list[Array], ord: float = 2) -> Array:
    """Return the norm of all entries of a list of arrays, as if they were one long vector.

    ord 1: sum of |g|; 2: sqrt(sum of g^2); inf: max of |g|. Computed in double precision and scaled where needed, so
    that no input overflows or underflows it; summed in a fixed order, so that every run and any number of threads give
    the same bits. NaN anywhere gives NaN, and otherwise Inf anywhere gives Inf. No arrays, or empty ones, give 0. On
    a GPU subnormal float32 numbers are taken for 0.

    Args:
        grads: one array or a list of arrays of any shapes, float32 or float64, all of one dtype.
        ord: 1, 2 or inf.

    Returns:
        0-d float64 array, for float32 gradients too, on their device; nothing waits for it.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others.
        ValueError: another ord.
    """
    order = _order(ord)
    groups = TensorGroups("grads", grads)
    norm = list_kernels("norm", groups.lists[0]).global_norm(groups.lists[0], order)
    groups.done()
    return as_scalar(norm)


def clip_by_global_norm(
    grads: Array | list[Array], max_norm: float, *, ord: float = 2, error_if_nonfinite: bool = False
) -> Array:
    """Scale gradients in place by min(1, max_norm / (norm + 1e-6)), norm their global norm (Pascanu et al., 2013).

    Nothing is written where the norm is below max_norm: the gradients keep their bits. A NaN norm makes every gradient
    NaN; an infinite one makes them 0, and NaN where they were infinite, as torch.nn.utils.clip_grad_norm_ does.

    Args:
        grads: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; changed in place.
            Each array once: they may not overlap.
        max_norm: at least 0; inf never clips.
        ord: 1, 2 or inf.
        error_if_nonfinite: raise, with the gradients unchanged, if the norm is NaN or Inf. With CuPy arrays this alone
            waits for the device.

    Returns:
        The norm before clipping, 0-d float64 array, on the device of the gradients.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others.
        ValueError: another ord, max_norm negative or NaN, a gradient is read-only or overlaps another.
        RuntimeError: the norm is not finite and error_if_nonfinite is set; names the first array at fault.
    """
    order = _order(ord)
    max_norm = number("max_norm", max_norm, 0.0, finite=False)
    groups = TensorGroups("grads!", grads)
    checked = groups.lists[0]
    if not checked:
        return np.array(0.0)
    device = on_device(checked)
    if device:
        norm, coefficients = list_kernels("norm", checked).clip_all(checked, order, max_norm)
    else:
        norm = list_kernels("norm", checked).global_norm(checked, order)
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(
            f"grads: the norm of order {order:g} is {float(norm)}, first in {first_nonfinite('grads', checked)}; "
            f"set error_if_nonfinite=False to scale them nevertheless"
        )
    if device:
        list_kernels("clip", checked).scale(checked, coefficients, each=False)
    else:
        coefficient = clip_coefficient(norm, max_norm)
        if coefficient != 1.0:
            list_kernels("clip", checked).scale(checked, [coefficient] * len(checked))
    groups.done()
    return as_scalar(norm)


@overload
def clip_by_norm(arrays: Array | list[Array], max_norm: float, *, axis: None = None) -> Array: ...
@overload
def clip_by_norm(arrays: Array | list[Array], max_norm: float, *, axis: int) -> list[Array]: ...
def clip_by_norm(arrays: Array | list[Array], max_norm: float, *, axis: int | None = None) -> Array | list[Array]:
    """Scale each array in place by min(1, max_norm / (norm + 1e-6)), norm being its own l2 norm.

    With axis=0 each row alone: the entries that share an index of axis 0, which are the weights into one unit of a
    layer (Srivastava et al., Dropout, 2014: max-norm regularisation). An array of fewer than two axes is one row.

    On parameters this is weight clipping. What has a norm below max_norm keeps its bits; a NaN or infinite norm acts on
    its own array or row only, as in `clip_by_global_norm`.

    Args:
        arrays: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; changed in place.
            Each array once: they may not overlap.
        max_norm: at least 0; inf never clips.
        axis: None or 0.

    Returns:
        The norms before clipping, float64 (number of arrays,), on the device of the arrays; with axis=0 a list of the
        norms of each array's rows, float64 (rows,).

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others.
        ValueError: max_norm negative or NaN, another axis, an array is read-only or overlaps another.
    """
    max_norm = number("max_norm", max_norm, 0.0, finite=False)
    checked_axis("axis", axis)
    groups = TensorGroups("arrays!", arrays)
    norms = clip_norms(groups.lists[0], max_norm, axis)
    groups.done()
    return norms


def checked_axis(name: str, axis: Any) -> int | None:
    """Return None or 0, what norms can be taken along; raise ValueError for anything else."""
    if axis is None or (type(axis) is int and axis == 0):
        return axis
    raise ValueError(f"{name}: expected None (of each array) or 0 (of each row), got {axis!r}")


def clip_norms(checked: Sequence[Array], max_norm: float, axis: int | None) -> Array | list[Array]:
    """Clip a checked list as `clip_by_norm` does."""
    if not checked:
        return np.zeros(0) if axis is None else []
    if axis is not None:
        return list_kernels("units", checked).clip_units(checked, max_norm)
    if on_device(checked):
        norms, coefficients = list_kernels("norm", checked).clip_each(checked, max_norm)
        list_kernels("clip", checked).scale(checked, coefficients, each=True)
        return norms
    norms = list_kernels("norm", checked).tensor_norms(checked, 2.0)
    list_kernels("clip", checked).scale(checked, [clip_coefficient(norm, max_norm) for norm in norms.tolist()])
    return norms


def adaptive_clip(
    grads: Array | list[Array], params: Array | list[Array], clipping: float = 0.01, eps: float = 1e-3
) -> None:
    """Scale each unit of the gradients in place so that its norm is at most `clipping` times that of its weights.

        G_i = G_i * min(1, clipping * max(|W_i|, eps) / |G_i|),    | | the l2 norm of a unit

    A unit is what shares an index of axis 0: a row of a matrix, an output channel of a convolution with all its other
    axes together. An array of fewer than two axes is one unit. One launch for any number of arrays; a unit below its
    limit keeps its bits. A NaN or infinite |G_i| acts on its own unit only: NaN all over it, or 0 where it was finite;
    so does a NaN in its weights.

    Brock, De, Smith & Simonyan, High-Performance Large-Scale Image Recognition Without Normalization, 2021; they leave
    the last layer out of it.

    Args:
        grads: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; changed in place.
            Each array once: they may not overlap each other or params.
        params: as many arrays of the same shapes and dtype.
        clipping: at least 0.
        eps: at least 0; weights near 0 may still be learned.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others.
        ValueError: clipping or eps negative or not finite, lengths or shapes differ, a gradient is read-only or
            overlaps another array.
    """
    clipping, eps = number("clipping", clipping, 0.0), number("eps", eps, 0.0)
    groups = TensorGroups("grads! params", grads, params)
    checked, weights = groups.lists
    if checked:
        list_kernels("units", checked).adaptive_clip(checked, weights, clipping, eps)
    groups.done()


def clip_by_value(arrays: Array | list[Array], low: float, high: float) -> None:
    """Clamp every entry in place: a = min(max(a, low), high). NaN stays NaN; Inf becomes the bound.

    On parameters this is weight clipping.

    Args:
        arrays: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; changed in place.
            Each array once: they may not overlap.
        low, high: numbers, low <= high; -inf and inf leave that side open.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others.
        ValueError: low > high, a bound is NaN, an array is read-only or overlaps another.
    """
    low, high = _bounds("low", low, "high", high)
    groups = TensorGroups("arrays!", arrays)
    checked = groups.lists[0]
    if checked:
        list_kernels("clip", checked).clip_by_value(checked, low, high)
        groups.done()


def _bounds(low_name: str, low: Any, high_name: str, high: Any) -> tuple[float, float]:
    low, high = number(low_name, low, finite=False), number(high_name, high, finite=False)
    if low > high:
        raise ValueError(f"{low_name}: expected at most {high_name} = {high}, got {low}")
    return low, high


# Entries of a parameter group that limit the weights after a step, None where they don't.
PROJECTION = ("weight_range", "max_weight_norm", "weight_norm_axis")


def check_projection(group: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for limits of the weights that make no sense."""
    bounds, limit, axis = (group[key] for key in PROJECTION)
    if bounds is not None:
        if not isinstance(bounds, tuple | list) or len(bounds) != 2:
            raise ValueError(f"weight_range: expected two numbers (low, high) or None, got {bounds!r}")
        _bounds("weight_range[0]", bounds[0], "weight_range[1]", bounds[1])
        if limit is not None:
            raise ValueError("weight_range: expected None beside max_weight_norm; give one of the two")
    if limit is not None:
        number("max_weight_norm", limit, 0.0, finite=False)
    checked_axis("weight_norm_axis", axis)
    if axis is not None and limit is None:
        raise ValueError("weight_norm_axis: needs max_weight_norm, got None")


def weight_range(group: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the range that the weights of a group are held to, which an update takes along."""
    bounds = group["weight_range"]
    return None if bounds is None else (float(bounds[0]), float(bounds[1]))


def project(checked: Sequence[Array], group: Mapping[str, Any]) -> None:
    """Bring a checked list of parameters back below the norm that their group sets."""
    _, limit, axis = (group[key] for key in PROJECTION)
    if limit is not None:
        clip_norms(checked, float(limit), axis)
