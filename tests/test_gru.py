"""gru, gru_cell, with their gradients, in both forms of the reset gate."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import gru_ref, recurrent_cpu
from support import layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import gru, gru_backward, gru_cell, gru_cell_backward, reorder_gates
from fastgrad.testing import gradcheck

# (T, B, I, H)
SIZES = [
    (0, 2, 3, 4),
    (4, 0, 3, 5),
    (3, 2, 0, 4),
    (1, 1, 1, 1),
    (5, 3, 4, 7),
    (7, 1, 3, 13),
    (2, 17, 5, 1),
    (3, 5, 33, 65),
    (2, 70, 3, 129),
    (1, 16, 0, 31),
    (1, 20, 33, 64),
    (1, 70, 400, 65),
]
NAMES = ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
GRADIENTS = ("dx", "dh0", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh")


@pytest.fixture(params=[True, False], ids=["reset_after", "reset_before"])
def reset_after(request):
    return request.param


def draw(sizes, dtype=np.float64, seed=0):
    """Return the arguments of gru and gradients (dy, dhn), all of them random."""
    T, B, I, H = sizes  # noqa: E741
    shapes = [(T, B, I), (B, H), (3 * H, I), (3 * H, H), (3 * H,), (3 * H,)]
    scales = [1, 1, 1 / max(I, 1) ** 0.5, 1 / max(H, 1) ** 0.5, 0.5, 0.5]
    arguments = [random(seed + k, s, dtype, scale=c) for k, (s, c) in enumerate(zip(shapes, scales, strict=True))]
    return arguments, [random(seed + 50 + k, s, dtype) for k, s in enumerate([(T, B, H), (B, H)])]


def some_lengths(T, B):
    return np.random.default_rng(T + 10 * B).integers(0, T + 1, B)


def run(arguments, gradients, **options):
    """Return all results of forward and backward by name."""
    y, hn, saved = gru(*arguments, **options)
    return {"y": y, "hn": hn, **gru_backward(*gradients, saved)._asdict()}


def assert_results(actual, expected, operation="recurrent"):
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        if wanted is None:
            assert actual[name] is None, name
        else:
            assert_close(actual[name], wanted, operation, magnitude="largest", label=name)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_float64(backend, dtype, reset_after, sizes, ragged, reverse):
    arguments, gradients = draw(sizes, dtype)
    lengths = some_lengths(*sizes[:2]) if ragged else None
    options = {"reverse": reverse, "lengths": lengths, "reset_after": reset_after}
    actual = run(arguments, gradients, **options)
    assert all(a.dtype == dtype for a in actual.values())
    wide = [a.astype(np.float64) for a in arguments], [g.astype(np.float64) for g in gradients]
    assert_results(actual, oracle(run, *wide, **options))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("sizes", [s for s in SIZES if all(s)], ids=str)
def test_against_torch(backend, sizes, ragged, reverse):
    torch = pytest.importorskip("torch")
    T, B, I, H = sizes  # noqa: E741
    arguments, gradients = draw(sizes)
    lengths = np.maximum(some_lengths(T, B), 1) if ragged else None
    layer = torch.nn.GRU(I, H, dtype=torch.float64, bidirectional=reverse)
    parameters = [getattr(layer, name + ("_l0_reverse" if reverse else "_l0")) for name in NAMES[2:]]
    with torch.no_grad():
        for parameter, value in zip(parameters, arguments[2:], strict=True):
            parameter.copy_(torch.tensor(value))
    x, h0 = (torch.tensor(a, requires_grad=True) for a in arguments[:2])
    sequence = x
    if ragged:
        sequence = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    # torch runs reverse only beside forward; the forward half gets zero gradients.
    y, hn = layer(sequence, torch.stack([torch.zeros_like(h0), h0]) if reverse else h0[None])
    if ragged:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    y, hn = y[..., -H:], hn[-1]
    sum((o * torch.tensor(g)).sum() for o, g in zip((y, hn), gradients, strict=True)).backward()
    expected = {"y": y, "hn": hn}
    expected |= dict(zip(GRADIENTS, (v.grad for v in (x, h0, *parameters)), strict=True))
    expected = {name: value.detach().numpy() for name, value in expected.items()}
    assert_results(run(arguments, gradients, lengths=lengths, reverse=reverse), expected, "torch")


@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"lengths": [3, 0, 1]}, {"lengths": [2, 3, 0], "reverse": True}]
)
def test_central_differences(backend, reset_after, options):
    def forward(*inputs):
        return gru(*inputs, reset_after=reset_after, **options)

    arguments, _ = draw((3, 3, 2, 3))
    gradcheck(
        lambda *inputs: forward(*inputs)[:2], arguments,
        lambda dy, *inputs: gru_backward(*dy, forward(*inputs)[2]),
    )  # fmt: skip


def test_optional_arguments(backend, dtype, reset_after):
    (x, _, weight_ih, weight_hh, bias_ih, bias_hh), (dy, dhn) = draw((5, 3, 4, 7), dtype)
    zeros, no_bias = np.zeros((3, 7), dtype), np.zeros(21, dtype)

    def results(bias_ih=None, bias_hh=None, h0=None, gradients=(dy, dhn)):
        return run([x, h0, weight_ih, weight_hh, bias_ih, bias_hh], gradients, reset_after=reset_after)

    for given, filled, missing in (
        ((None, bias_hh), (no_bias, bias_hh), ["dbias_ih"]),
        ((bias_ih, None), (bias_ih, no_bias), ["dbias_hh"]),
        ((None, None), (no_bias, no_bias), ["dbias_ih", "dbias_hh"]),
    ):
        left_out, full = results(*given), results(*filled, h0=zeros)
        for name in missing:
            assert left_out.pop(name) is None
            full.pop(name)
        assert_results(left_out, full)
    both = results(bias_ih, bias_hh)
    assert not np.shares_memory(both["dbias_ih"], both["dbias_hh"])
    for given in ([dy, None], [None, dhn]):
        filled = [np.zeros_like(z) if g is None else g for g, z in zip(given, (dy, dhn), strict=True)]
        assert_results(results(bias_ih, bias_hh, gradients=given), results(bias_ih, bias_hh, gradients=filled))


def test_padding(backend, dtype, reset_after):
    T, B = 6, 4
    arguments, gradients = draw((T, B, 3, 5), dtype)
    lengths = np.array([6, 0, 2, 5])
    padding = np.arange(T)[:, None] >= lengths
    for reverse in (False, True):
        options = {"lengths": lengths, "reverse": reverse, "reset_after": reset_after}
        clean = run(arguments, gradients, **options)
        assert not clean["y"][padding].any() and not clean["dx"][padding].any()
        np.testing.assert_array_equal(clean["hn"][1], arguments[1][1])
        np.testing.assert_array_equal(clean["dh0"][1], gradients[1][1])
        # What the padding of x and of dy holds must not matter.
        for bad in (np.nan, np.inf, 1e30):
            x, dy = arguments[0].copy(), gradients[0].copy()
            x[padding] = dy[padding] = bad
            dirty = run([x, *arguments[1:]], [dy, *gradients[1:]], **options)
            for name, value in clean.items():
                np.testing.assert_array_equal(dirty[name], value, err_msg=name)


def test_cell_is_a_sequence_of_one_step(backend, dtype, reset_after):
    arguments, (_, dh) = draw((1, 5, 4, 7), dtype)
    _, hn, saved = gru(*arguments, reset_after=reset_after)
    expected = gru_backward(None, dh, saved)
    h_next, saved = gru_cell(arguments[0][0], *arguments[1:], reset_after=reset_after)
    np.testing.assert_array_equal(h_next, hn)
    actual = gru_cell_backward(dh, saved)
    assert actual._fields == ("dx", "dh", "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh")
    np.testing.assert_array_equal(actual.dx, expected.dx[0])
    for a, e in zip(actual[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(a, e)


def test_cells_in_a_loop_are_the_sequence(backend, dtype, reset_after):
    (x, h, *weights), _ = draw((6, 3, 4, 7), dtype)
    y, _, _ = gru(x, h, *weights, reset_after=reset_after)
    for t in range(6):
        h, _ = gru_cell(x[t], h, *weights, reset_after=reset_after)
        assert_close(h, y[t], "recurrent", magnitude="largest")


def test_the_state_may_be_used_again_before_backward(backend, dtype, reset_after):
    (x, h, *weights), (_, dh) = draw((1, 5, 4, 7), dtype)
    options = {"reset_after": reset_after}
    expected = gru_cell_backward(dh, gru_cell(x[0], h.copy(), *weights, **options)[1])
    saved = gru_cell(x[0], h, *weights, **options)[1]
    h[...] = np.nan
    for actual, wanted in zip(gru_cell_backward(dh, saved), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    y, hn, _ = gru(x, None, *weights, **options)
    assert not np.shares_memory(y, hn)


def test_nothing_that_was_passed_is_changed(backend, dtype, reset_after):
    arguments, gradients = draw((4, 3, 2, 5), dtype)
    frozen = [read_only(a) for a in arguments], [read_only(g) for g in gradients]
    assert_results(run(*frozen, reset_after=reset_after), run(arguments, gradients, reset_after=reset_after))


def test_layouts(backend, dtype, reset_after):
    arguments, gradients = draw((4, 3, 2, 5), dtype)
    expected = run(arguments, gradients, reset_after=reset_after)
    for layout in ("fortran", "offset", "strided", "reversed", "misaligned"):
        views = [layouts(a)[layout] for a in arguments], [layouts(g)[layout] for g in gradients]
        assert_results(run(*views, reset_after=reset_after), expected)


def test_nan_stays_in_its_sequence(backend, dtype, reset_after):
    arguments, _ = draw((4, 3, 2, 5), dtype)
    clean, _, _ = gru(*arguments, reset_after=reset_after)
    arguments[0][1, 2, 0] = np.nan
    y, hn, saved = gru(*arguments, reset_after=reset_after)
    assert np.isnan(y[1:, 2]).all() and np.isnan(hn[2]).all()
    np.testing.assert_array_equal(y[0], clean[0])
    np.testing.assert_array_equal(y[:, :2], clean[:, :2])
    gradients = gru_backward(np.ones_like(y), None, saved)
    assert np.isnan(gradients.dweight_ih).any() and np.isnan(gradients.dx[:, 2]).any()
    assert np.isfinite(gradients.dx[:, :2]).all()


@pytest.mark.parametrize("steps", [1, 4])
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, reset_after, steps):
    arguments, gradients = draw((steps, 33, 17, 65), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            results = run(arguments, gradients, reset_after=reset_after)
            seen.add(b"".join(a.tobytes() for a in results.values()))
    assert len(seen) == 1


def test_errors():
    arguments, (dy, dhn) = draw((4, 3, 2, 5), np.float32)
    x, h0, weight_ih, weight_hh, bias_ih, _ = arguments

    def error(exception, match, function, *args, **kwargs):
        with pytest.raises(exception, match=match):
            function(*args, **kwargs)

    def changed(**changes):
        return [changes.get(name, value) for name, value in zip(NAMES, arguments, strict=True)]

    error(ValueError, r"x: expected shape \(T, B, I\), got \(3, 2\)", gru, *changed(x=x[0]))
    error(ValueError, r"h0: expected shape \(B, H\) with B = 3, H = 5, got \(5, 3\)", gru, *changed(h0=h0.T))
    error(ValueError, r"weight_ih: expected shape \(3H, I\) with H = 5, I = 2, got \(15, 1\)", gru,
          *changed(weight_ih=weight_ih[:, :1]))  # fmt: skip
    error(ValueError, r"weight_hh: expected shape \(3H, H\), got \(20, 5\)", gru,
          *changed(weight_hh=np.zeros((20, 5), np.float32)))  # fmt: skip
    error(ValueError, r"bias_ih: expected shape \(3H,\) with H = 5, got \(14,\)", gru, *changed(bias_ih=bias_ih[1:]))
    error(TypeError, "weight_hh is float64 but x is float32", gru, *changed(weight_hh=weight_hh.astype(float)))
    error(ValueError, "lengths: expected entries from 0 to 4", gru, *arguments, lengths=[1, 5, 2])
    with fastgrad.backend("reference"):
        saved = gru(*arguments)[2]
        cell = gru_cell(x[0], h0, *arguments[2:])[1]
    error(ValueError, r"dy: expected shape \(4, 3, 5\), got \(4, 3, 4\)", gru_backward, dy[..., 1:], None, saved)
    error(
        TypeError,
        "saved: it came from fastgrad.gru, so call gru_backward",
        fastgrad.lstm_backward,
        dy,
        dhn,
        None,
        saved,
    )
    error(TypeError, "saved: it came from fastgrad.gru_cell, so call gru_cell_backward", gru_backward, dy, dhn, cell)
    error(ValueError, r"dh_next: expected shape \(3, 5\)", gru_cell_backward, dy, cell)


@pytest.mark.parametrize("fault", ["gate order", "other reset", "update", "bias"])
def test_planted_faults_are_caught(monkeypatch, reset_after, fault):
    arguments, gradients = draw((3, 2, 4, 5))
    expected = oracle(run, arguments, gradients, reset_after=reset_after)
    forward, backward = gru_ref.forward, gru_ref.backward

    def wrong_forward(x, h0, weight_ih, weight_hh, *rest):
        if fault == "gate order":
            weight_ih = reorder_gates(weight_ih, "gru", source="keras")
        if fault == "update":
            h0 = h0 * (1 + 1e-9)
        *rest, reset_after, noise = rest
        return forward(x, h0, weight_ih, weight_hh, *rest, reset_after ^ (fault == "other reset"), noise)

    def wrong_backward(*args):
        *rest, dbias_ih, dbias_hh = backward(*args)
        # The two biases have one gradient in an LSTM, but not in a GRU that resets after the product.
        return (*rest, dbias_hh, dbias_hh * (1 + 1e-9)) if fault == "bias" else (*rest, dbias_ih, dbias_hh)

    monkeypatch.setattr(gru_ref, "forward", wrong_forward)
    monkeypatch.setattr(gru_ref, "backward", wrong_backward)
    with pytest.raises(AssertionError):
        assert_results(oracle(run, arguments, gradients, reset_after=reset_after), expected)


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
def test_small_products_have_the_bits_of_large_ones(monkeypatch, dtype, reset_after, reverse):
    arguments, gradients = draw((3, 2, 4, 5), dtype)
    with fastgrad.backend("cpu"):
        small = run(arguments, gradients, reverse=reverse, reset_after=reset_after)
        monkeypatch.setattr(recurrent_cpu, "are_small", lambda *sizes: False)
        large = run(arguments, gradients, reverse=reverse, reset_after=reset_after)
    for name, value in small.items():
        np.testing.assert_array_equal(value, large[name], err_msg=name)
