"""Optimizers that others wrote for the CPU, as calls for the benchmarks: optax jitted by JAX, and DeepSpeed's CPUAdam.

Each takes part where it is installed: `pip install jax optax deepspeed`; DeepSpeed compiles its kernel with a C++
compiler, at its first use. Their arrays lie where they put them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

from inputs import Array
from machine import torch


@functools.cache
def installed(name: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def optax_adam(params: Sequence[Array], grads: Sequence[Array], max_norm: float | None) -> Callable[[], object] | None:
    """Return a call that takes optax's Adam step in one jitted function that may reuse its buffers, or None."""
    if not (installed("jax") and installed("optax")):
        return None
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    rule = optax.adam(1e-3)
    if max_norm is not None:
        rule = optax.chain(optax.clip_by_global_norm(max_norm), rule)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = rule.update(grads, state)
        return optax.apply_updates(params, updates), state

    held = [jax.numpy.array(p) for p in params]
    gradients = [jax.numpy.array(g) for g in grads]
    now = [held, rule.init(held)]

    def run() -> object:
        now[:] = step(*now, gradients)
        jax.block_until_ready(now)
        state = next(s for s in jax.tree.leaves(now[1], is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
        return [now[0], state.mu, state.nu]

    return run


def deepspeed_adam(state: Sequence[Any]) -> Callable[[], object] | None:
    """Return a call of DeepSpeed's CPUAdam on torch's tensors (param, grad, exp_avg, exp_avg_sq), or None."""
    if not (torch and installed("deepspeed")):
        return None
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    optimizer_of = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    param, grad, exp_avg, exp_avg_sq = state
    param.requires_grad_()
    param.grad = grad
    optimizer = optimizer_of([param], lr=1e-3, adamw_mode=False)
    optimizer.state[param] = {"step": 0, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}

    def run() -> object:
        optimizer.step()
        return [[param], [exp_avg], [exp_avg_sq]]

    return run
