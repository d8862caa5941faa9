"""Every operation in a captured graph: nothing happens in the capture, each launch of the graph is the same call again.

A graph owns no memory. What it reads and writes must be there for as long as it is, whoever drops what a call has
returned: the emulated stream (see emulated.py) fails a launch that comes upon memory that was freed.
"""

from __future__ import annotations

import functools
import gc
import importlib
from typing import Any

import emulated
import numpy as np
import pytest
from fastgrad.kernels import cuda
from support import random

import fastgrad
from devtools import every_op
from fastgrad import layers, pruning

for _file in sorted(cuda.FOLDER.glob("*_gpu.py")):
    importlib.import_module(f"fastgrad.kernels.{_file.stem}")
DECLARED = {kernel.name for kernel in cuda.declared}
pytestmark = pytest.mark.usefixtures("emulated_gpu")


def arrays_in(value: Any, seen: set[int] | None = None) -> list[emulated.ndarray]:
    """Return all device arrays that a value leads to, each once."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type):
        return []
    seen.add(id(value))
    if isinstance(value, emulated.ndarray):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif type(value).__module__.startswith("fastgrad") and hasattr(value, "__dict__"):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        return [array for part in value for array in arrays_in(part, seen)]
    return []


def restore(arrays, hosts):
    for array, host in zip(arrays, hosts, strict=True):
        array._host[...] = host


def same(arrays, hosts, what):
    assert len(arrays) == len(hosts)
    for array, host in zip(arrays, hosts, strict=True):
        np.testing.assert_array_equal(array._host, host, err_msg=what)


@pytest.fixture
def graphs():
    """The graphs that a test makes, none of whose memory may be freed in the end."""
    made: list[emulated.Graph] = []
    yield made
    gc.collect()
    for graph in made:
        graph.check()


def check(what, given, function, graphs):
    """Call a function as it is and by a graph; both must come to the same bits, and nothing the graph uses be freed.

    given : what leads to the arrays that the call changes
    graphs : gets the graph
    """
    with emulated.Stream(non_blocking=True) as stream:
        before = [a.get() for a in arrays_in(given)]
        result = function()
        arrays, results = arrays_in(given), arrays_in(result)
        if len(arrays) != len(before):
            return result  # the first step of an optimizer makes its state
        after, expected = [a.get() for a in arrays], [a.get() for a in results]
        restore(arrays, before)
        stream.begin_capture()
        try:
            other = function()
        except BaseException:
            restore(arrays, after)
            raise
        finally:
            graph = stream.end_capture()
        graphs.append(graph)
        graph.inputs = arrays  # the caller's own
        same(arrays, before, f"{what} did something in the capture")
        again = arrays_in(other)
        graph.launch(stream)
        same(arrays_in(given), after, f"{what}: what it changes")
        same(again, expected, f"{what}: what it returns")
        del other, again
        graph.check()
    return result


class EveryCall:
    """The public functions, each called as it is and by a graph."""

    def __init__(self, graphs: list[emulated.Graph]) -> None:
        self.graphs = graphs
        self.kinds: set[Any] = set()  # of the calls that were captured

    def __getattr__(self, name: str) -> Any:
        function = getattr(fastgrad, name)
        if not isinstance(function, type):
            return functools.partial(self.call, name, function)

        class Optimizer(function):
            def step(inner, *args: Any, **kwargs: Any) -> Any:
                return self.call(f"{name}.step", function.step, inner, *args, **kwargs)

        return Optimizer

    def call(self, name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        # Which activation or which bound it is makes no difference here.
        kind = name, *sorted(kwargs), *(a.shape for a in arrays_in(given))
        on_the_host = any(isinstance(value, list) and isinstance(value[0], int) for value in given)
        if kind in self.kinds:
            return function(*args, **kwargs)
        self.kinds.add(kind)
        if on_the_host:  # lengths in a list
            with pytest.raises(RuntimeError, match="the host's numbers while the stream is being captured"):
                check(name, given, lambda: function(*args, **kwargs), self.graphs)
            return function(*args, **kwargs)
        return check(name, given, lambda: function(*args, **kwargs), self.graphs)


def all_layers(layer):
    yield layer
    for _, member in layer._members():
        if isinstance(member, layers.Layer):
            yield from all_layers(member)


MODELS = [
    lambda: (layers.TransformerBlock(8, 2, 12, "swiglu", rng=3, dropout=0.2), (5, 2, 8)),
    lambda: (layers.TransformerBlock(8, 2, 12, "gelu", norm="post", rng=3), (5, 2, 8)),
    lambda: (layers.Residual(layers.Linear(8, 8, rng=1), "pre", 8), (4, 8)),
    lambda: (layers.Sequential(layers.Embedding(7, 8, rng=1), layers.Residual(layers.Linear(8, 8, rng=1))), None),
    lambda: (layers.LSTM(6, 5, num_layers=2, bidirectional=True, zoneout_h=0.2, rng=1), (3, 2, 6)),
    lambda: (layers.GRU(6, 5, num_layers=2, bidirectional=True, rng=1), (3, 2, 6)),
    lambda: (layers.GRU(6, 5, reset_after=False, zoneout_h=0.2, rng=1), (3, 2, 6)),
    lambda: (layers.LayerNormLSTM(6, 5, rng=1), (3, 2, 6)),
]


def model_in_a_graph(make, graphs):
    """Forward, loss, backward, clip and step of a model in one graph; layers keep arrays for themselves."""
    model, shape = make()
    model.to("gpu")
    numbers = random(1, shape, np.float32) if shape else np.arange(2100).reshape(3, 700) % 7
    x = emulated.Module.asarray(numbers)
    parameters = model.parameters()
    optimizer = fastgrad.Adam(parameters, max_norm=1.0)
    target = None

    def step():
        nonlocal target
        for layer in all_layers(model):
            if hasattr(layer, "offset"):
                layer.offset = 0
        y = model.forward(x)
        y = y[0] if isinstance(y, tuple) else y
        if target is None:
            target = emulated.Module.asarray(random(2, y.shape, np.float32))
        loss, dy = fastgrad.mse(y, target)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad[...] = 0
        model.backward(dy)
        return loss, optimizer.step()

    given = [x, parameters, optimizer]
    for _ in range(2):  # the first one makes the gradients and the optimizer's state
        check(repr(model), given, step, graphs)


def others(fg):
    """Calls that devtools.every_op does not make: other shapes of an array, lengths on the device, many indices."""
    there = emulated.Module.asarray

    def numbers(*shape):
        return there(random(len(shape), shape, np.float32))

    fg.prelu(numbers(5, 3), numbers(3))
    fg.prelu_backward(numbers(5, 3), numbers(5, 3), numbers(3))
    lengths = there(np.array([3, 0, 2]))
    for options in ({}, {"lengths": lengths}):
        y, _, saved = fg.lstm(numbers(3, 3, 4), None, None, numbers(20, 4), numbers(20, 5), **options)
        fg.lstm_backward(numbers(*y.shape), None, None, saved)


# fg_delay is what a clock waits for, whose times no graph has.
def test_every_kernel_in_a_graph(graphs):
    """Each operation and models of all layers; no kernel that any launcher has may be missing."""
    calls = EveryCall(graphs)
    every_op.every_op(emulated.Module, np.float32, calls)
    others(calls)
    for make in MODELS:
        model_in_a_graph(make, graphs)
    weights, masks = ([emulated.Module.asarray(random(k, 9, np.float32))] for k in range(2))
    check("apply_masks", [weights, masks], lambda: pruning.apply_masks(weights, masks), graphs)
    assert DECLARED - {name for graph in graphs for name in graph.names} == {"fg_delay"}


def test_scratch_that_nobody_keeps_is_seen(monkeypatch):
    """The check itself: without what `cuda.captured` holds, the graph's partial sums are anybody's."""

    class Forgetting(list):
        def append(self, value):
            pass

    x, dy, total = (emulated.Module.asarray(random(k, (5, 7), np.float32)) for k in range(3))
    total = total[0]

    def call():
        return fastgrad.activation_backward(dy, x, "relu", bias_grad=total)

    check("activation_backward", [dy, x, total], call, [])
    monkeypatch.setattr(cuda, "captured", Forgetting())
    with pytest.raises(RuntimeError, match=r"a graph uses an array of \(\d+, 7\) that was freed after the capture"):
        check("activation_backward", [dy, x, total], call, [])


def test_what_a_capture_refuses():
    x, single = (emulated.Module.asarray(np.ones(shape, np.float32)) for shape in (3, ()))
    with emulated.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        for wait in (x.get, single.item, lambda: emulated.Module.asarray([1.0]), stream.synchronize):
            with pytest.raises(RuntimeError, match="while the stream is being captured"):
                wait()
        y = x + 1.0
        graph = stream.end_capture()
    assert np.isnan(y.get()).all()  # nothing was computed
    graph.launch()
    np.testing.assert_array_equal(y.get(), 2.0)
