"""What a call on 64 elements takes, with all of its checks: each function of fastgrad, in microseconds, as a markdown
table.

    python bench/call_overhead.py
    python bench/call_overhead.py --only step norm

On one thread, by the clock of the thread's own processor time, of which the smallest of many rounds is taken: what
disturbs a call of some microseconds only adds to it. Sums and products of 64 elements take 0.1 to 1 us of that, those
of a recurrent cell 2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import machine
import numpy as np
from inputs import QUICK

import fastgrad
from fastgrad import linear, pruning

GOAL = 6.0  # microseconds
ROUNDS, CALLS = (2, 2) if QUICK else (200, 20)

Call = Callable[[], object]


def calls() -> Iterator[tuple[str, Call]]:
    """Yield what is timed; a name begins with that of its function."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    x, dy, out, other = (draw(64) for _ in range(4))
    x2, dy2, out2, other2, w2 = (draw(8, 8) for _ in range(5))
    w, b, bias_grad = (draw(8) for _ in range(3))
    one, classes = draw(1), rng.integers(0, 8, 8)
    yield "activation", lambda: fastgrad.activation(x, "gelu")
    yield "activation, out", lambda: fastgrad.activation(x, "gelu", out=out)
    yield "activation_backward", lambda: fastgrad.activation_backward(dy, x, "gelu")
    yield "activation_backward, out", lambda: fastgrad.activation_backward(dy, x, "gelu", out=out)
    yield (
        "activation_backward, bias_grad",
        lambda: fastgrad.activation_backward(dy2, x2, "gelu", out=out2, bias_grad=bias_grad),
    )
    yield "activation_dropout", lambda: fastgrad.activation_dropout(x, "relu", 0.5, 1, 2)
    yield "activation_dropout_backward", lambda: fastgrad.activation_dropout_backward(dy, x, "relu", 0.5, 1, 2)
    yield (
        "activation_dropout_backward, bias_grad",
        lambda: fastgrad.activation_dropout_backward(dy2, x2, "relu", 0.5, 1, 2, out=out2, bias_grad=bias_grad),
    )
    yield "prelu", lambda: fastgrad.prelu(x2, one)
    yield "prelu_backward", lambda: fastgrad.prelu_backward(dy2, x2, one)
    yield "prelu_backward, a weight per channel", lambda: fastgrad.prelu_backward(dy2, x2, w)
    yield "swiglu", lambda: fastgrad.swiglu(x, dy)
    yield "swiglu_backward", lambda: fastgrad.swiglu_backward(dy, x, other)
    yield "swiglu_backward, out", lambda: fastgrad.swiglu_backward(dy2, x2, w2, out=(out2, other2))
    yield "geglu", lambda: fastgrad.geglu(x, dy)
    yield "geglu_backward", lambda: fastgrad.geglu_backward(dy, x, other)
    yield "dropout", lambda: fastgrad.dropout(x, 0.5, 1, 2)
    yield "dropout_backward", lambda: fastgrad.dropout_backward(dy, 0.5, 1, 2)
    yield "mse", lambda: fastgrad.mse(x, dy)
    yield "mse, out", lambda: fastgrad.mse(x, dy, out=out)
    yield "binary_cross_entropy_with_logits", lambda: fastgrad.binary_cross_entropy_with_logits(x, np.abs(dy, out=out))
    yield "softmax_cross_entropy", lambda: fastgrad.softmax_cross_entropy(x2, classes)
    yield "softmax_cross_entropy, out", lambda: fastgrad.softmax_cross_entropy(x2, classes, out=out2)
    yield (
        "softmax_cross_entropy, ignore_index, label_smoothing",
        lambda: fastgrad.softmax_cross_entropy(x2, classes, label_smoothing=0.1, ignore_index=-100),
    )
    yield "linear.linear", lambda: linear.linear(x2, w2, b)
    yield "linear.linear_backward", lambda: linear.linear_backward(dy2, x2, w2)
    yield "linear.embedding", lambda: linear.embedding(x2, classes)
    yield "linear.embedding_backward", lambda: linear.embedding_backward(dy2, classes, 8)
    yield from _normalization(x2, dy2, w, b, draw)
    yield from _lists(draw)
    yield from _steps(draw)
    yield from _recurrent(draw)
    q, k, v, da = (draw(1, 2, 4, 8) for _ in range(4))
    attended = fastgrad.attention(q, k, v)[1]
    yield "attention", lambda: fastgrad.attention(q, k, v, causal=True)
    yield "attention_backward", lambda: fastgrad.attention_backward(da, attended)


def _normalization(
    x: np.ndarray, dy: np.ndarray, weight: np.ndarray, bias: np.ndarray, draw: Callable[..., np.ndarray]
) -> Iterator[tuple[str, Call]]:
    mean, variance = draw(8), np.abs(draw(8))
    layer = fastgrad.layer_norm(x, weight, bias)[1]
    yield "layer_norm", lambda: fastgrad.layer_norm(x, weight, bias)
    yield "layer_norm, no weights", lambda: fastgrad.layer_norm(x)
    yield "layer_norm_backward", lambda: fastgrad.layer_norm_backward(dy, layer)
    for training in (True, False):
        batch = fastgrad.batch_norm(x, weight, bias, mean, variance, training=training)[1]
        mode = "training" if training else "evaluation"

        def forward(training: bool = training) -> object:
            return fastgrad.batch_norm(x, weight, bias, mean, variance, training=training)

        yield f"batch_norm, {mode}", forward
        yield f"batch_norm_backward, {mode}", lambda batch=batch: fastgrad.batch_norm_backward(dy, batch)


def _lists(draw: Callable[..., np.ndarray]) -> Iterator[tuple[str, Call]]:
    g, g2, p2, mask = draw(64), draw(8, 8), draw(8, 8), np.ones(64, np.float32)
    produced = fastgrad.GradientNorm()
    for ord_ in (1, 2, np.inf):
        yield f"global_norm, ord {ord_}", lambda ord_=ord_: fastgrad.global_norm(g, ord_)
    yield "clip_by_global_norm", lambda: fastgrad.clip_by_global_norm(g, 1e9)
    yield "clip_by_global_norm, which clips", lambda: fastgrad.clip_by_global_norm(g, 0.5)
    yield "clip_by_norm", lambda: fastgrad.clip_by_norm(g, 1e9)
    yield "clip_by_norm, which clips", lambda: fastgrad.clip_by_norm(g, 0.5)
    yield "clip_by_norm, axis", lambda: fastgrad.clip_by_norm(g2, 1e9, axis=0)
    yield "clip_by_value", lambda: fastgrad.clip_by_value(g, -1.0, 1.0)
    yield "adaptive_clip", lambda: fastgrad.adaptive_clip(g2, p2, 10.0)
    yield "health", lambda: fastgrad.health(g)
    yield "GradientNorm.add", lambda: produced.add(g)
    yield "pruning.apply_masks", lambda: pruning.apply_masks(g, mask)


def _steps(draw: Callable[..., np.ndarray]) -> Iterator[tuple[str, Call]]:
    p, g, m, a = (draw(64) for _ in range(4))
    v, u = np.abs(draw(64)), np.abs(draw(64))
    for limit in (None, 1.0):
        end = "" if limit is None else ", max_norm"
        yield f"adam_step{end}", lambda limit=limit: fastgrad.adam_step(p, g, m, v, step=3, max_norm=limit)
        yield (
            f"adam_step, AMSGrad{end}",
            lambda limit=limit: fastgrad.adam_step(p, g, m, v, step=3, max_exp_avg_sq=u, max_norm=limit),
        )
        yield f"sgd_step{end}", lambda limit=limit: fastgrad.sgd_step(p, g, lr=1e-9, max_norm=limit)
        yield (
            f"sgd_step, momentum{end}",
            lambda limit=limit: fastgrad.sgd_step(p, g, m, lr=1e-9, momentum=0.9, max_norm=limit),
        )
        yield f"rmsprop_step{end}", lambda limit=limit: fastgrad.rmsprop_step(p, g, v, lr=1e-9, max_norm=limit)
        yield (
            f"rmsprop_step, momentum, centered{end}",
            lambda limit=limit: fastgrad.rmsprop_step(
                p, g, v, m, a, lr=1e-9, momentum=0.9, centered=True, max_norm=limit
            ),
        )


def _recurrent(draw: Callable[..., np.ndarray]) -> Iterator[tuple[str, Call]]:
    x, h, c, dh = (draw(1, 8) for _ in range(4))
    xs, dy = draw(2, 1, 8), draw(2, 1, 8)
    wi, wh, bi, bh = draw(32, 8), draw(32, 8), draw(32), draw(32)
    gi, gh, gc = draw(32), draw(32), draw(8)
    w3 = wi[:24], wh[:24], bi[:24], bh[:24]
    lstm_cell = fastgrad.lstm_cell(x, h, c, wi, wh, bi, bh)[-1]
    gru_cell = fastgrad.gru_cell(x, h, *w3)[-1]
    lstm = fastgrad.lstm(xs, h, c, wi, wh, bi, bh)[-1]
    gru = fastgrad.gru(xs, h, *w3)[-1]
    normalized = fastgrad.layer_norm_lstm(xs, h, c, wi, wh, gi, gh, gc, bi, bh)[-1]
    yield "lstm_cell, B 1, H 8", lambda: fastgrad.lstm_cell(x, h, c, wi, wh, bi, bh)
    yield "lstm_cell_backward, B 1, H 8", lambda: fastgrad.lstm_cell_backward(dh, None, lstm_cell)
    yield "gru_cell, B 1, H 8", lambda: fastgrad.gru_cell(x, h, *w3)
    yield "gru_cell_backward, B 1, H 8", lambda: fastgrad.gru_cell_backward(dh, gru_cell)
    yield "lstm, T 2, B 1, H 8", lambda: fastgrad.lstm(xs, h, c, wi, wh, bi, bh)
    yield "lstm_backward, T 2, B 1, H 8", lambda: fastgrad.lstm_backward(dy, None, None, lstm)
    yield "gru, T 2, B 1, H 8", lambda: fastgrad.gru(xs, h, *w3)
    yield "gru_backward, T 2, B 1, H 8", lambda: fastgrad.gru_backward(dy, None, gru)
    yield "layer_norm_lstm, T 2, B 1, H 8", lambda: fastgrad.layer_norm_lstm(xs, h, c, wi, wh, gi, gh, gc, bi, bh)
    yield (
        "layer_norm_lstm_backward, T 2, B 1, H 8",
        lambda: fastgrad.layer_norm_lstm_backward(dy, None, None, normalized),
    )


def microseconds(call: Call) -> float:
    """Return the least that a call took, on average over a round."""
    best = float("inf")
    call()
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time() - start) / CALLS)
    return best * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    arguments = parser.parse_args()
    fastgrad.set_num_threads(1)
    print(machine.describe(1), end="\n\n")
    print(f"| call on 64 elements | us | over {GOAL:g} us |\n|---|---:|---|")
    for name, call in calls():
        if any(part in name for part in arguments.only):
            taken = microseconds(call)
            print(f"| {name} | {taken:.2f} | {'yes' if taken > GOAL else ''} |", flush=True)


if __name__ == "__main__":
    main()
