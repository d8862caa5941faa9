"""Fast training kernels for people who write their own training loops on NumPy and CuPy arrays.

Every function takes and returns plain arrays, float32 or float64, and computes in the dtype of its arrays, on the CPU
for NumPy's and on the GPU where CuPy's lie. Importing this package costs NumPy and nothing else: a kernel is imported,
and compiled if need be, when it is first called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastgrad._dispatch import backend, get_backend, set_backend
from fastgrad._health import Health, health
from fastgrad._subnormals import get_subnormals, set_subnormals, subnormals
from fastgrad.activations import activation, activation_backward, prelu, prelu_backward
from fastgrad.clipping import adaptive_clip, clip_by_global_norm, clip_by_norm, clip_by_value, global_norm
from fastgrad.gate_orders import reorder_gates
from fastgrad.glu import geglu, geglu_backward, swiglu, swiglu_backward
from fastgrad.losses import binary_cross_entropy_with_logits, mse, softmax_cross_entropy
from fastgrad.normalization import batch_norm, batch_norm_backward, layer_norm, layer_norm_backward
from fastgrad.normalized_lstm import layer_norm_lstm, layer_norm_lstm_backward
from fastgrad.recurrent import (
    gru,
    gru_backward,
    gru_cell,
    gru_cell_backward,
    lstm,
    lstm_backward,
    lstm_cell,
    lstm_cell_backward,
)
from fastgrad.regularization import activation_dropout, activation_dropout_backward, dropout, dropout_backward
from fastgrad.scaled_dot_product import attention, attention_backward
from fastgrad.steps import adam_step, rmsprop_step, sgd_step

if TYPE_CHECKING:
    from fastgrad import init, layers, pruning, schedules, testing
    from fastgrad._doctor import doctor
    from fastgrad._warmup import warmup
    from fastgrad.gradient_norm import GradientNorm
    from fastgrad.monitor import GradientMonitor
    from fastgrad.optim import SGD, Adam, AdamW, RMSprop
    from fastgrad.profiling.model import profile_model
    from fastgrad.profiling.recurrent_ways import tune_recurrent
    from fastgrad.threads import set_num_threads

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "GradientMonitor",
    "GradientNorm",
    "Health",
    "RMSprop",
    "activation",
    "activation_backward",
    "activation_dropout",
    "activation_dropout_backward",
    "adam_step",
    "adaptive_clip",
    "attention",
    "attention_backward",
    "backend",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy_with_logits",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "doctor",
    "dropout",
    "dropout_backward",
    "geglu",
    "geglu_backward",
    "get_backend",
    "get_subnormals",
    "global_norm",
    "gru",
    "gru_backward",
    "gru_cell",
    "gru_cell_backward",
    "health",
    "init",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_lstm",
    "layer_norm_lstm_backward",
    "layers",
    "lstm",
    "lstm_backward",
    "lstm_cell",
    "lstm_cell_backward",
    "mse",
    "prelu",
    "prelu_backward",
    "profile_model",
    "pruning",
    "reorder_gates",
    "rmsprop_step",
    "schedules",
    "set_backend",
    "set_num_threads",
    "set_subnormals",
    "sgd_step",
    "softmax_cross_entropy",
    "subnormals",
    "swiglu",
    "swiglu_backward",
    "testing",
    "tune_recurrent",
    "warmup",
]

# Imported at their first use (PEP 562), so that a program which only calls kernels does not load them.
_LAZY_MODULES = {"init", "layers", "pruning", "schedules", "testing"}
_LAZY_NAMES = {
    "Adam": "optim",
    "AdamW": "optim",
    "GradientMonitor": "monitor",
    "GradientNorm": "gradient_norm",
    "RMSprop": "optim",
    "SGD": "optim",
    "doctor": "_doctor",
    "profile_model": "profiling.model",
    "set_num_threads": "threads",
    "tune_recurrent": "profiling.recurrent_ways",
    "warmup": "_warmup",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"fastgrad.{name}")
    if name in _LAZY_NAMES:
        value = getattr(importlib.import_module(f"fastgrad.{_LAZY_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastgrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
