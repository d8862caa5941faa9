"""What only a GPU can show: graphs of whole steps, cuBLAS itself, cooperative launches, limits of a launch.

The emulated device has graphs of its own kind, see test_capture.py; its other cases are skipped.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from support import random

import fastgrad

STEPS = 3  # replays of a graph, and steps set beside them


@pytest.fixture
def cupy(device):
    """CuPy, where the device is a real one."""
    if getattr(device, "__name__", "") != "cupy":
        pytest.skip("needs a GPU: the emulated device has no cuBLAS and no limits of a launch")
    return device


@pytest.fixture
def stream(device):
    """A stream that can be captured, the current one."""
    with device.cuda.Stream(non_blocking=True) as stream:
        yield stream
        stream.synchronize()


@contextlib.contextmanager
def captured(stream, graphs):
    """Capture what is launched inside, and append the graph; a failure inside ends the capture as well."""
    stream.begin_capture()
    try:
        yield
    except BaseException:
        with contextlib.suppress(RuntimeError):  # a capture that something has invalidated
            stream.end_capture()
        raise
    graphs.append(stream.end_capture())


@pytest.fixture
def way():
    """The function that chooses the way through the steps of a recurrent layer, which is restored."""
    from fastgrad.kernels import recurrent_gpu

    before = recurrent_gpu.method()
    yield recurrent_gpu.set_method
    recurrent_gpu.set_method(before)


def numbers(shapes, dtype, seed=0):
    return [random(seed + k, shape, dtype) for k, shape in enumerate(shapes)]


SHAPES = [(3,), (130, 257), (0, 4), (40_000,), (1,), (33, 7)]


@pytest.mark.parametrize("optimizer", [fastgrad.SGD, fastgrad.RMSprop, fastgrad.Adam, fastgrad.AdamW])
def test_a_graph_of_clip_and_step(device, stream, dtype, optimizer):
    """Three replays are three steps, bit for bit; the count of steps, the report and a changed lr go along."""
    options = {"lr": 0.05, "max_norm": 0.5, "weight_decay": 0.1}
    if optimizer is fastgrad.SGD:
        options["momentum"] = 0.9
    ours, eager = ([device.asarray(a) for a in numbers(SHAPES, dtype)] for _ in range(2))
    grads = [device.asarray(a) for a in numbers(SHAPES, dtype, seed=100)]
    replayed, stepped = optimizer(ours, **options), optimizer(eager, **options)
    for one in (replayed, stepped):
        one.step(grads)
    graphs: list = []
    with captured(stream, graphs):
        report = replayed.step(grads)
    for _ in range(STEPS):
        graphs[0].launch(stream)
        last = stepped.step(grads)
    for group in (*replayed.param_groups, *stepped.param_groups):
        group["lr"] = 0.2
    replayed.refresh()
    graphs[0].launch(stream)
    last = stepped.step(grads)
    assert (report.grad_norm, report.clip_coefficient) == (last.grad_norm, last.clip_coefficient)
    for mine, other in zip(ours, eager, strict=True):
        np.testing.assert_array_equal(mine.get(), other.get())
    one, two = replayed.state_dict()["state"], stepped.state_dict()["state"]
    assert one.keys() == two.keys()
    for index in one:
        for key, value in one[index].items():
            other = two[index][key]
            np.testing.assert_array_equal(*(v.get() if hasattr(v, "get") else v for v in (value, other)))


def test_a_graph_refuses_a_table_that_is_not_there(device, stream):
    arrays = [device.asarray(a) for a in numbers(SHAPES, np.float32)]
    with pytest.raises(RuntimeError, match="while a graph is captured"), captured(stream, []):
        fastgrad.clip_by_global_norm(arrays, 1.0)
    assert np.isfinite(float(fastgrad.global_norm(arrays)))  # the stream works on


def test_graphs_of_one_stream_run_side_by_side(device, stream, dtype):
    """Long products of few results, which cuBLAS cuts up and sums in its workspace."""
    from fastgrad.kernels.matmul_gpu import matmul

    k = 30_000 if getattr(device, "__name__", "") == "cupy" else 30
    graphs, expected, found = [], [], []
    for seed in (1, 11):
        a, b = (device.asarray(random(seed + i, (40, k), dtype)) for i in range(2))
        results = [device.zeros((40, 40), dtype) for _ in range(2)]
        matmul(a, b, results[0], transpose_b=True)
        with captured(stream, graphs):
            matmul(a, b, results[1], transpose_b=True)
        expected.append(results[0].get())
        found.append(results[1])
        del a, b
    filled = [device.full((40, k), np.nan, dtype) for _ in range(8)]
    stream.synchronize()
    others = [device.cuda.Stream(non_blocking=True) for _ in graphs]
    for _ in range(20):
        for graph, other in zip(graphs, others, strict=True):
            graph.launch(other)
    for other, mine, right in zip(others, found, expected, strict=True):
        other.synchronize()
        np.testing.assert_array_equal(mine.get(), right)
    assert len(filled) == 8


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["stepwise", "persistent"])
def test_a_graph_of_a_recurrent_step(device, stream, way, name, cell):
    """Forward, backward, clip and Adam in one graph, gradients in arrays that stay; beside eager steps."""
    way(name)
    T, B, I, H = 6, 5, 8, 16  # noqa: E741 - the letters of the field
    gates, states = (4, 2) if cell == "lstm" else (3, 1)
    forward, backward = getattr(fastgrad, cell), getattr(fastgrad, f"{cell}_backward")
    shapes = [(gates * H, I), (gates * H, H), (gates * H,), (gates * H,)]

    class Model:
        def __init__(self):
            self.x, self.dy = (device.asarray(random(seed, (T, B, n), np.float32)) for seed, n in ((50, I), (51, H)))
            self.params = [device.asarray(a) for a in numbers(shapes, np.float32)]
            self.grads = [device.zeros_like(p) for p in self.params]
            self.optimizer = fastgrad.Adam(self.params, lr=0.01, max_norm=0.7)

        def step(self):
            *_, saved = forward(self.x, *[None] * states, *self.params)
            found = backward(self.dy, *[None] * states, saved)
            for grad, new in zip(self.grads, found[-4:], strict=True):
                grad[...] = new
            return self.optimizer.step(self.grads)

    with device.cuda.Stream.null:
        eager = Model()
        for _ in range(1 + STEPS):
            expected = eager.step()
        device.cuda.Stream.null.synchronize()
    model = Model()
    model.step()
    graphs: list = []
    with captured(stream, graphs):
        report = model.step()
    for _ in range(STEPS):
        graphs[0].launch(stream)
    stream.synchronize()
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    for mine, other in zip(model.params, eager.params, strict=True):
        np.testing.assert_allclose(mine.get(), other.get(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 1, 8, 4), (7, 5, 6, 12), (5, 33, 16, 64), (4, 16, 20, 256), (3, 20, 4, 1024)])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["stepwise", "persistent"])
def test_both_ways_through_a_recurrent_layer(cupy, way, name, cell, sizes):
    way(name)
    T, B, I, H = sizes  # noqa: E741 - the letters of the field
    gates, states = (4, 2) if cell == "lstm" else (3, 1)
    scale = H**-0.5
    weights = [a * np.float32(scale) for a in numbers([(gates * H, I), (gates * H, H)], np.float32)]
    biases = numbers([(gates * H,)] * 2, np.float32, seed=9)
    x, dy = random(5, (T, B, I), np.float32), random(6, (T, B, H), np.float32)
    for options in ({}, {"reverse": True}, {"lengths": np.arange(B) % (T + 1)}):
        found = []
        for there in (False, True):
            place = cupy.asarray if there else np.asarray
            given = [place(a) for a in (*weights, *biases)]
            lengths = {k: place(v) if k == "lengths" else v for k, v in options.items()}
            y, _, saved = getattr(fastgrad, cell)(place(x), *[None] * states, *given, **lengths)
            grads = getattr(fastgrad, f"{cell}_backward")(place(dy), *[None] * states, saved)
            found.append([a if isinstance(a, np.ndarray) else a.get() for a in (y, *grads)])
        for k, (one, other) in enumerate(zip(*found, strict=True)):
            tolerance = 1e-4 * np.abs(one).max(initial=1e-3)
            np.testing.assert_allclose(other, one, rtol=0, atol=tolerance, err_msg=f"{options} result {k}")


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_cublas(cupy, dtype, transposed):
    """By rows, with rows that lie apart, added to what is there; and float32 is computed in float32, not TF32."""
    from fastgrad.kernels.matmul_gpu import matmul

    m, n, k = 70, 33, 515
    a, b = random(1, (k, m) if transposed[0] else (m, k), dtype), random(2, (n, k) if transposed[1] else (k, n), dtype)
    wide = [cupy.asarray(np.concatenate([array, array], axis=1)) for array in (a, b)]
    out = cupy.asarray(np.ones((m, 2 * n), dtype))
    exact = (a.T if transposed[0] else a).astype(np.float64) @ (b.T if transposed[1] else b).astype(np.float64)
    largest = np.abs(exact).max()
    for accumulate in (False, True):
        matmul(
            wide[0][:, : a.shape[1]], wide[1][:, : b.shape[1]], out[:, :n], transpose_a=transposed[0],
            transpose_b=transposed[1], accumulate=accumulate,
        )  # fmt: skip
        expected = exact * (2 if accumulate else 1)
        # TF32 has 10 bits: it would be off by 1e-4.
        assert np.abs(out[:, :n].get() - expected).max() <= (1e-5 if dtype is np.float32 else 1e-14) * largest
    np.testing.assert_array_equal(out[:, n:].get(), 1)


def test_rows_that_take_all_kinds_of_shared_memory(on_device, cupy):
    """Less than 48 KB, just about it, most of what there is, and less again: a kernel's limit stays what it was."""
    call = on_device(fastgrad.softmax_cross_entropy)
    for classes in (12_100, 12_284, 50_257, 20_000, 57_900, 58_300, 12_284):
        logits, targets = random(classes, (3, classes), np.float32), np.array([0, classes // 2, classes - 1])
        loss, gradient = call(logits, targets)
        expected, exact = fastgrad.softmax_cross_entropy(logits, targets)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-9)


def test_a_cooperative_launch_that_does_not_fit_is_refused(cupy):
    from fastgrad.kernels import cuda, lstm_gpu

    x = cupy.zeros((1, 1, 4), np.float32)
    device = cuda.device_of(x)
    text = lstm_gpu._PERSISTENT_FORWARD.text("float32", units=8, depth=1)
    launch = device.function(text, "fg_lstm_persistent_forward", False)
    with pytest.raises(RuntimeError, match="must run at the same time"):
        launch((1 << 20,), (256,), (), 0, (), True)
