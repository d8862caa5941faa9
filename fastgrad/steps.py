"""Optimizer steps on lists of arrays: contracts and checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad._checks import Array, flag, number
from fastgrad._dispatch import kernels, list_kernels, on_device
from fastgrad._tensor_lists import TensorGroups, tensor_list
from fastgrad.clipping import clip_coefficient

if TYPE_CHECKING:
    from fastgrad.gradient_norm import GradientNorm

Arrays = Array | list[Array]


_STEPS = {stem: f"{stem}_step" for stem in ("adam", "sgd", "rmsprop")}


def _run(
    stem: str,
    groups: TensorGroups,
    grads: Arrays,
    settings: tuple[Any, ...],
    grad_scale: float | None,
    max_norm: float | None,
    gradient_norm: GradientNorm | None,
) -> Array | None:
    """Run the kernel of a step: its lists, settings, and the factor of the gradients. Return their norm if it is asked.

    Args:
        grads: the gradients as they were given.
        settings: what the kernel takes between its lists and that factor, lists of state among it.
    """
    unscale = 1.0 if grad_scale is None else 1.0 / number("grad_scale", grad_scale, 0.0, open_low=True)
    params, checked = groups.lists[:2]
    step = getattr(list_kernels(stem, params), _STEPS[stem])
    norm: float | Array | None = None
    scale: float | Array = unscale
    if max_norm is not None:
        limit = number("max_norm", max_norm, 0.0, finite=False)
        if gradient_norm is None and groups.tabled:
            norm = step(params, checked, *settings, unscale, limit)
            groups.done()
            return np.array(norm)
        if gradient_norm is not None:
            from fastgrad.gradient_norm import checked_gradient_norm

            found = checked_gradient_norm(gradient_norm)._health(tensor_list("grads", grads), checked, use_up=True)
            norm = kernels("norm").norm_of_norms(found[0], 2.0) * unscale
            scale = clip_coefficient(norm, limit) * unscale
        elif on_device(checked):
            norm, scale = list_kernels("norm", checked).clip_all(checked, 2.0, limit, unscale)
        else:
            norm = list_kernels("norm", checked).global_norm(checked, 2.0) * unscale if checked else 0.0
            scale = clip_coefficient(norm, limit) * unscale
    if params:
        step(params, checked, *settings, scale)
        groups.done()
    return norm if norm is None or on_device(checked) else np.array(norm)


def _step_number(value: Any) -> int:
    if type(value) is not int:
        if isinstance(value, bool) or not isinstance(value, np.integer):
            raise TypeError(f"step: expected an integer, got {type(value).__qualname__}")
        value = int(value)
    if value < 1:
        raise ValueError(f"step: expected an integer >= 1 (the first step is 1), got {value}")
    return value


def adam_step(
    params: Arrays,
    grads: Arrays,
    exp_avg: Arrays,
    exp_avg_sq: Arrays,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = True,
    max_exp_avg_sq: Arrays | None = None,
    maximize: bool = False,
    grad_scale: float | None = None,
    max_norm: float | None = None,
    gradient_norm: GradientNorm | None = None,
) -> Array | None:
    """Make one Adam step in place on params and state (Kingma and Ba, 2015), with clipping inside the same pass.

    With t = step and (b1, b2) = betas, in the dtype of the arrays:

        g = grad c / grad_scale,  sign flipped if maximize;  c = min(1, max_norm / (norm + 1e-6)), 1 without max_norm
        p = p (1 - lr weight_decay)             if decoupled (AdamW; Loshchilov and Hutter, 2019)
        g = g + weight_decay p                  otherwise
        m = b1 m + (1 - b1) g
        v = b2 v + (1 - b2) g^2
        u = max(u, v) with max_exp_avg_sq (AMSGrad; Reddi et al., 2018), u = v without
        p = p - lr / (1 - b1^t) m / (sqrt(u) / sqrt(1 - b2^t) + eps)

    which is torch.optim.Adam (decoupled=False) and torch.optim.AdamW (decoupled=True).

    A gradient that is not finite reaches its entry of params and state as NaN or Inf; with max_norm, a norm of NaN
    reaches every entry and an infinite one turns finite gradients into 0, as torch.nn.utils.clip_grad_norm_ does.

    Args:
        params: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; changed in place.
        grads: gradients, the shapes of params; read only, also when they are clipped.
        exp_avg, exp_avg_sq: m and v, the shapes of params, zeros before the first step; changed in place.
        step: number of this step, from 1.
        lr: learning rate, at least 0.
        betas: decay rates of m and v, each in [0, 1).
        eps: at least 0.
        weight_decay: at least 0.
        decoupled: decay the parameters themselves (AdamW) instead of adding to the gradient.
        max_exp_avg_sq: u, the shapes of params, zeros before the first step; changed in place. None: no AMSGrad.
        maximize: climb instead of descend.
        grad_scale: factor that the gradients carry (loss scaling), above 0; they are divided by it. None: 1.
        max_norm: clip to this global l2 norm, at least 0; the norm is taken of the gradients divided by grad_scale.
        gradient_norm: what it was fed of grads is not read again for the norm; see `GradientNorm`. Without max_norm it
            is not used.

    Returns:
        With max_norm the norm before clipping, 0-d float64 array, on the device of the gradients; None without.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others; a number, flag or
            gradient_norm has a wrong type.
        ValueError: lengths or shapes differ, a number is out of its range, a changed array is read-only or overlaps
            another array of the call.
    """
    step = _step_number(step)
    lr = number("lr", lr, 0.0)
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise TypeError(f"betas: expected a pair of numbers, got {betas!r}") from None
    beta1 = number("betas[0]", beta1, 0.0, 1.0, open_high=True)
    beta2 = number("betas[1]", beta2, 0.0, 1.0, open_high=True)
    eps = number("eps", eps, 0.0)
    weight_decay = number("weight_decay", weight_decay, 0.0)
    decoupled, maximize = flag("decoupled", decoupled), flag("maximize", maximize)
    words = "params! grads exp_avg! exp_avg_sq!"
    if max_exp_avg_sq is None:
        groups = TensorGroups(words, params, grads, exp_avg, exp_avg_sq)
    else:
        groups = TensorGroups(f"{words} max_exp_avg_sq!", params, grads, exp_avg, exp_avg_sq, max_exp_avg_sq)
    lists = groups.lists
    settings = (
        lists[2],
        lists[3],
        lists[4] if max_exp_avg_sq is not None else None,
        step,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        decoupled,
        maximize,
    )
    return _run("adam", groups, grads, settings, grad_scale, max_norm, gradient_norm)


def sgd_step(
    params: Arrays,
    grads: Arrays,
    momentum_buffer: Arrays | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float | None = None,
    max_norm: float | None = None,
    gradient_norm: GradientNorm | None = None,
) -> Array | None:
    """Make one step of stochastic gradient descent in place on params and momentum_buffer, clipping in the same pass.

    In the dtype of the arrays:

        g = grad c / grad_scale,  sign flipped if maximize;  c = min(1, max_norm / (norm + 1e-6)), 1 without max_norm
        g = g + weight_decay p
        b = momentum b + (1 - dampening) g
        p = p - lr (g + momentum b)   with nesterov (Sutskever et al., 2013)
        p = p - lr b                  with momentum_buffer
        p = p - lr g                  without

    which is torch.optim.SGD: a buffer of zeros and dampening=0 in the first step give torch's first step.

    A gradient that is not finite reaches its entry of params and buffer; with max_norm as in `adam_step`.

    Args:
        params: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; changed in place.
        grads: gradients, the shapes of params; read only, also when they are clipped.
        momentum_buffer: b, the shapes of params; changed in place. Needed where momentum is not 0.
        lr: learning rate, at least 0.
        momentum: at least 0.
        dampening: share of the gradient kept out of the buffer.
        nesterov: look ahead; needs momentum above 0 and no dampening.
        weight_decay: at least 0.
        maximize: climb instead of descend.
        grad_scale: factor that the gradients carry (loss scaling), above 0; they are divided by it. None: 1.
        max_norm: clip to this global l2 norm, at least 0; the norm is taken of the gradients divided by grad_scale.
        gradient_norm: what it was fed of grads is not read again for the norm; see `GradientNorm`. Without max_norm it
            is not used.

    Returns:
        With max_norm the norm before clipping, 0-d float64 array, on the device of the gradients; None without.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others; a number, flag or
            gradient_norm has a wrong type.
        ValueError: lengths or shapes differ, a number is out of its range, momentum without a buffer, a changed array
            is read-only or overlaps another array of the call.
    """
    lr = number("lr", lr, 0.0)
    momentum = number("momentum", momentum, 0.0)
    dampening = number("dampening", dampening)
    weight_decay = number("weight_decay", weight_decay, 0.0)
    if momentum_buffer is None and momentum != 0:
        raise ValueError(f"momentum_buffer: momentum = {momentum} needs one array of zeros per parameter, got None")
    nesterov, maximize = flag("nesterov", nesterov), flag("maximize", maximize)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(
            f"nesterov: needs momentum > 0 and dampening = 0, got momentum = {momentum}, dampening = {dampening}"
        )
    if momentum_buffer is None:
        groups, buffer = TensorGroups("params! grads", params, grads), None
    else:
        groups = TensorGroups("params! grads momentum_buffer!", params, grads, momentum_buffer)
        buffer = groups.lists[2]
    settings = (buffer, lr, momentum, dampening, nesterov, weight_decay, maximize)
    return _run("sgd", groups, grads, settings, grad_scale, max_norm, gradient_norm)


def rmsprop_step(
    params: Arrays,
    grads: Arrays,
    square_avg: Arrays,
    momentum_buffer: Arrays | None = None,
    grad_avg: Arrays | None = None,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float | None = None,
    max_norm: float | None = None,
    gradient_norm: GradientNorm | None = None,
) -> Array | None:
    """Make one RMSprop step in place on params and state (Tieleman and Hinton, 2012), with clipping in the same pass.

    In the dtype of the arrays:

        g = grad c / grad_scale,  sign flipped if maximize;  c = min(1, max_norm / (norm + 1e-6)), 1 without max_norm
        g = g + weight_decay p
        v = alpha v + (1 - alpha) g^2
        a = alpha a + (1 - alpha) g                          with centered (Graves, 2013)
        d = sqrt(max(v - a^2, 0)) + eps with centered,  sqrt(v) + eps without
        b = momentum b + g / d,   p = p - lr b               with momentum_buffer
        p = p - lr g / d                                     without

    which is torch.optim.RMSprop, except that rounding may take torch's v - a^2 below 0 and its parameters to NaN.

    A gradient that is not finite reaches its entry of params and state; with max_norm as in `adam_step`.

    Args:
        params: one array or a list of arrays of any shapes, float32 or float64, all of one dtype; changed in place.
        grads: gradients, the shapes of params; read only, also when they are clipped.
        square_avg: v, the shapes of params, zeros before the first step; changed in place.
        momentum_buffer: b, the shapes of params, zeros before the first step; changed in place. Needed where momentum
            is not 0.
        grad_avg: a, the shapes of params, zeros before the first step; changed in place. Needed with centered; without
            it is neither read nor changed.
        lr: learning rate, at least 0.
        alpha: decay rate of v and a, in [0, 1].
        eps: at least 0.
        momentum: at least 0.
        centered: divide by the root of the variance of the gradient instead of that of its mean square.
        weight_decay: at least 0.
        maximize: climb instead of descend.
        grad_scale: factor that the gradients carry (loss scaling), above 0; they are divided by it. None: 1.
        max_norm: clip to this global l2 norm, at least 0; the norm is taken of the gradients divided by grad_scale.
        gradient_norm: what it was fed of grads is not read again for the norm; see `GradientNorm`. Without max_norm it
            is not used.

    Returns:
        With max_norm the norm before clipping, 0-d float64 array, on the device of the gradients; None without.

    Raises:
        TypeError: an entry is no array, not float32 or float64, or not of the dtype of the others; a number, flag or
            gradient_norm has a wrong type.
        ValueError: lengths or shapes differ, a number is out of its range, momentum without a buffer, centered without
            grad_avg, a changed array is read-only or overlaps another array of the call.
    """
    lr = number("lr", lr, 0.0)
    alpha = number("alpha", alpha, 0.0, 1.0)
    eps = number("eps", eps, 0.0)
    momentum = number("momentum", momentum, 0.0)
    weight_decay = number("weight_decay", weight_decay, 0.0)
    if momentum_buffer is None and momentum != 0:
        raise ValueError(f"momentum_buffer: momentum = {momentum} needs one array of zeros per parameter, got None")
    centered, maximize = flag("centered", centered), flag("maximize", maximize)
    if grad_avg is None and centered:
        raise ValueError("grad_avg: centered needs one array of zeros per parameter, got None")
    words, given = "params! grads square_avg!", [params, grads, square_avg]
    if momentum_buffer is not None:
        words += " momentum_buffer!"
        given.append(momentum_buffer)
    if grad_avg is not None and centered:
        words += " grad_avg!"
        given.append(grad_avg)
    groups = TensorGroups(words, *given)
    lists = groups.lists
    settings = (
        lists[2],
        lists[3] if momentum_buffer is not None else None,
        lists[-1] if centered else None,
        lr,
        alpha,
        eps,
        weight_decay,
        momentum,
        maximize,
    )
    return _run("rmsprop", groups, grads, settings, grad_scale, max_norm, gradient_norm)
