"""Numbers from the test suites of other libraries, read from a folder beside the repository where there is one."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from tolerances import TOLERANCES

import fastgrad
from fastgrad.activations import KINDS

FILE = Path(__file__).resolve().parents[2] / "shared" / "conformance" / "literals.json"
if not FILE.is_file():
    pytest.skip(f"the conformance cases are not here ({FILE})", allow_module_level=True)
CASES = json.loads(FILE.read_text())["cases"]


def cases(*ops):
    found = [case for case in CASES if case["op"] in ops]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


def check(actual, case, name, dtype):
    """Compare with the case's own tolerance; float32 adds its rounding of the largest entry."""
    expected = np.asarray(case["expected"][name], dtype=np.float64)
    rounding = TOLERANCES["product"]["float32"] * np.abs(expected).max(initial=0) if dtype is np.float32 else 0.0
    actual = np.asarray(actual, dtype=np.float64)
    np.testing.assert_allclose(actual, expected, rtol=case["rtol"], atol=case["atol"] + rounding, err_msg=name)


def test_the_file_holds_what_it_says():
    assert len(CASES) == 290
    known = {"rnn", "rnn_backward", "lstm_backward_saved", "activation", "optim", "loss", "clip", "clip_per_example",
             "constraint", "layer_norm", "batch_norm_train", "batch_norm_eval"}  # fmt: skip
    assert {case["op"] for case in CASES} <= known


def arrays(case, dtype, *names):
    return [np.array(case[name], dtype=dtype) for name in names]


@cases("layer_norm")
def test_layer_norm(backend, dtype, case):
    y, _ = fastgrad.layer_norm(*arrays(case, dtype, "x", "weight", "bias"), eps=case["eps"])
    check(y, case, "y", dtype)


@cases("batch_norm_train", "batch_norm_eval")
def test_batch_norm(backend, dtype, case):
    training = case["op"] == "batch_norm_train"
    given = arrays(case, dtype, "x", "weight", "bias", "running_mean", "running_var")
    y, _ = fastgrad.batch_norm(*given, training=training, momentum=case.get("momentum", 0.1), eps=case["eps"])
    results = {"y": y, "running_mean": given[3], "running_var": given[4]}
    for name in case["expected"]:
        check(results[name], case, name, dtype)


def without_masked_steps(x, mask):
    """Return the steps of each sequence where mask (T, B) is set, moved to the front, and how many there are."""
    packed = np.zeros_like(x)
    for b, kept in enumerate(mask.T.astype(bool)):
        packed[: kept.sum(), b] = x[kept, b]
    return packed, mask.sum(axis=0)


def with_masked_steps(y, mask, output):
    """Put the steps of y back to where the mask is set; in between, y is 0 or holds the step before."""
    spread = np.zeros_like(y)
    for b, kept in enumerate(mask.T.astype(bool)):
        position = -1
        for t, valid in enumerate(kept):
            position += int(valid)
            if valid or (output == "hold" and position >= 0):
                spread[t, b] = y[position, b]
    return spread


def rnn_arrays(case, dtype, *names):
    return [None if case.get(name) is None else np.array(case[name], dtype=dtype) for name in names]


@cases("rnn")
def test_rnn(backend, dtype, case):
    if "features" in case:
        pytest.skip(f"{case['id']}: {', '.join(case['features'])} is outside of the common form of the cells")
    x, h0, c0 = rnn_arrays(case, dtype, "x", "h0", "c0")
    weights = rnn_arrays(case, dtype, "W_ih", "W_hh", "b_ih", "b_hh")
    mask = np.array(case["mask"]) if "mask" in case else None
    lengths = case.get("lengths")
    if mask is not None:
        x, lengths = without_masked_steps(x, mask)
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[case["direction"]]
    ys, hns, cns = [], [], []
    for d, reverse in enumerate(directions):
        parameters = [w[d] for w in weights]
        if case["kind"] == "lstm":
            y, (hn, cn), _ = fastgrad.lstm(x, h0[d], c0[d], *parameters, lengths=lengths, reverse=reverse)
            cns.append(cn)
        else:
            y, hn, _ = fastgrad.gru(
                x, h0[d], *parameters, lengths=lengths, reverse=reverse, reset_after=bool(case["linear_before_reset"])
            )
        if mask is not None:
            y = with_masked_steps(y, mask, case.get("mask_output"))
        ys.append(y)
        hns.append(hn)
    results = {"y": np.concatenate(ys, axis=-1), "h_n": np.stack(hns), "y_sum_dirs": sum(ys)}
    if cns:
        results["c_n"] = np.stack(cns)
    for name in case["expected"]:
        check(results[name], case, name, dtype)


@cases("rnn_backward")
def test_rnn_backward(backend, dtype, case):
    x, h0, dy = rnn_arrays(case, dtype, "x", "h0", "grad_y")
    weights = [w[0] for w in rnn_arrays(case, dtype, "W_ih", "W_hh", "b_ih", "b_hh")]
    assert case["kind"] == "gru"
    _, _, saved = fastgrad.gru(x, h0[0], *weights, reset_after=bool(case["linear_before_reset"]))
    g = fastgrad.gru_backward(dy, None, saved)
    results = {"grad_x": g.dx, "grad_W_ih": g.dweight_ih[None], "grad_W_hh": g.dweight_hh[None], "grad_h0": g.dh0[None],
               "grad_b_ih": g.dbias_ih[None], "grad_b_hh": g.dbias_hh[None]}  # fmt: skip
    for name in case["expected"]:
        check(results[name], case, name, dtype)


@cases("lstm_backward_saved")
def test_lstm_backward_of_given_gates(case):
    pytest.skip(
        f"{case['id']}: its saved gates do not belong to its x, and what backward takes is made by forward only"
    )


@cases("activation")
def test_activation(backend, dtype, case):
    kind, params = case["fn"], dict(case["params"])
    x = np.array(case["x"], dtype=dtype)
    if kind == "gelu" and params.pop("approximate") == "tanh":
        kind = "gelu_tanh"
    if kind == "hardsigmoid" and params:
        pytest.skip(f"{case['id']}: a hardsigmoid with another slope than torch's")
    if kind == "prelu":
        # One weight per entry of a vector is one per channel of a batch of one.
        weight = np.array(params["weight"], dtype=dtype)
        x = x[None] if x.ndim == 1 else x
        y = fastgrad.prelu(x, weight)
    elif kind in KINDS:
        y = fastgrad.activation(x, kind, **params)
    else:
        pytest.skip(f"{case['id']}: {kind} is none of the activations of fastgrad")
    results = {"y": y}
    if "dx" in case["expected"]:
        dy = case["dy"]
        dy = eval(dy, {"exp": np.exp, "y": y}) if isinstance(dy, str) else np.array(dy, dtype=dtype).reshape(x.shape)
        if kind == "prelu":
            results["dx"], results["dweight"] = fastgrad.prelu_backward(dy, x, weight)
        else:
            results["dx"] = fastgrad.activation_backward(dy, x, kind, **params)
    for name in case["expected"]:
        check(np.reshape(results[name], np.shape(case["expected"][name])), case, name, dtype)


SKIPPED_OPTIMIZERS = {
    "ema": "an average of the parameters is not part of the step",
    "decoupled_sgd": "SGD has no decoupled weight decay",
}


@cases("optim")
def test_optimizer(backend, dtype, case):
    for feature in case.get("features", []):
        if feature != "square_avg_init_1":
            pytest.skip(f"{case['id']}: {SKIPPED_OPTIMIZERS[feature]}")
    hyper = dict(case["hyper"])
    every = case.get("accumulation_steps", 1)
    t = np.array(case["t0"], dtype=dtype)
    m, v, u, mean = np.zeros_like(t), np.zeros_like(t), np.zeros_like(t), np.zeros_like(t)
    v += hyper.get("square_avg_init", 0.0)
    expected = dict(zip(case["expected"]["steps"], case["expected"]["values"], strict=True))
    updates = 0
    for step in range(1, max(expected) + 1):
        names = {"np": np, "t": t, "step": step, **{k: arrayed(c) for k, c in case["consts"].items()}}
        mean += np.asarray(eval(case["grad_expr"], names), dtype=dtype) / every
        if step % every == 0:
            updates += 1
            if case["algo"] == "sgd":
                # Nesterov without momentum is plain descent, which fastgrad spells without it, as torch does.
                fastgrad.sgd_step(t, mean, m, lr=hyper["lr"], momentum=hyper["momentum"],
                                  nesterov=hyper["nesterov"] and hyper["momentum"] > 0,
                                  weight_decay=hyper["weight_decay"],
                                  dampening=hyper.get("dampening", 0.0) if updates > 1 else 0.0)  # fmt: skip
            elif case["algo"] == "rmsprop":
                rmsprop_step(t, mean, v, m, u, hyper)
            else:
                eps = float(hyper["eps"])
                if hyper["eps_mode"] == "keras":
                    # Keras adds eps to sqrt(v) before the bias correction, torch after it.
                    eps /= (1 - hyper["beta2"] ** updates) ** 0.5
                fastgrad.adam_step(t, mean, m, v, step=updates, lr=hyper["lr"], betas=(hyper["beta1"], hyper["beta2"]),
                                   eps=eps, weight_decay=hyper["weight_decay"], decoupled=case["algo"] == "adamw",
                                   max_exp_avg_sq=u if hyper["amsgrad"] else None)  # fmt: skip
            mean = np.zeros_like(t)
        if step in expected:
            check(t, {**case, "expected": {"values": expected[step]}}, "values", dtype)
    for name, state in case.get("expected_state", {}).items():
        check({"m": m, "v": v}[name], {**case, "expected": {name: state}}, name, dtype)


def rmsprop_step(t, grad, square, buffer, mean, hyper):
    """Take the step of `hyper`, also in forms other than torch's, which a caller makes in a line each."""
    eps, decay, inside_sqrt = hyper["eps"], hyper["weight_decay"], hyper["eps_mode"] == "inside_sqrt"
    if hyper.get("decoupled"):
        t *= 1 - hyper["lr"] * decay
        decay = 0.0
    if inside_sqrt:
        square += eps / hyper["alpha"]
    fastgrad.rmsprop_step(t, grad, square, buffer, mean, lr=hyper["lr"], alpha=hyper["alpha"],
                          eps=0.0 if inside_sqrt else eps, weight_decay=decay,
                          momentum=hyper["momentum"], centered=hyper["centered"])  # fmt: skip
    if inside_sqrt:
        square -= eps


def arrayed(constant):
    return np.array(constant) if isinstance(constant, list) and np.ndim(constant) == 1 else constant


@cases("loss")
def test_loss(backend, dtype, case):
    functions = {"mse": fastgrad.mse, "cross_entropy": fastgrad.softmax_cross_entropy,
                 "bce_logits": fastgrad.binary_cross_entropy_with_logits}  # fmt: skip
    if case["fn"] not in functions:
        pytest.skip(f"{case['id']}: fastgrad has no loss {case['fn']}")
    options = {name: case[name] for name in ("label_smoothing", "ignore_index") if name in case}
    function = functools.partial(functions[case["fn"]], **options)
    pred = np.array(case["pred"], dtype=dtype)
    target = np.array(case["target"], dtype=None if case["fn"] == "cross_entropy" else dtype)
    # fastgrad has the mean only; a loss for each row is the mean of that row alone.
    alone = [float(function(pred[k : k + 1], target[k : k + 1])[0]) for k in range(len(pred))]
    if "ignore_index" in options:  # the mean of no row is none
        alone = [
            0.0 if ignored else loss for ignored, loss in zip(target == options["ignore_index"], alone, strict=True)
        ]
    loss = {
        "mean": lambda: function(pred, target)[0],
        "none": lambda: alone,
        "none_mean_last": lambda: alone,
        "sum_over_batch_of_mean": lambda: sum(alone),
    }[case["reduction"]]()
    check(np.multiply(loss, case.get("sample_weight", 1.0)), case, "loss", dtype)


@cases("clip")
def test_clip(backend, dtype, case):
    grads = [np.array(g, dtype=dtype) for g in case["grads"]]
    limit = case["limit"]
    if case["mode"] == "value":
        fastgrad.clip_by_value(grads, -limit, limit)
    elif case["mode"] == "norm":
        fastgrad.clip_by_norm(grads, limit)
    else:
        fastgrad.clip_by_global_norm(grads, limit)
    if "total_norm_after" in case["expected"]:
        check(fastgrad.global_norm(grads), case, "total_norm_after", dtype)
    else:
        for grad, expected in zip(grads, case["expected"]["grads"], strict=True):
            if case["atol"] == case["rtol"] == 0:
                np.testing.assert_array_equal(grad, np.array(expected, dtype=dtype))
            else:
                check(grad, {**case, "expected": {"grads": expected}}, "grads", dtype)


@cases("clip_per_example")
def test_clip_per_example(backend, dtype, case):
    grads = [np.array(g, dtype=dtype) for g in case["grads"]]
    norms = [fastgrad.clip_by_global_norm([g[k] for g in grads], case["limit"]) for k in range(len(grads[0]))]
    assert sum(norm > case["limit"] for norm in norms) == case["expected"]["num_clipped"]
    for grad, expected in zip(grads, case["expected"]["sum_grads"], strict=True):
        check(grad.sum(axis=0), {**case, "expected": {"sum_grads": expected}}, "sum_grads", dtype)


@cases("constraint")
def test_constraint(backend, dtype, case):
    if case["kind"] == "non_neg_after_sgd":
        params = [np.array(p, dtype=dtype) for p in case["params"]]
        fastgrad.sgd_step(params, [np.array(g, dtype=dtype) for g in case["grads"]], lr=case["lr"])
        fastgrad.clip_by_value(params, 0, np.inf)
        for param, expected in zip(params, case["expected"]["params"], strict=True):
            check(param, {**case, "expected": {"params": expected}}, "params", dtype)
    else:
        assert case["kind"] == "max_norm" and case["axis"] == 0
        w = np.array(case["w"], dtype=dtype)
        fastgrad.clip_by_norm(list(w.T), case["limit"])
        check(w, case, "w", dtype)


def test_a_planted_fault_is_caught(monkeypatch):
    """The cases with distinct weights must notice a wrong order of the gates."""
    from fastgrad.kernels import lstm_ref

    forward = lstm_ref.forward

    def wrong(x, h0, c0, weight_ih, *rest):
        return forward(x, h0, c0, fastgrad.reorder_gates(weight_ih, "lstm", source="onnx"), *rest)

    monkeypatch.setattr(lstm_ref, "forward", wrong)
    caught = 0
    with fastgrad.backend("reference"):
        for case in CASES:
            if case["op"] == "rnn" and case["kind"] == "lstm" and "features" not in case:
                try:
                    test_rnn("reference", np.float64, case)
                except AssertionError:
                    caught += 1
    assert caught >= 8
