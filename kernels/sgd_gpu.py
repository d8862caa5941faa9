"""Launch one step of stochastic gradient descent over any list of tensors on a device; see sgd.cu."""

from __future__ import annotations

from typing import Any

from .step_gpu import finish_kernel, update, update_kernel

Array = Any

UPDATE = update_kernel("sgd", "scale lr weight_decay momentum rest", ["momentum", "nesterov", "decay"])
FINISH = finish_kernel("sgd")


def sgd_step(
    params: list[Array],
    grads: list[Array],
    momentum_buffer: list[Array] | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    scale: float | Array,
) -> None:
    """Update params and momentum_buffer in place; grads are only read.

    scale : as in `step_gpu.update`
    """
    lists = [params, grads] if momentum_buffer is None else [params, grads, momentum_buffer]
    flags = {"momentum": momentum_buffer is not None, "nesterov": nesterov, "decay": weight_decay != 0}
    update(UPDATE, lists, scale, maximize, lr, weight_decay, momentum, 1 - dampening, **flags)
