"""Launch one RMSprop step over any list of tensors on a device; see rmsprop.cu."""

from __future__ import annotations

from typing import Any

from .step_gpu import finish_kernel, update, update_kernel

Array = Any

UPDATE = update_kernel("rmsprop", "scale lr alpha rest eps weight_decay momentum", ["momentum", "centered", "decay"])
FINISH = finish_kernel("rmsprop")


def rmsprop_step(
    params: list[Array],
    grads: list[Array],
    square_avg: list[Array],
    momentum_buffer: list[Array] | None,
    grad_avg: list[Array] | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    maximize: bool,
    scale: float | Array,
) -> None:
    """Update params and state in place; grads are only read. grad_avg given is centered.

    scale : as in `step_gpu.update`
    """
    lists = [params, grads, square_avg, *(state for state in (momentum_buffer, grad_avg) if state is not None)]
    flags = {"momentum": momentum_buffer is not None, "centered": grad_avg is not None, "decay": weight_decay != 0}
    update(UPDATE, lists, scale, maximize, lr, alpha, 1 - alpha, eps, weight_decay, momentum, **flags)
