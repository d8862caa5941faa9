"""Launch one Adam step over any list of tensors on a device; see adam.cu."""

from __future__ import annotations

import math
from typing import Any

from .step_gpu import finish_kernel, update, update_kernel

Array = Any

UPDATE = update_kernel("adam", "scale beta1 rest1 beta2 rest2 step_size correction2 eps decay", ["amsgrad", "coupled"])
FINISH = finish_kernel("adam")


def adam_step(
    params: list[Array],
    grads: list[Array],
    exp_avg: list[Array],
    exp_avg_sq: list[Array],
    max_exp_avg_sq: list[Array] | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    scale: float | Array,
) -> None:
    """Update params, exp_avg, exp_avg_sq and max_exp_avg_sq in place; grads are only read.

    scale : as in `step_gpu.update`
    """
    coupled = weight_decay != 0 and not decoupled
    numbers = (
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        lr / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step),
        eps,
        weight_decay if coupled else 1 - lr * weight_decay,
    )
    lists = [params, grads, exp_avg, exp_avg_sq, *([max_exp_avg_sq] if max_exp_avg_sq is not None else [])]
    update(UPDATE, lists, scale, maximize, *numbers, amsgrad=max_exp_avg_sq is not None, coupled=coupled)
