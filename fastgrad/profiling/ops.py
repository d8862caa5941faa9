"""The operations that `fastgrad profile` measures, by name; `fastgrad.profiling.cases` says what each of them does."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastgrad.activations import KINDS
from fastgrad.profiling import costs
from fastgrad.profiling.cases import Case, elementwise, products, rows, steps

# Small enough for any cache, about the size of a second-level cache, and past the caches of most machines.
SIZES = (1 << 12, 1 << 17, 1 << 22)
PRODUCT_SIZES = (1 << 14, 1 << 20)  # 128 and 1,024 rows and columns
SEQUENCE_SIZES = (1 << 16, 1 << 18)  # of x (32, 32, I): I = H = 64 and 256

# Without names: what a training step spends its time on.
DEFAULT = (
    "gelu_backward", "layer_norm_backward", "softmax_cross_entropy", "global_norm", "adam_step", "linear", "lstm",
    "gru",
)  # fmt: skip

ALIASES = {
    "activation": "gelu", "activation_backward": "gelu_backward", "Adam": "adam_step", "AdamW": "adam_step",
    "SGD": "sgd_step", "RMSprop": "rmsprop_step", "LSTM": "lstm", "GRU": "gru", "Linear": "linear",
    "Embedding": "embedding", "LayerNorm": "layer_norm", "BatchNorm": "batch_norm", "Dropout": "dropout",
    "GradientNorm": "global_norm", "MultiHeadAttention": "attention", "LayerNormLSTM": "layer_norm_lstm",
    "PReLU": "prelu",
}  # fmt: skip


@dataclass(frozen=True)
class Op:
    """name: as on the command line; sizes: without --sizes; build: returns the case of a size."""

    name: str
    sizes: tuple[int, ...]
    build: Callable[[int], Case]


def _table() -> dict[str, Op]:
    ops: dict[str, Op] = {}

    def add(name: str, build: Callable[..., Case], *first: Any, sizes: tuple[int, ...] = SIZES) -> None:
        ops[name] = Op(name, sizes, lambda n: build(*first, n))

    for kind in KINDS:
        add(kind, elementwise.activation, kind)
        add(f"{kind}_backward", elementwise.activation_backward, kind)
    for unit in ("swiglu", "geglu"):
        add(unit, elementwise.glu, unit)
        add(f"{unit}_backward", elementwise.glu_backward, unit)
    for name, build in {
        "prelu": elementwise.prelu,
        "prelu_backward": elementwise.prelu_backward,
        "layer_norm": rows.layer_norm,
        "layer_norm_backward": rows.layer_norm_backward,
        "batch_norm": rows.batch_norm,
        "batch_norm_backward": rows.batch_norm_backward,
        "dropout": elementwise.dropout,
        "activation_dropout": elementwise.activation_dropout,
        "activation_dropout_backward": elementwise.activation_dropout_backward,
        "embedding": rows.embedding,
        "embedding_backward": rows.embedding_backward,
        "softmax_cross_entropy": rows.softmax_cross_entropy,
        "binary_cross_entropy_with_logits": rows.binary_cross_entropy,
        "mse": rows.mse,
        "global_norm": steps.global_norm,
        "health": steps.health,
        "adaptive_clip": steps.adaptive_clip,
        "clip_by_value": elementwise.clip_by_value,
        "apply_masks": elementwise.apply_masks,
        "adam_step": steps.adam_step,
        "sgd_step": steps.sgd_step,
        "rmsprop_step": steps.rmsprop_step,
    }.items():
        add(name, build)
    for name in ("clip_by_global_norm", "clip_by_norm"):
        add(name, steps.clipping, name)
    for name, build in {"linear": products.linear, "linear_backward": products.linear_backward}.items():
        add(name, build, sizes=PRODUCT_SIZES)
    for cell in costs.GATES:
        add(cell, products.recurrent, cell, sizes=SEQUENCE_SIZES)
    for name, build in {
        "layer_norm_lstm": products.layer_norm_lstm,
        "attention": products.attention,
        "attention_backward": products.attention_backward,
    }.items():
        add(name, build, sizes=SEQUENCE_SIZES)
    return ops


OPS = _table()


def chosen(names: Iterable[str]) -> list[Op]:
    """Return the operations of these names, "all" among them for all, or those of DEFAULT.

    Raises:
        ValueError: a name is not known; says which are, and which was meant.
    """
    wanted = [ALIASES.get(name, name) for name in names] or list(DEFAULT)
    if "all" in wanted:
        return list(OPS.values())
    for name in wanted:
        if name not in OPS:
            near = difflib.get_close_matches(name, [*OPS, *ALIASES], 1)
            meant = f"did you mean {near[0]}? " if near else ""
            others = [op for op in OPS if op.removesuffix("_backward") not in KINDS]
            raise ValueError(
                f"unknown operation {name!r}: {meant}Known are {', '.join(others)}; the kinds of activation "
                f"{', '.join(KINDS)}, each also with _backward; and all"
            )
    return [OPS[name] for name in dict.fromkeys(wanted)]
