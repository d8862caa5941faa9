"""Compiling ahead: all that a program runs is reached, and what is reported is what was done."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastgrad.kernels import norm_cpu, runtime, streams

import fastgrad
from fastgrad import _warmup, linear, pruning

rng = np.random.default_rng(0)


def python(code: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def own_factories() -> set[str]:
    for path in Path(runtime.__file__).parent.glob("*_cpu.py"):
        importlib.import_module(f"fastgrad.kernels.{path.stem}")
    return {f.name for f in runtime.factories.values() if f.get.__module__.startswith("fastgrad.kernels.")}


# --- what is reached


def test_every_kernel_is_reached(dtype):
    """A new operation, or a new kernel of one, must be known to `warmup`: see STEMS and _keys of fastgrad._warmup."""
    reached = {factory.name for factory, _ in _warmup.plan((), np.dtype(dtype)).values()}
    assert reached == own_factories()


def test_a_factory_says_what_its_keys_hold():
    def width(dtype: np.dtype, width: int, fast: bool):
        raise AssertionError("not to be compiled")

    kept = dict(runtime.factories)
    dtype = np.dtype(np.float32)
    try:
        runtime.kernel(width)
        with pytest.raises(NotImplementedError, match=r"test_warmup.width: .* @runtime.kernel\(width=...\)"):
            list(_warmup._keys(runtime.factories["test_warmup.width"], ("",), dtype))
        runtime.kernel(width=(1, 4))(width)
        keys = list(_warmup._keys(runtime.factories["test_warmup.width"], ("",), dtype))
        assert keys == [(dtype, width, fast) for width in (1, 4) for fast in (False, True)]
    finally:
        runtime.factories.clear()
        runtime.factories.update(kept)


def test_every_public_function_is_known():
    without_kernels = {"backend", "get_backend", "set_backend", "set_num_threads", "reorder_gates", "init", "layers"}
    without_kernels |= {"profile_model", "pruning", "schedules", "testing"}
    without_kernels |= {"doctor", "warmup", "Health", "get_subnormals", "set_subnormals", "subnormals"}
    without_kernels |= {"GradientMonitor", "profile_model", "tune_recurrent"}
    for name in set(fastgrad.__all__) - without_kernels:
        assert _warmup.plan((name,), np.dtype(np.float32)), name


def arrays(*shapes: tuple[int, ...], dtype: type) -> list[np.ndarray]:
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def call_recurrent(name: str, dtype: type) -> None:
    gates = 4 if name == "lstm" else 3
    x, w, u, b = arrays((5, 3, 4), (gates * 6, 4), (gates * 6, 6), (gates * 6,), dtype=dtype)
    forward, backward = getattr(fastgrad, name), getattr(fastgrad, f"{name}_backward")
    noise = {"zoneout_h": 0.1, "input_dropout": 0.1, "recurrent_dropout": 0.1, "seed": 1}
    for further in [{}, {"lengths": [5, 2, 0]}, {"reverse": True}, noise] + [{"reset_after": False}] * (name == "gru"):
        state, rest = (None,) * (gates - 2), (None,) * (gates - 2)
        y, _, saved = forward(x, *state, w, u, b, b, **further)
        backward(y, *rest, saved)


def call_layer_norm_lstm(dtype: type) -> None:
    x, w, u, g, b, c = arrays((5, 3, 4), (24, 4), (24, 6), (24,), (24,), (6,), dtype=dtype)
    noise = {"input_dropout": 0.1, "recurrent_dropout": 0.1, "seed": 1}
    for further in ({}, {"lengths": [5, 2, 0]}, noise):
        y, _, saved = fastgrad.layer_norm_lstm(x, None, None, w, u, g, g, c, b, b, c, **further)
        fastgrad.layer_norm_lstm_backward(y, None, None, saved)


def call_activation(kind: str, dtype: type) -> None:
    x, bias = arrays((31, 7), (7,), dtype=dtype)
    fastgrad.activation(x, kind)
    fastgrad.activation_backward(x, x, kind)
    fastgrad.activation_backward(x, x, kind, bias_grad=bias)


def call_activations(dtype: type) -> None:
    for kind in ("tanh", "leaky_relu", "hardtanh"):  # of none, one and two parameters
        call_activation(kind, dtype)


def call_prelu(dtype: type) -> None:
    for shape, weight in ((31, 7), (7,)), ((31, 7, 5), (7,)), ((9,), (1,)):
        x, w = arrays(shape, weight, dtype=dtype)
        fastgrad.prelu(x, w)
        fastgrad.prelu_backward(x, x, w)


def call_glu(name: str, dtype: type) -> None:
    x, y = arrays((31, 7), (31, 7), dtype=dtype)
    getattr(fastgrad, name)(x, y)
    getattr(fastgrad, f"{name}_backward")(x, x, y)


def call_linear(dtype: type) -> None:
    x, w, b, dy = arrays((31, 7), (5, 7), (5,), (31, 5), dtype=dtype)
    linear.linear(x, w, b)
    linear.linear_backward(dy, x, w)


def call_embedding(dtype: type) -> None:
    w, dy, indices = *arrays((9, 5), (4, 5), dtype=dtype), np.array([1, 2, 3, 3])
    linear.embedding(w, indices)
    linear.embedding_backward(dy, indices, 9)


def call_layer_norm(dtype: type) -> None:
    dy, x, w, b = arrays((31, 7), (31, 7), (7,), (7,), dtype=dtype)
    fastgrad.layer_norm_backward(dy, fastgrad.layer_norm(x, w, b)[1])


def call_attention(dtype: type) -> None:
    dy, q, k, v = arrays(*[(2, 3, 31, 7)] * 4, dtype=dtype)
    for options in ({"causal": True}, {"dropout": 0.5}):
        _, saved = fastgrad.attention(q, k, v, **options)
        fastgrad.attention_backward(dy, saved)


def call_batch_norm(dtype: type) -> None:
    for shape in (31, 7), (5, 7, 9):
        dy, x, w, b, mean, var = arrays(shape, shape, *[(7,)] * 4, dtype=dtype)
        for training in (True, False):
            _, saved = fastgrad.batch_norm(x, w, b, mean, np.abs(var), training=training)
            fastgrad.batch_norm_backward(dy, saved)


def call_norms(name: str, dtype: type) -> None:
    list_of_arrays = arrays(*[(7,)] * 20, dtype=dtype)
    function = getattr(fastgrad, name)
    if name == "clip_by_norm":
        function(list_of_arrays, 0.1)
        function(list_of_arrays, 0.1, axis=0)
    else:
        for order in (1, 2, np.inf):
            function(list_of_arrays, *[0.1] * (name == "clip_by_global_norm"), ord=order)


def call_adam(dtype: type) -> None:
    for decoupled, decay, amsgrad in (True, 0.1, False), (False, 0.1, False), (False, 0.1, True), (True, 0.0, True):
        p, g, m, v, u = (np.abs(a) for a in arrays(*[(7,)] * 5, dtype=dtype))
        more = {"max_exp_avg_sq": u} if amsgrad else {}
        fastgrad.adam_step(p, g, m, v, step=1, decoupled=decoupled, weight_decay=decay, max_norm=0.1, **more)


def call_sgd(dtype: type) -> None:
    for momentum, nesterov, decay in (0, False, 0), (0, False, 0.1), (0.9, False, 0.1), (0.9, True, 0), (0.9, True, 1):
        p, g, b = arrays(*[(7,)] * 3, dtype=dtype)
        buffer = b if momentum else None
        fastgrad.sgd_step(p, g, buffer, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=decay, max_norm=1)


def call_rmsprop(dtype: type) -> None:
    for momentum, centered, decay in (0, False, 0), (0, False, 0.1), (0.9, False, 0.1), (0.9, True, 0), (0, True, 1):
        p, g, v, b, a = (np.abs(a) for a in arrays(*[(7,)] * 5, dtype=dtype))
        buffer = b if momentum else None
        fastgrad.rmsprop_step(
            p, g, v, buffer, a, momentum=momentum, centered=centered, weight_decay=decay, max_norm=1
        )  # fmt: skip


def call_activation_dropout(dtype: type) -> None:
    x, bias = np.ones((3, 7), dtype), np.empty(7, dtype)
    for kind in _warmup._DROPPED_KINDS:
        fastgrad.activation_dropout(x, kind, 0.5, 1)
        fastgrad.activation_dropout_backward(x, x, kind, 0.5, 1)
        fastgrad.activation_dropout_backward(x, x, kind, 0.5, 1, bias_grad=bias)


CALLS = {
    "gru": lambda dtype: call_recurrent("gru", dtype),
    "lstm": lambda dtype: call_recurrent("lstm", dtype),
    "layer_norm_lstm": call_layer_norm_lstm,
    "attention": call_attention,
    "linear": call_linear,
    "activation": call_activations,
    "prelu": call_prelu,
    "swiglu": lambda dtype: call_glu("swiglu", dtype),
    "geglu": lambda dtype: call_glu("geglu", dtype),
    "embedding": call_embedding,
    "layer_norm": call_layer_norm,
    "batch_norm": call_batch_norm,
    "dropout": lambda dtype: fastgrad.dropout_backward(fastgrad.dropout(np.ones(99, dtype), 0.5, 1), 0.5, 1),
    "activation_dropout": call_activation_dropout,
    "softmax_cross_entropy": lambda dtype: fastgrad.softmax_cross_entropy(np.ones((3, 4), dtype), np.zeros(3, int)),
    "binary_cross_entropy_with_logits": lambda dtype: fastgrad.binary_cross_entropy_with_logits(
        np.ones(3, dtype), np.zeros(3, dtype)
    ),
    "mse": lambda dtype: fastgrad.mse(np.ones(3, dtype), np.zeros(3, dtype)),
    "health": lambda dtype: fastgrad.health(arrays((31, 7), (5,), dtype=dtype)),
    "global_norm": lambda dtype: call_norms("global_norm", dtype),
    "clip_by_global_norm": lambda dtype: call_norms("clip_by_global_norm", dtype),
    "clip_by_norm": lambda dtype: call_norms("clip_by_norm", dtype),
    "adaptive_clip": lambda dtype: fastgrad.adaptive_clip(*arrays((3, 4), (3, 4), dtype=dtype)),
    "clip_by_value": lambda dtype: fastgrad.clip_by_value(np.ones(3, dtype), 0, 1),
    "apply_masks": lambda dtype: pruning.apply_masks(np.ones(3, dtype), np.zeros(3, dtype)),
    "adam_step": call_adam,
    "sgd_step": call_sgd,
    "rmsprop_step": call_rmsprop,
    "gelu": lambda dtype: call_activation("gelu", dtype),
    "softplus": lambda dtype: call_activation("softplus", dtype),
}


@pytest.mark.parametrize("name", [*_warmup.STEMS, "gelu", "softplus"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_what_a_function_runs_is_compiled_for_it(name, dtype, large, monkeypatch):
    used: set[str] = set()
    run, run_in_turn, clip_in_one = runtime.run, runtime.run_in_turn, norm_cpu._clip_in_one

    def spy(kernel, *args, **kwargs):
        used.add(kernel.name)
        return run(kernel, *args, **kwargs)

    def spy_on_all(*launches):
        used.update(launch[0].name for launch in launches)
        return run_in_turn(*launches)

    def spy_on_both(table, stream, kernel, *args):
        used.update((norm_cpu._sum_squares(table.dtype).name, kernel.name))
        return clip_in_one(table, stream, kernel, *args)

    monkeypatch.setattr(runtime, "run", spy)
    monkeypatch.setattr(runtime, "run_in_turn", spy_on_all)
    monkeypatch.setattr(norm_cpu, "_clip_in_one", spy_on_both)
    if large:
        monkeypatch.setattr(streams, "STREAMING_BYTES", 1)
    CALLS[name](dtype)
    assert used and used <= _warmup.plan((name,), np.dtype(dtype)).keys()


# --- what is done

STEP = """
import sys, numpy as np, fastgrad
from fastgrad import layers
from fastgrad.kernels import runtime
names = "LSTM", "Linear", "embedding", "softmax_cross_entropy", "Adam"
report = fastgrad.warmup(*names, processes=1)
before = len(runtime.builds)
table, rnn, head = layers.Embedding(9, 8), layers.LSTM(8, 16), layers.Linear(16, 9)
parameters = [p for layer in (table, rnn, head) for p in layer.parameters()]
optimizer = fastgrad.Adam(parameters, max_norm=0.1)
characters = np.arange(12).reshape(4, 3) % 9
y, _ = rnn.forward(table.forward(characters))
_, dlogits = fastgrad.softmax_cross_entropy(head.forward(y).reshape(12, 9), characters.reshape(12))
table.backward(rnn.backward(head.backward(dlogits.reshape(4, 3, 9))))
optimizer.step()
fastgrad.global_norm([np.ones(1 << 17, np.float32)])
assert runtime.builds[before:] == [], runtime.builds[before:]
again = fastgrad.warmup(*names)
assert again.count("ready") == len(again.kernels)
assert all(k.seconds > 0 for k in report.kernels)
print(len(report.kernels), report.count("compiled"), report.count("loaded"), report.cache, "numba" in sys.modules)
"""


def test_a_first_step_compiles_nothing(tmp_path):
    cache = {"FASTGRAD_CACHE_DIR": str(tmp_path)}
    count, compiled, loaded, folder, with_numba = python(STEP, **cache).split()
    assert int(count) == int(compiled) > 10 and loaded == "0" and with_numba == "True"
    assert Path(folder).parent == tmp_path
    assert python(STEP, **cache).split() == [count, "0", count, folder, "False"]  # Numba takes longer than the step


MANY = """
import sys, fastgrad
{prepare}
report = fastgrad.warmup("adam_step", "rmsprop_step", "sgd_step", processes=2)
print(report.processes, len(report.kernels), report.count("compiled"), report.count("loaded"))
"""


SLOW = """
import time
from fastgrad import _warmup
def slow(name, jobs, make=_warmup._make):
    factory, key = jobs[name]
    time.sleep(0 if factory.is_cached(key) else 0.3)
    return make(name, jobs)
_warmup._make = slow
"""


def test_processes_share_the_work(tmp_path):
    """It shows in what this process had to compile itself, and it is so slow that help has the time to come."""
    code = MANY.format(prepare=SLOW) + (
        "from fastgrad.kernels import runtime\n"
        "own = sum(b.compiled for b in runtime.builds)\n"
        "assert 3 < own < report.count('compiled'), own\n"
    )
    processes, count, compiled, loaded = python(code, FASTGRAD_CACHE_DIR=str(tmp_path)).split()
    # Both need what runs kernels; who is later may find it in the cache.
    assert processes == "2" and int(compiled) + int(loaded) == int(count) and int(loaded) <= 8
    assert python(MANY.format(prepare=""), FASTGRAD_CACHE_DIR=str(tmp_path)).split() == ["1", count, "0", count]


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense; sleep 100", None], ids=["dead", "mute", "missing"])
def test_a_process_that_does_not_help_costs_nothing_but_its_help(tmp_path, script):
    broken = tmp_path / "python-broken"
    if script is not None:
        broken.write_text(f"#!/bin/sh\n{script}\n")
        broken.chmod(0o755)
    code = MANY.format(prepare=f"sys.executable = {str(broken)!r}")
    processes, count, compiled, _ = python(code, FASTGRAD_CACHE_DIR=str(tmp_path / "cache")).split()
    assert processes == "1" and count == compiled


def test_without_a_cache_it_compiles_here_and_says_so(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    code = "import fastgrad; r = fastgrad.warmup('mse', processes=2); print(r.count('compiled') == len(r.kernels), r)"
    out = python(code, FASTGRAD_CACHE_DIR=str(blocked))
    assert out.startswith("True ") and " 0 loaded from the cache" in out
    assert "none, each process compiles anew" in out and f"{blocked}" in out and "in this process" in out


def test_a_cache_that_is_only_read_is_said_to_be():
    kernel = _warmup.KernelReport("mse_cpu._mse(float32)", "loaded", 0.002)
    report = _warmup.WarmupReport((kernel,), 0.002, 1, Path("/somewhere"), False, ("/somewhere can't be written",))
    assert str(report).splitlines()[1:3] == [
        f"cache: {Path('/somewhere')}, read only: each process compiles anew what it lacks",
        "cache: /somewhere can't be written",
    ]


def test_the_table_shows_every_kernel():
    report = fastgrad.warmup("mse", "clip_by_value")
    text = str(report)
    for kernel in report.kernels:
        assert re.search(rf"\d\.\d\d\d  {kernel.source} +{re.escape(kernel.name)}$", text, re.MULTILINE)
    assert str(report.cache) in text
    assert {"mse_cpu._mse(float32)", "clip_cpu._clamp(float32)"} <= {kernel.name for kernel in report.kernels}


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match=r"names: expected some of gru, lstm, .*gelu.*, Embedding, .*; got 'lstn'"):
        fastgrad.warmup("gelu", "lstn")
    with pytest.raises(TypeError, match="names: expected strings such as 'lstm', got list"):
        fastgrad.warmup(["lstm"])
    for wrong in ("float16", "nothing", int, None):
        with pytest.raises(TypeError, match="dtype: expected float32 or float64, got"):
            fastgrad.warmup("mse", dtype=wrong)
    with pytest.raises(ValueError, match="processes: expected 1 or more, got 0"):
        fastgrad.warmup("mse", processes=0)
    with pytest.raises(TypeError, match="processes: expected an integer or None, got float"):
        fastgrad.warmup("mse", processes=2.0)


def test_the_command():
    command = [sys.executable, "-m", "fastgrad", "warmup"]
    done = subprocess.run([*command, "mse", "--dtype", "float64"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "mse_cpu._mse(float64)" in done.stdout and done.stderr == ""
    done = subprocess.run([*command, "nothing"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "names: expected some of gru, lstm" in done.stderr
