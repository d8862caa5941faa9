"""Zoneout, variational dropout and the clamp of the state's gradient in lstm, gru, their cells and layers."""

from __future__ import annotations

import numpy as np
import pytest
import test_gru
import test_lstm
from backends import placed
from support import oracle, random
from tolerances import assert_close

import fastgrad
from fastgrad import (
    gru,
    gru_backward,
    gru_cell,
    gru_cell_backward,
    lstm,
    lstm_backward,
    lstm_cell,
    lstm_cell_backward,
)
from fastgrad.layers import GRU, LSTM
from fastgrad.testing import gradcheck

SEED, OFFSET = 0x9ABCDEF012345678, 0x3EDCBA9876543210
# (T, B, I, H): rows of z that begin in the middle of 64 entries, longer and shorter ones, more rows than threads; one
# that a device takes in one kernel.
SIZES = [(0, 2, 3, 4), (1, 3, 2, 5), (5, 3, 4, 7), (3, 7, 2, 130), (4, 1, 3, 64), (2, 9, 0, 1), (4, 3, 2, 20)]
CELLS = ["lstm", "gru", "gru of the paper"]
NOISES = {
    "zoneout": {"zoneout_h": 0.3, "zoneout_c": 0.5},
    "zoneout of h": {"zoneout_h": 0.4},
    "dropout": {"input_dropout": 0.25, "recurrent_dropout": 0.5},
    "dropout of h": {"recurrent_dropout": 0.5},
    "all": {"zoneout_h": 0.2, "zoneout_c": 0.1, "input_dropout": 0.4, "recurrent_dropout": 0.3},
}


def draw(cell, sizes, dtype=np.float64):
    return (test_lstm if cell == "lstm" else test_gru).draw(sizes, dtype)


def options_of(cell, name, **more):
    """Return the options of a call by the name of its noise."""
    options = {**NOISES[name], "seed": SEED, "offset": OFFSET, **more} if name else dict(more)
    if cell != "lstm":
        options.pop("zoneout_c", None)
    return options


def run(cell, arguments, gradients, state_grad_clip=None, **options):
    """Return all results of forward and backward by name."""
    if cell == "lstm":
        y, (hn, cn), saved = lstm(*arguments, **options)
        results = {"y": y, "hn": hn, "cn": cn}
        return results | lstm_backward(*gradients, saved, state_grad_clip=state_grad_clip)._asdict()
    y, hn, saved = gru(*arguments, reset_after=cell == "gru", **options)
    return {"y": y, "hn": hn} | gru_backward(*gradients, saved, state_grad_clip=state_grad_clip)._asdict()


def same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        np.testing.assert_array_equal(actual[name], wanted, err_msg=name)


def masks(options, x, H):
    """Return z_h, z_c (T, B, H), m_h (B, H) and m_x (B, I), by the public dropout, as float64."""
    T, B, I = x.shape  # noqa: E741
    shapes = [(T, B, H), (T, B, H), (B, H), (B, I)]
    names = ("zoneout_h", "zoneout_c", "recurrent_dropout", "input_dropout")
    found = []
    for stream, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        p = options.get(name, 0.0)
        if not options.get("training", True):
            found.append(np.full(shape, p if stream < 2 else 1.0))
            continue
        kept = fastgrad.dropout(np.ones(shape), p, options.get("seed") or 0, 4 * options.get("offset", 0) + stream)
        found.append((kept == 0).astype(float) if stream < 2 else kept)
    return found


def by_torch(torch, cell, arguments, gradients, clip=None, lengths=None, reverse=False, **options):
    """Compose the layer of torch's operations, its masks from `dropout`, and differentiate it."""
    leaves = [torch.tensor(a, requires_grad=True) for a in arguments]
    x, *states, weight_ih, weight_hh, bias_ih, bias_hh = leaves
    T, B, _ = x.shape
    H = weight_hh.shape[1]
    z_h, z_c, m_h, m_x = map(torch.tensor, masks(options, arguments[0], H))
    lengths = torch.tensor([T] * B if lengths is None else lengths)
    ys = [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        valid = (t < lengths)[:, None]
        given = []
        for state in states:  # a node of its own for all that the step does with the state
            own = state.view_as(state)
            if clip is not None:
                own.register_hook(lambda g, valid=valid: torch.where(valid, g.clamp(-clip, clip), g))
            given.append(own)
        from_x = (x[t] * m_x) @ weight_ih.T + bias_ih
        h = given[0]
        h_in = h * m_h
        if cell == "lstm":
            i, f, g, o = (from_x + h_in @ weight_hh.T + bias_hh).chunk(4, dim=1)
            c = torch.sigmoid(f) * given[1] + torch.sigmoid(i) * torch.tanh(g)
            new = [torch.sigmoid(o) * torch.tanh(c), z_c[t] * given[1] + (1 - z_c[t]) * c]
        else:
            (x_r, x_z, x_n), (w_r, w_z, w_n) = from_x.chunk(3, dim=1), weight_hh.chunk(3)
            b_r, b_z, b_n = bias_hh.chunk(3)
            r, z = torch.sigmoid(x_r + h_in @ w_r.T + b_r), torch.sigmoid(x_z + h_in @ w_z.T + b_z)
            inner = r * (h_in @ w_n.T + b_n) if cell == "gru" else (r * h_in) @ w_n.T + b_n
            new = [(1 - z) * torch.tanh(x_n + inner) + z * h]
        new[0] = z_h[t] * h + (1 - z_h[t]) * new[0]
        ys[t] = torch.where(valid, new[0], 0.0)
        states = [torch.where(valid, a, b) for a, b in zip(new, given, strict=True)]
    y = torch.stack(ys)
    sum((o * torch.tensor(g)).sum() for o, g in zip((y, *states), gradients, strict=True)).backward()
    names = ["x", "h0", *["c0"] * (cell == "lstm"), "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    results = dict(zip(("y", "hn", "cn"), (y, *states), strict=False))
    results |= {f"d{name}": leaf.grad for name, leaf in zip(names, leaves, strict=True)}
    return {name: value.detach().numpy() for name, value in results.items()}


@pytest.mark.parametrize(
    "variant", [{}, {"reverse": True}, {"ragged": True}, {"ragged": True, "reverse": True}], ids=str
)
@pytest.mark.parametrize("noise", [*NOISES, "in evaluation", None])
@pytest.mark.parametrize("cell", CELLS)
def test_against_float64(backend, dtype, cell, noise, variant):
    for sizes in SIZES:
        arguments, gradients = draw(cell, sizes, dtype)
        lengths = test_lstm.some_lengths(*sizes[:2]) if variant.get("ragged") else None
        evaluation = {"training": False} if noise == "in evaluation" else {}
        options = options_of(cell, "all" if evaluation else noise, **evaluation)
        options |= {"lengths": lengths, "reverse": variant.get("reverse", False), "state_grad_clip": 0.1}
        actual = run(cell, arguments, gradients, **options)
        assert all(a.dtype == dtype for a in actual.values())
        test_lstm.assert_results(actual, oracle(run, cell, arguments, gradients, **options))


@pytest.mark.parametrize("options", [
    {"clip": 0.05}, {"noise": "all", "clip": 0.1}, {"noise": "all", "reverse": True}, {"noise": "zoneout"},
    {"noise": "dropout", "lengths": [5, 0, 3, 1]}, {"noise": "all", "lengths": [5, 0, 3, 1], "clip": 0.02},
    {"noise": "all", "lengths": [5, 0, 3, 1], "clip": 0.02, "reverse": True}, {"noise": "all", "training": False},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("cell", CELLS)
def test_against_torch(backend, cell, options):
    torch = pytest.importorskip("torch")
    arguments, gradients = draw(cell, (5, 4, 3, 7))
    options = dict(options)
    clip, named = options.pop("clip", None), options_of(cell, options.pop("noise", None), **options)
    expected = by_torch(torch, cell, arguments, gradients, clip, **named)
    if clip is not None:  # it matters, and not for all entries
        assert 0 < (np.abs(expected["dh0"]) == clip).sum() < expected["dh0"].size
    test_lstm.assert_results(run(cell, arguments, gradients, state_grad_clip=clip, **named), expected, "torch")


@pytest.mark.parametrize("noise", ["zoneout", "dropout", "all"])
@pytest.mark.parametrize("cell", CELLS)
def test_central_differences(backend, cell, noise):
    more = {} if cell == "lstm" else {"reset_after": cell == "gru"}
    forward, backward = (lstm, lstm_backward) if cell == "lstm" else (gru, gru_backward)
    arguments, _ = draw(cell, (3, 3, 2, 3))
    for training in (True, False):
        options = options_of(cell, noise, training=training, lengths=[2, 3, 0], **more)

        def back(dy, *inputs, options=options):
            ends = dy[1] if cell == "lstm" else dy[1:]
            return backward(dy[0], *ends, forward(*inputs, **options)[2])

        gradcheck(lambda *inputs, options=options: forward(*inputs, **options)[:2], arguments, back)


def test_layers_by_central_differences(cpu_backend):
    noise = {"zoneout_h": 0.3, "input_dropout": 0.2, "recurrent_dropout": 0.4}
    for make, more in ((LSTM, {"zoneout_c": 0.3}), (GRU, {})):
        layer = make(3, 4, 2, True, rng=1, dtype=np.float64, **noise, **more)
        gradcheck(layer, random(2, (3, 2, 3)))


# --- the clamp


@pytest.mark.parametrize("variant", [{}, {"reverse": True}, {"lengths": [4, 0, 2]}], ids=str)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_a_bound_out_of_reach_changes_no_bit(backend, dtype, cell, steps, variant):
    lengths = variant.get("lengths")
    options = {**variant, "lengths": lengths and [min(n, steps) for n in lengths]}
    arguments, gradients = draw(cell, (steps, 3, 4, 20), dtype)
    for noise in (None, "all"):
        named = options_of(cell, noise, **options)
        same_bits(run(cell, arguments, gradients, 1e6, **named), run(cell, arguments, gradients, **named))


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_in_pieces(backend, dtype, cell):
    """The clamp acts where the pieces meet as it does within."""
    arguments, gradients = draw(cell, (6, 3, 4, 7), dtype)
    states = 2 if cell == "lstm" else 1
    whole = run(cell, arguments, gradients, 0.05)
    first = run(cell, [arguments[0][:4], *arguments[1:]], [gradients[0][:4], *gradients[1:]], 0.05)
    middle = [first["hn"], first["cn"]] if states == 2 else [first["hn"]]
    second = run(cell, [arguments[0][4:], *middle, *arguments[1 + states :]], [gradients[0][4:], *gradients[1:]], 0.05)
    back = [second["dh0"], second["dc0"]] if states == 2 else [second["dh0"]]
    first = run(cell, [arguments[0][:4], *arguments[1:]], [gradients[0][:4], *back], 0.05)
    assert_close(np.concatenate([first["dx"], second["dx"]]), whole["dx"], "recurrent", magnitude="largest")
    assert_close(first["dh0"], whole["dh0"], "recurrent", magnitude="largest")
    assert_close(first["dweight_hh"] + second["dweight_hh"], whole["dweight_hh"], "recurrent", magnitude="largest")


def test_cells_clamp_what_they_hand_back(backend, dtype):
    (x, *rest), (_, dh, dc) = draw("lstm", (1, 5, 4, 7), dtype)
    _, _, saved = lstm_cell(x[0], *rest)
    free = lstm_cell_backward(dh, dc, saved)
    bound = float(np.median(np.abs(free.dh)))
    bounded = lstm_cell_backward(dh, dc, saved, state_grad_clip=bound)
    for name, value in free._asdict().items():
        expected = np.clip(value, -bound, bound) if name in ("dh", "dc") else value
        np.testing.assert_array_equal(getattr(bounded, name), expected, err_msg=name)
    (x, *rest), (_, dh) = draw("gru", (1, 5, 4, 7), dtype)
    for reset_after in (True, False):
        _, saved = gru_cell(x[0], *rest, reset_after=reset_after)
        free, bounded = gru_cell_backward(dh, saved), gru_cell_backward(dh, saved, state_grad_clip=bound)
        np.testing.assert_array_equal(bounded.dh, np.clip(free.dh, -bound, bound))
        np.testing.assert_array_equal(bounded.dweight_hh, free.dweight_hh)


def test_the_clamp_keeps_nan_and_bounds_inf(backend, dtype):
    for cell in CELLS:
        arguments, gradients = draw(cell, (3, 3, 4, 5), dtype)
        gradients[1][0, 2], gradients[1][1, 3] = np.nan, np.inf
        results = run(cell, arguments, gradients, 0.5)
        assert np.isnan(results["dh0"][0]).any()
        assert np.nanmax(np.abs(results["dh0"])) <= 0.5
        assert np.isfinite(results["dh0"][2]).all()


# --- the random numbers


def test_rates_within_binomial_bounds(backend):
    T, B, H, p = 40, 20, 50, 0.3
    x, weights = np.zeros((T, B, 1)), [np.zeros((4 * H, 1)), np.zeros((4 * H, H)), np.zeros(4 * H)]
    h0, c0 = np.full((B, H), 0.5), np.full((B, H), 0.75)
    # From c = 0.75: f = 1/2 halves it. So log2 of what is left counts the steps that were not zoned out.
    _, (_, cn), _ = lstm(x, h0, c0, *weights, zoneout_c=p, seed=1)
    steps = np.rint(-np.log2(cn / 0.75))
    np.testing.assert_allclose(cn, 0.75 * 0.5**steps)
    assert abs(steps.mean() / T - (1 - p)) < 5 * np.sqrt(p * (1 - p) / (T * B * H))
    assert steps.std() > 1  # entries are drawn one by one
    zoned = masks({"zoneout_c": p, "seed": 1}, x, H)[1]
    np.testing.assert_array_equal(steps, T - zoned.sum(axis=0))
    # Every step has a mask of its own: neighbours agree as often as independent ones do.
    agree = (zoned[1:] == zoned[:-1]).mean()
    assert abs(agree - (p * p + (1 - p) ** 2)) < 5 * 0.5 / np.sqrt(zoned[1:].size)


def test_variational_masks_are_the_same_at_every_step(backend):
    """A network whose products show the masks: W_hh is a multiple of 1, all gates but g are open."""
    T, B, H, p = 6, 5, 30, 0.4
    weight_hh = np.zeros((4 * H, H))
    weight_hh[2 * H : 3 * H] = np.eye(H) * 1e-3
    bias = np.full(4 * H, 40.0)
    bias[H : 2 * H], bias[2 * H : 3 * H] = -800.0, 0.0  # f = 0
    x = np.full((T, B, H), 1e-3)
    weight_ih = np.zeros((4 * H, H))
    options = {"recurrent_dropout": p, "input_dropout": p, "seed": 3, "offset": 5}
    _, _, m_h, m_x = masks(options, x, H)
    y, _, _ = lstm(x, np.full((B, H), 1e-3), None, weight_ih, weight_hh, bias, **options)
    for t in range(T):
        before = y[t - 1] if t else np.full((B, H), 1e-3)
        np.testing.assert_allclose(y[t], np.tanh(np.tanh(before * m_h * 1e-3)), rtol=1e-9)
    weight_ih[2 * H : 3 * H] = np.eye(H)
    y, _, _ = lstm(x, None, None, weight_ih, np.zeros_like(weight_hh), bias, **options)
    np.testing.assert_allclose(y, np.broadcast_to(np.tanh(np.tanh(m_x * 1e-3)), y.shape), rtol=1e-9)
    for mask in (m_h, m_x):
        assert abs((mask == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / mask.size)
    assert (m_h != m_x).any()


def test_evaluation_is_the_expectation(backend):
    """Of one step, whose result is linear in z; each seed is one sample."""
    arguments, _ = draw("lstm", (1, 2, 3, 4))
    noise = {"zoneout_h": 0.25, "zoneout_c": 0.6}
    samples = [lstm(*arguments, **noise, seed=seed)[1] for seed in range(2000)]
    _, wanted, _ = lstm(*arguments, **noise, training=False)
    for part in range(2):
        found = np.array([s[part] for s in samples])
        assert np.all(
            np.abs(found.mean(axis=0) - wanted[part]) <= 5 * found.std(axis=0) / np.sqrt(len(samples)) + 1e-12
        )


def test_where_the_random_numbers_come_from(backend, dtype):
    arguments, gradients = draw("lstm", (3, 2, 3, 5), dtype)
    options = options_of("lstm", "all")
    base = run("lstm", arguments, gradients, **options)
    same_bits(run("lstm", arguments, gradients, **options), base)
    for change in ({"seed": SEED + 1}, {"offset": OFFSET + 1}):
        assert (run("lstm", arguments, gradients, **{**options, **change})["y"] != base["y"]).any()
    plain = run("lstm", arguments, gradients)
    for nothing in ({"seed": 1}, {"training": False, "recurrent_dropout": 0.5, "input_dropout": 0.5}):
        same_bits(run("lstm", arguments, gradients, **nothing), plain)


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, cell):
    arguments, gradients = draw(cell, (4, 33, 17, 65), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in thread_counts:
            fastgrad.set_num_threads(threads)
            results = run(cell, arguments, gradients, 0.1, **options_of(cell, "all"))
            seen.add(b"".join(a.tobytes() for a in results.values()))
    assert len(seen) == 1


@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_not_read(backend, dtype, cell):
    arguments, gradients = draw(cell, (6, 4, 3, 5), dtype)
    lengths = np.array([6, 0, 2, 5])
    padding = np.arange(6)[:, None] >= lengths
    for reverse in (False, True):
        options = options_of(cell, "all", lengths=lengths, reverse=reverse)
        clean = run(cell, arguments, gradients, 0.1, **options)
        assert not clean["y"][padding].any() and not clean["dx"][padding].any()
        np.testing.assert_array_equal(clean["hn"][1], arguments[1][1])
        np.testing.assert_array_equal(clean["dh0"][1], gradients[1][1])  # no step, no clamp
        x, dy = arguments[0].copy(), gradients[0].copy()
        x[padding] = dy[padding] = np.nan
        same_bits(run(cell, [x, *arguments[1:]], [dy, *gradients[1:]], 0.1, **options), clean)


def test_what_is_dropped_does_not_enter(backend, dtype):
    """NaN in an entry of x that is dropped, Inf in an entry of h that is zoned out or dropped."""
    arguments, _ = draw("lstm", (2, 3, 4, 5), dtype)
    options = options_of("lstm", "dropout")
    _, _, _, m_x = masks(options, arguments[0], 5)
    clean = lstm(*arguments, **options)[0]
    arguments[0][:, m_x == 0] = np.nan
    np.testing.assert_array_equal(lstm(*arguments, **options)[0], clean)
    options = {"zoneout_c": 0.5, "seed": 1}
    z = masks(options, arguments[0], 5)[1][0]
    arguments, _ = draw("lstm", (1, 3, 4, 5), dtype)
    arguments[2][...] = np.inf
    _, (_, cn), _ = lstm(*arguments, **options)
    np.testing.assert_array_equal(cn, np.inf)
    assert 0 < z.sum() < z.size


# --- layers


def test_layers_pass_the_options_on(backend, dtype):
    noise = {"zoneout_h": 0.2, "input_dropout": 0.3, "recurrent_dropout": 0.1}
    x, dy = random(1, (5, 3, 4), dtype), random(2, (5, 3, 12), dtype)
    for cell, make, more in (("lstm", LSTM, {"zoneout_c": 0.4}), ("gru", GRU, {})):
        layer = make(4, 6, 2, True, rng=3, dtype=dtype, state_grad_clip=0.01, **noise, **more)
        parameters = {name: p.data for name, p in layer.named_parameters()}
        seed = layer.seed
        inner, layer = layer, placed(layer, backend)
        for call, training in ((0, True), (1, True), (None, False)):
            inner.train(training)
            y, _ = layer.forward(x)
            expected, saved = x, []
            for k, suffix in enumerate(("l0", "l0_reverse", "l1", "l1_reverse")):
                names = [f"{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                options = {**noise, **more, "training": training, "reverse": bool(k % 2), "seed": seed}
                if training:
                    options["offset"] = 4 * call + k
                function = lstm if cell == "lstm" else gru
                states = [None] * (2 if cell == "lstm" else 1)
                one, _, kept = function(expected, *states, *[parameters[n] for n in names], **options)
                saved.append((one, kept))
                if k % 2:
                    expected = np.concatenate([saved[-2][0], one], axis=-1)
            np.testing.assert_array_equal(y, expected)
            backward = lstm_backward if cell == "lstm" else gru_backward
            gradient = dy
            for first in (2, 0):
                halves = [np.ascontiguousarray(gradient[..., :6]), np.ascontiguousarray(gradient[..., 6:])]
                parts = [
                    backward(half, *[None] * len(states), saved[first + k][1], state_grad_clip=0.01).dx
                    for k, half in enumerate(halves)
                ]
                gradient = parts[0] + parts[1]
            np.testing.assert_array_equal(layer.backward(dy), gradient)


def test_options_that_are_off_leave_a_layer_as_it_was(dtype):
    rng, other = np.random.default_rng(1), np.random.default_rng(1)
    plain, noisy = LSTM(3, 4, rng=rng, dtype=dtype), LSTM(3, 4, rng=other, zoneout_h=0.5, dtype=dtype)
    for (name, one), (_, two) in zip(plain.named_parameters(), noisy.named_parameters(), strict=True):
        np.testing.assert_array_equal(one.data, two.data, err_msg=name)
    assert plain.state_dict().keys() == noisy.state_dict().keys()
    x = random(1, (5, 3, 3), dtype)
    y, _ = plain.forward(x)
    assert (noisy.forward(x)[0] != y).any()
    noisy.eval()
    assert (noisy.forward(x)[0] != y).any()  # zoneout has an expectation in evaluation
    noisy.zoneout_h = 0.0
    np.testing.assert_array_equal(noisy.forward(x)[0], y)


def test_errors():
    arguments, gradients = draw("lstm", (2, 3, 4, 5), np.float32)
    for options, error, match in (
        ({"zoneout_h": 1.0}, ValueError, "zoneout_h"),
        ({"zoneout_c": -0.1, "seed": 1}, ValueError, "zoneout_c"),
        ({"input_dropout": "a"}, TypeError, "input_dropout"),
        ({"recurrent_dropout": 0.5}, TypeError, "seed: recurrent_dropout in training needs random numbers; pass seed"),
        ({"recurrent_dropout": 0.5, "seed": 1.0}, TypeError, "seed: expected an integer, got float"),
        ({"recurrent_dropout": 0.5, "seed": 1 << 64}, ValueError, r"seed: expected 0 to 2\^64 - 1"),
        ({"recurrent_dropout": 0.5, "seed": 1, "offset": 1 << 62}, ValueError, r"offset: expected 0 to 2\^62 - 1"),
    ):
        with pytest.raises(error, match=match):
            lstm(*arguments, **options)
    _, _, saved = lstm(*arguments)
    for value, error in ((-1.0, ValueError), (np.nan, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="state_grad_clip"):
            lstm_backward(*gradients, saved, state_grad_clip=value)
    for make in (LSTM, GRU):
        with pytest.raises(ValueError, match="recurrent_dropout"):
            make(3, 4, recurrent_dropout=1.5)
        with pytest.raises(ValueError, match="state_grad_clip"):
            make(3, 4, state_grad_clip=-1)
    with pytest.raises(TypeError, match="zoneout_c"):
        GRU(3, 4, zoneout_c=0.5)
