"""What people pass by mistake: an error names the argument, what was expected, what came, and what to do about it."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

import fastgrad
from fastgrad import SGD, Adam, GradientMonitor, RMSprop, init, layers, pruning, schedules
from fastgrad.linear import embedding_backward

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 2, 3)
CLASSES = np.array([0, 2])
ROWS = X.reshape(4, 3)[:2]

CALLS = {
    "an integer beyond all floats": (
        lambda: fastgrad.clip_by_value(X.copy(), -1, 10**400),
        (ValueError, "high: expected a number that fits a float, got an integer of 1329 bits"),
    ),
    "an out of another dtype": (
        lambda: fastgrad.activation(X.astype(np.float64), "gelu", out=np.empty_like(X)),
        (TypeError, "out is float32 but x is float64; the call writes it, so pass an array of float64"),
    ),
    "a bias gradient of another dtype": (
        lambda: fastgrad.activation_backward(X, X, "gelu", bias_grad=np.empty(3)),
        (TypeError, "bias_grad is float64 but x is float32; the call writes it, so pass an array of float32"),
    ),
    "a class number that is no integer": (
        lambda: fastgrad.softmax_cross_entropy(ROWS, CLASSES, ignore_index=-1.0),
        (TypeError, "ignore_index: expected an integer or None, got float"),
    ),
    "a class number that is a bool": (
        lambda: fastgrad.softmax_cross_entropy(ROWS, CLASSES, ignore_index=True),
        (TypeError, "ignore_index: expected an integer or None, got bool"),
    ),
    "a class number of an array": (
        lambda: fastgrad.softmax_cross_entropy(ROWS, CLASSES, ignore_index=np.array([1])),
        (TypeError, "ignore_index: expected an integer or None, got ndarray"),
    ),
    "a class number beyond int64": (
        lambda: fastgrad.softmax_cross_entropy(ROWS, CLASSES, ignore_index=2**63),
        (ValueError, "ignore_index: expected an integer of 64 bits, got 9223372036854775808"),
    ),
    "all that layer_norm returns": (
        lambda: fastgrad.layer_norm_backward(X, fastgrad.layer_norm(X)),
        (TypeError, "saved: expected what fastgrad.layer_norm returned last, got tuple"),
    ),
    "what batch_norm saved for layer_norm": (
        lambda: fastgrad.layer_norm_backward(ROWS, fastgrad.batch_norm(ROWS)[1]),
        (TypeError, "saved: expected what fastgrad.layer_norm returned last, got BatchNormSaved"),
    ),
    "nothing for batch_norm": (
        lambda: fastgrad.batch_norm_backward(ROWS, None),
        (TypeError, "saved: expected what fastgrad.batch_norm returned last, got NoneType"),
    ),
    "a strided running mean": (
        lambda: fastgrad.batch_norm(ROWS, running_mean=np.zeros(6, np.float32)[::2], running_var=ROWS[0].copy()),
        (ValueError, "running_mean: expected a C-contiguous, aligned array, which is updated in place, got strides"),
    ),
    "one running statistic": (
        lambda: fastgrad.batch_norm(ROWS, running_mean=np.zeros(3, np.float32)),
        (ValueError, "running_var: expected an array as running_mean is one, got None"),
    ),
    "threads by bool": (
        lambda: fastgrad.set_num_threads(True),
        (TypeError, "n: expected an integer, got bool"),
    ),
    "a monitor of no model": (
        lambda: GradientMonitor(SGD([ROWS.copy()], lr=0.1), model=5),
        (TypeError, "model: expected a layer of fastgrad.layers, got int"),
    ),
    "a masked array of weights": (
        lambda: fastgrad.reorder_gates(np.ma.ones((4, 2)), "lstm", source="onnx"),
        (TypeError, "array: expected a numpy.ndarray or cupy.ndarray, got numpy.ma.MaskedArray; a subclass of it"),
    ),
    "a matrix of weights": (
        lambda: fastgrad.reorder_gates(np.ones((4, 2)).view(np.matrix), "lstm", source="onnx"),
        (TypeError, "array: expected a numpy.ndarray or cupy.ndarray, got numpy.matrix; a subclass of it"),
    ),
    "a masked array for reordered weights": (
        lambda: fastgrad.reorder_gates(np.ones((4, 2)), "lstm", source="onnx", out=np.ma.ones((4, 2))),
        (TypeError, "out: expected a numpy.ndarray or cupy.ndarray, got numpy.ma.MaskedArray; a subclass of it"),
    ),
    "a list of cells": (
        lambda: fastgrad.reorder_gates(np.ones((4, 2)), ["lstm"], source="onnx"),
        (TypeError, "cell: expected a string, got list"),
    ),
    "a list of frameworks": (
        lambda: fastgrad.reorder_gates(np.ones((4, 2)), "lstm", source=["onnx"]),
        (TypeError, "source: expected a string, got list"),
    ),
    "an axis by name": (
        lambda: fastgrad.reorder_gates(np.ones((4, 2)), "lstm", source="onnx", axis="gates"),
        (TypeError, "axis: expected an integer, got str"),
    ),
    "nothing for attention": (
        lambda: fastgrad.attention_backward(X.reshape(1, 2, 2, 3), None),
        (TypeError, "saved: expected what fastgrad.attention returned last, got NoneType"),
    ),
    "all that attention returns": (
        lambda: fastgrad.attention_backward(X.reshape(1, 2, 2, 3), fastgrad.attention(*[X.reshape(1, 2, 2, 3)] * 3)),
        (TypeError, "saved: expected what fastgrad.attention returned last, got tuple"),
    ),
    "a parameter beyond float32": (
        lambda: fastgrad.activation(X, "elu", alpha=1e300),
        (ValueError, "alpha: expected a number in the range of float32, the dtype of x, got 1e+300"),
    ),
    "a bound beyond float32": (
        lambda: fastgrad.activation_backward(X, X, "hardtanh", min_val=-1e39),
        (ValueError, "min_val: expected a number in the range of float32, the dtype of x, got -1e+39"),
    ),
    "a divisor that is 0 in float32": (
        lambda: fastgrad.activation_dropout(X, "celu", 0.5, 0, alpha=1e-300),
        (ValueError, "alpha: expected a number in the range of float32, the dtype of x, got 1e-300"),
    ),
    "a factor that is 0 in float32": (
        lambda: fastgrad.activation_dropout_backward(X, X, "softplus", 0.5, 0, beta=1e-50),
        (ValueError, "beta: expected a number in the range of float32, the dtype of x, got 1e-50"),
    ),
    "a table of fewer than no rows": (
        lambda: embedding_backward(ROWS, CLASSES, -1),
        (ValueError, "num_embeddings: expected 0 or more, got -1"),
    ),
    "a table of half a row": (
        lambda: embedding_backward(ROWS, CLASSES, 2.5),
        (TypeError, "num_embeddings: expected an integer, got float"),
    ),
    "an unknown threshold": (
        lambda: GradientMonitor(SGD([ROWS.copy()], lr=0.1), vanish=1.0),
        (TypeError, "vanish: expected one of the thresholds vanishing, exploding, largest, update_ratio, dead, satur"),
    ),
    "a threshold that is no number": (
        lambda: GradientMonitor(SGD([ROWS.copy()], lr=0.1), vanishing="1e-6"),
        (TypeError, "vanishing: expected a number, got str"),
    ),
    "no looks before trouble is told": (
        lambda: GradientMonitor(SGD([ROWS.copy()], lr=0.1), patience=0),
        (ValueError, "patience: expected 1 or more, got 0"),
    ),
    "a first step that is no number": (
        lambda: GradientMonitor(SGD([ROWS.copy()], lr=0.1), first_step="5"),
        (TypeError, "first_step: expected an integer, got str"),
    ),
    "a report without a folder": (
        lambda: GradientMonitor(SGD([ROWS.copy()], lr=0.1)).report("nowhere/page.html"),
        (FileNotFoundError, "path: expected a file in a folder that exists, got 'nowhere/page.html'"),
    ),
    "a function without its gradient": (
        lambda: fastgrad.testing.gradcheck(np.sin, np.ones(2)),
        (TypeError, "target: expected a layer with forward and backward, got ufunc; pass the gradient of a"),
    ),
    "a shape that is a number": (
        lambda: init.he_normal(5),
        (TypeError, "shape must be a tuple of integers (out, in), got 5"),
    ),
    "a shape of fractions": (
        lambda: init.orthogonal((3.5, 2)),
        (TypeError, "shape must be a tuple of integers (out, in), got (3.5, 2)"),
    ),
    "the state of something else for a pruner": (
        lambda: pruning.Pruner(ROWS.copy(), 0.5).load_state_dict({}),
        (ValueError, "state_dict: expected what state_dict() returns, got dict"),
    ),
    "a dtype of None": (
        lambda: layers.Linear(2, 3, dtype=None),
        (TypeError, "dtype must be float32 or float64, got None"),
    ),
}  # fmt: skip


def check(call, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


@pytest.mark.parametrize("case", CALLS)
def test_a_call(case):
    call, (error, message) = CALLS[case]
    check(call, error, message)


LAYERS = {
    "Linear": lambda: layers.Linear(3, 4),
    "PReLU": layers.PReLU,
    "LayerNorm": lambda: layers.LayerNorm(3),
    "BatchNorm": lambda: layers.BatchNorm(2),
    "LSTM": lambda: layers.LSTM(3, 4),
    "GRU": lambda: layers.GRU(3, 4),
    "LayerNormLSTM": lambda: layers.LayerNormLSTM(3, 4),
    "MultiHeadAttention": lambda: layers.MultiHeadAttention(3, 1),
    "TransformerBlock": lambda: layers.TransformerBlock(3, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_float64_of_numpy_for_a_layer_of_float32(name):
    layer = LAYERS[name]()
    advice = "convert with x.astype('float32')"
    with pytest.raises(TypeError, match=rf"^x is float64 but .* float32.*{re.escape(advice)}"):
        layer.forward(X.astype(np.float64))


@pytest.mark.parametrize("name", [*LAYERS, "Dropout", "Activation"])
def test_a_gradient_that_is_no_array(name):
    layer = {**LAYERS, "Dropout": layers.Dropout, "Activation": lambda: layers.Activation("gelu")}[name]()

    def backward(dy):
        y = layer.forward(X)
        layer.backward(dy(y[0] if isinstance(y, tuple) else y))

    check(lambda: backward(np.ndarray.tolist), TypeError, "dy: expected a numpy.ndarray or cupy.ndarray, got list")
    if "LSTM" not in name and name != "GRU":  # whose last state alone may have a gradient
        check(lambda: backward(lambda y: None), TypeError, "dy: expected a numpy.ndarray or cupy.ndarray, got None")


def recurrent_calls():
    """Each backward of a recurrent op by name, with its gradients and what the forward pass saved."""
    x, state, wide, square, gain = X, *[np.ones(shape, np.float32) for shape in ((2, 2), (8, 3), (8, 2), 8)]
    weights, three = (wide, square), (wide[:6], square[:6])
    *_, lstm = fastgrad.lstm(x, None, None, *weights)
    *_, lstm_cell = fastgrad.lstm_cell(x[0], None, None, *weights)
    *_, gru = fastgrad.gru(x, None, *three)
    *_, normalized = fastgrad.layer_norm_lstm(x, None, None, *weights, gain, gain, gain[:2])
    return {
        "lstm": (fastgrad.lstm_backward, ("dy", "dhn", "dcn"), lstm, state),
        "lstm_cell": (fastgrad.lstm_cell_backward, ("dh_next", "dc_next"), lstm_cell, state),
        "gru": (fastgrad.gru_backward, ("dy", "dhn"), gru, state),
        "layer_norm_lstm": (fastgrad.layer_norm_lstm_backward, ("dy", "dhn", "dcn"), normalized, state),
    }


@pytest.mark.parametrize("op", ["lstm", "lstm_cell", "gru", "layer_norm_lstm"])
def test_no_gradient_at_all_for_a_recurrent_op(op):
    """Zeros came back, of which a forgotten gradient trains nothing without a word."""
    backward, names, saved, state = recurrent_calls()[op]
    message = f"{', '.join(names)}: expected an array for at least one of them, got None for all; pass zeros"
    check(lambda: backward(*[None] * len(names), saved), TypeError, message)
    assert all(np.isfinite(d).all() for d in backward(*[None] * (len(names) - 1), state, saved) if d is not None)


def test_no_gradient_for_a_gru_cell():
    *_, saved = fastgrad.gru_cell(X[0], None, np.ones((6, 3), np.float32), np.ones((6, 2), np.float32))
    message = "dh_next: expected a numpy.ndarray or cupy.ndarray, got None"
    check(lambda: fastgrad.gru_cell_backward(None, saved), TypeError, message)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LayerNormLSTM"])
def test_no_gradient_at_all_for_a_recurrent_layer(name):
    layer = LAYERS[name]()
    layer.forward(X)
    message = "dy, dstate: expected an array for at least one of them, got None for all; pass zeros"
    for dstate in (None, *([(None, None)] if "LSTM" in name else [])):
        check(lambda dstate=dstate: layer.backward(None, dstate), TypeError, message)
    layer.backward(np.ones((2, 2, 4), np.float32))  # what forward kept is still there


def test_numbers_that_are_no_integers_for_an_embedding():
    for x in (X, X.astype(np.float64)):
        message = f"indices: expected integers, got {x.dtype}; convert it with indices.astype('int64')"
        check(lambda x=x: layers.Embedding(5, 2).forward(x), TypeError, message)


def test_a_gradient_of_another_shape_or_dtype_is_refused_where_it_is_made():
    """NumPy would broadcast the second of two into the first, and train on a wrong gradient in silence."""
    linear = layers.Linear(3, 4)
    bias = linear.bias
    bias.accumulate(np.ones(4, np.float32))
    said = "gradient of bias: expected a float32 array of shape (4,), that of its data, got "
    for wrong, what in (
        (np.ones(1, np.float32), "float32 of shape (1,)"),
        (np.ones(4), "float64 of shape (4,)"),
        (np.ones((4, 1), np.float32), "float32 of shape (4, 1)"),
        (np.float32(1), "float32"),
        ([1.0] * 4, "list"),
        (None, "NoneType"),
    ):
        check(lambda wrong=wrong: bias.accumulate(wrong), (TypeError, ValueError), said + what)
        assert (bias.grad == 1).all()
        bias.grad = None
        check(lambda wrong=wrong: bias.accumulate(wrong), (TypeError, ValueError), said + what)
        bias.accumulate(np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([1.0], TypeError, "data: expected a numpy.ndarray or cupy.ndarray, got list"),
        (np.ones(2, int), TypeError, "data: expected float32 or float64, got int64"),
        (np.ones(2, np.float16), TypeError, "data: expected float32 or float64, got float16"),
        (np.ma.ones(2), TypeError, "data: expected a numpy.ndarray or cupy.ndarray, got numpy.ma"),
    ],
)
def test_a_parameter_of_something_else(data, error, message):
    check(lambda: layers.Parameter(data), error, message)


@pytest.mark.parametrize("kind", [Adam, SGD, RMSprop])
def test_an_optimizer_of_no_list(kind):
    for wrong, message in (
        (layers.Linear(2, 3), "params: expected a list of Parameters or arrays, got Linear; pass its parameters()"),
        (None, "params: expected a list of Parameters or arrays, got None"),
        ("weights", "params: expected a list of Parameters or arrays, got str"),
        (5, "params: expected a list of Parameters or arrays, got int"),
    ):
        check(lambda wrong=wrong: kind(wrong, lr=0.1), TypeError, message)
        check(lambda wrong=wrong: kind([{"params": wrong}], lr=0.1), TypeError, message.replace(":", "[0]:", 1))


def test_a_state_that_is_none():
    optimizer, linear = SGD([np.ones(2)], lr=0.1), layers.Linear(2, 3)
    check(lambda: optimizer.load_state_dict(None), TypeError, "state_dict: expected what state_dict() returns, got No")
    check(
        lambda: optimizer.load_state_dict({"state": {}}),
        ValueError,
        "state_dict: the entry 'param_groups' is missing; expected what state_dict() returns",
    )
    check(lambda: linear.load_state_dict(None), TypeError, "state: expected a mapping of names to arrays, got NoneType")


def test_a_loaded_state_has_no_skipped_steps_behind_it():
    optimizer = Adam([np.ones(2)], max_skips=2)
    state = optimizer.state_dict()
    assert optimizer.step(np.full(2, np.nan)).skipped
    optimizer.load_state_dict(state)
    assert optimizer.step(np.full(2, np.nan)).skipped


def test_a_monitor_and_an_optimizer_take_the_integers_of_numpy():
    optimizer = Adam([np.ones(2)], max_skips=np.int64(3))
    assert optimizer.max_skips == 3 and GradientMonitor(optimizer, every=np.int32(2)).every == 2


def test_schedules_take_the_integers_of_numpy():
    rate = schedules.chain((np.int64(2), schedules.Linear(0.0, 1.0, np.int32(2))), schedules.Cosine(1.0, np.int64(4)))
    assert [rate(step) for step in range(3)] == [0.0, 0.5, 1.0]
    check(lambda: schedules.Step(1.0, True), TypeError, "every: expected an integer, got bool")
    check(lambda: schedules.Step(1.0, 2.0), TypeError, "every: expected an integer, got float")


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LayerNormLSTM"])
def test_a_recurrent_layer_says_what_it_takes(name):
    """A call by (*args, **kwargs) told readers nothing, and a typo named a class that nobody had called."""
    kind = getattr(layers, name)
    parameters = inspect.signature(kind).parameters
    shared = ["input_size", "hidden_size", "num_layers", "bidirectional", "batch_first", "zoneout_h", "input_dropout",
              "recurrent_dropout", "state_grad_clip", "rng", "dtype", "device"]  # fmt: skip
    own = {"LSTM": ["zoneout_c"], "GRU": ["reset_after"], "LayerNormLSTM": ["zoneout_c", "gain", "eps"]}[name]
    assert sorted(parameters) == sorted(shared + own)
    assert list(parameters)[:5] == shared[:5]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[5:])
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected keyword argument 'zoneout'"):
        kind(3, 4, zoneout=0.1)
    options = {"zoneout_h": 0.1, "input_dropout": 0.3, "recurrent_dropout": 0.4, "state_grad_clip": 0.5}
    options |= {"zoneout_c": 0.2, "gain": 0.6, "eps": 0.7, "reset_after": False}
    options = {option: value for option, value in options.items() if option in parameters}
    layer = kind(3, 4, 2, True, True, **options, rng=0, dtype=np.float64)
    assert {option: getattr(layer, option, 0.6) for option in options} == options
    assert (layer.num_layers, layer.bidirectional, layer.batch_first, layer.dtype) == (2, True, True, np.float64)


def test_what_is_left_of_the_range_of_float32():
    """The largest numbers and the smallest are taken, and in float64 those beyond; none gives NaN at 0."""
    largest, smallest = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)
    for kind, name, values in (("elu", "alpha", (largest, 1e-300)), ("celu", "alpha", (largest, smallest))):
        for value in values:
            assert np.isfinite(fastgrad.activation(X, kind, **{name: value})).all()
    assert fastgrad.activation(np.zeros(1), "elu", alpha=1e300) == 0
    assert layers.Activation("elu", alpha=1e300).forward(np.zeros(1)) == 0


FLAGS = {
    "training": lambda flag: fastgrad.batch_norm(
        ROWS, running_mean=np.zeros(3, np.float32), running_var=np.ones(3, np.float32), training=flag
    ),
    "causal": lambda flag: fastgrad.attention(*[X.reshape(1, 2, 2, 3)] * 3, causal=flag),
    "reverse": lambda flag: fastgrad.lstm(X, None, None, WEIGHT_IH, WEIGHT_HH, reverse=flag),
    "reset_after": lambda flag: fastgrad.gru(X, None, WEIGHT_IH[:6], WEIGHT_HH[:6], reset_after=flag),
    "maximize": lambda flag: fastgrad.sgd_step(ROWS.copy(), ROWS.copy(), lr=0.1, maximize=flag),
    "decoupled": lambda flag: fastgrad.adam_step(*[ROWS**2 for _ in range(4)], step=1, decoupled=flag),
    "bidirectional": lambda flag: layers.LSTM(3, 4, bidirectional=flag),
    "batch_first": lambda flag: layers.MultiHeadAttention(4, 2, batch_first=flag),
    "mode": lambda flag: layers.Dropout(0.5).train(flag),
}
WEIGHT_IH, WEIGHT_HH = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_that_is_neither_true_nor_false(name):
    """The "no" of a configuration file is true."""
    for wrong, what in (("no", "'no'"), (None, "None"), (2, "2"), (0.0, "0.0"), (np.array([0]), "array([0])")):
        check(lambda wrong=wrong: FLAGS[name](wrong), TypeError, f"{name}: expected True or False, got {what}")
    for right in (True, False, np.True_, np.False_, 0, 1, np.int64(1)):
        FLAGS[name](right)
