"""layer_norm_lstm with its gradients, and the layer."""

from __future__ import annotations

import numpy as np
import pytest
from backends import placed
from support import layouts, oracle, random
from test_between_steps import NOISES, OFFSET, SEED, masks, same_bits
from test_lstm import SIZES, assert_results, some_lengths
from tolerances import assert_close

import fastgrad
from fastgrad import layer_norm_lstm, layer_norm_lstm_backward
from fastgrad.layers import LayerNormLSTM
from fastgrad.testing import gradcheck

NAMES = (
    "x", "h0", "c0", "weight_ih", "weight_hh", "gain_ih", "gain_hh", "gain_c", "bias_ih", "bias_hh", "bias_c",
)  # fmt: skip
EPS = 1e-2  # so that rows with next to no variance, such as W_ih x of one input, do not blow rounding up
VARIANTS = [{}, {"reverse": True}, {"ragged": True}, {"ragged": True, "reverse": True}]


def draw(sizes, dtype=np.float64, seed=0):
    """Return the arguments of layer_norm_lstm and gradients (dy, dhn, dcn), all of them random."""
    T, B, I, H = sizes  # noqa: E741
    shapes = [(T, B, I), (B, H), (B, H), (4 * H, I), (4 * H, H), (4 * H,), (4 * H,), (H,), (4 * H,), (4 * H,), (H,)]
    arguments = [random(seed + k, shape, dtype) for k, shape in enumerate(shapes)]
    return arguments, [random(seed + 50 + k, s, dtype) for k, s in enumerate([(T, B, H), (B, H), (B, H)])]


def run(arguments, gradients, state_grad_clip=None, **options):
    """Return all results of forward and backward by name."""
    y, (hn, cn), saved = layer_norm_lstm(*arguments, **{"eps": EPS, **options})
    results = layer_norm_lstm_backward(*gradients, saved, state_grad_clip=state_grad_clip)
    return {"y": y, "hn": hn, "cn": cn, **results._asdict()}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_float64(backend, dtype, sizes, variant):
    arguments, gradients = draw(sizes, dtype)
    lengths = some_lengths(*sizes[:2]) if variant.get("ragged") else None
    options = {"lengths": lengths, "reverse": variant.get("reverse", False)}
    actual = run(arguments, gradients, **options)
    assert all(a.dtype == dtype for a in actual.values())
    assert_results(actual, oracle(run, arguments, gradients, **options))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("noise", [*NOISES, "in evaluation"])
def test_noise_and_clamp_against_float64(backend, dtype, noise, variant):
    for sizes in ((5, 3, 4, 7), (3, 7, 2, 130), (1, 2, 3, 4)):
        arguments, gradients = draw(sizes, dtype)
        evaluation = {"training": False} if noise == "in evaluation" else {}
        options = {**NOISES["all" if evaluation else noise], **evaluation, "seed": SEED, "offset": OFFSET}
        options["lengths"] = some_lengths(*sizes[:2]) if variant.get("ragged") else None
        options |= {"reverse": variant.get("reverse", False), "state_grad_clip": 0.1}
        assert_results(run(arguments, gradients, **options), oracle(run, arguments, gradients, **options))


def by_torch(torch, arguments, gradients, clip=None, lengths=None, reverse=False, **options):
    """Compose the layer of torch's operations, and differentiate it."""
    leaves = [torch.tensor(a, requires_grad=True) for a in arguments]
    x, h, c, weight_ih, weight_hh, gain_ih, gain_hh, gain_c, bias_ih, bias_hh, bias_c = leaves
    T, B, _ = x.shape
    z_h, z_c, m_h, m_x = map(torch.tensor, masks(options, arguments[0], h.shape[1]))
    lengths = torch.tensor([T] * B if lengths is None else lengths)

    def norm(a, gain, bias):
        return torch.nn.functional.layer_norm(a, a.shape[-1:], gain, bias, EPS)

    ys = [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        valid = (t < lengths)[:, None]
        h_given, c_given = h.view_as(h), c.view_as(c)
        if clip is not None:
            for own in (h_given, c_given):
                own.register_hook(lambda g, valid=valid: torch.where(valid, g.clamp(-clip, clip), g))
        sums = norm((x[t] * m_x) @ weight_ih.T, gain_ih, bias_ih)
        i, f, g, o = (sums + norm((h_given * m_h) @ weight_hh.T, gain_hh, bias_hh)).chunk(4, dim=1)
        c_new = torch.sigmoid(f) * c_given + torch.sigmoid(i) * torch.tanh(g)
        h_new = torch.sigmoid(o) * torch.tanh(norm(c_new, gain_c, bias_c))
        h_new, c_new = z_h[t] * h_given + (1 - z_h[t]) * h_new, z_c[t] * c_given + (1 - z_c[t]) * c_new
        ys[t] = torch.where(valid, h_new, 0.0)
        h, c = torch.where(valid, h_new, h_given), torch.where(valid, c_new, c_given)
    y = torch.stack(ys)
    sum((o * torch.tensor(g)).sum() for o, g in zip((y, h, c), gradients, strict=True)).backward()
    results = dict(zip(("y", "hn", "cn"), (y, h, c), strict=True))
    results |= {f"d{name}": leaf.grad for name, leaf in zip(NAMES, leaves, strict=True)}
    return {name: value.detach().numpy() for name, value in results.items()}


@pytest.mark.parametrize("options", [
    {}, {"reverse": True}, {"clip": 0.05}, {"lengths": [5, 0, 3, 1]}, {**NOISES["all"], "seed": 3, "clip": 0.1},
    {**NOISES["all"], "seed": 3, "lengths": [5, 0, 3, 1], "reverse": True, "clip": 0.1},
    {**NOISES["all"], "training": False},
], ids=str)  # fmt: skip
def test_against_torch(backend, options):
    torch = pytest.importorskip("torch")
    arguments, gradients = draw((5, 4, 3, 7))
    options = dict(options)
    clip = options.pop("clip", None)
    expected = by_torch(torch, arguments, gradients, clip, **options)
    assert_results(run(arguments, gradients, clip, **options), expected, "torch")


@pytest.mark.parametrize(
    "options", [{}, {"lengths": [2, 3, 0]}, {**NOISES["all"], "seed": 5, "reverse": True}], ids=str
)
def test_central_differences(backend, options):
    arguments, _ = draw((3, 3, 2, 3))
    gradcheck(
        lambda *inputs: layer_norm_lstm(*inputs, eps=EPS, **options)[:2], arguments,
        lambda dy, *inputs: layer_norm_lstm_backward(dy[0], *dy[1], layer_norm_lstm(*inputs, eps=EPS, **options)[2]),
    )  # fmt: skip


def test_the_layer_by_central_differences(cpu_backend):
    noise = {"zoneout_h": 0.3, "zoneout_c": 0.2, "recurrent_dropout": 0.4}
    gradcheck(LayerNormLSTM(3, 4, 2, True, rng=1, dtype=np.float64, eps=EPS, **noise), random(2, (3, 2, 3)))


def test_optional_arguments(backend, dtype):
    arguments, gradients = draw((4, 3, 2, 5), dtype)
    zeros = [np.zeros_like(a) for a in arguments]
    full = run([arguments[0], *zeros[1:3], *arguments[3:8], *zeros[8:]], gradients)
    left_out = run([arguments[0], None, None, *arguments[3:8]], gradients)
    for name in ("dbias_ih", "dbias_hh", "dbias_c"):
        assert left_out.pop(name) is None and full.pop(name) is not None
    same_bits(left_out, full)
    for given in ([gradients[0], None, None], [None, gradients[1], None]):
        filled = [np.zeros_like(z) if g is None else g for g, z in zip(given, gradients, strict=True)]
        assert_results(run(arguments, given), run(arguments, filled))
    same_bits(run(arguments, gradients, 1e6), run(arguments, gradients))


def test_layouts_and_padding(backend, dtype):
    arguments, gradients = draw((4, 3, 2, 5), dtype)
    expected = run(arguments, gradients)
    for layout in ("fortran", "offset", "strided", "misaligned"):
        views = [layouts(a)[layout] for a in arguments], [layouts(g)[layout] for g in gradients]
        assert_results(run(*views), expected)
    lengths = np.array([4, 0, 2])
    padding = np.arange(4)[:, None] >= lengths
    for reverse in (False, True):
        options = {"lengths": lengths, "reverse": reverse}
        clean = run(arguments, gradients, **options)
        assert not clean["y"][padding].any() and not clean["dx"][padding].any()
        np.testing.assert_array_equal(clean["hn"][1], arguments[1][1])
        x, dy = arguments[0].copy(), gradients[0].copy()
        x[padding] = dy[padding] = np.nan
        same_bits(run([x, *arguments[1:]], [dy, *gradients[1:]], **options), clean)


def test_nan_stays_in_its_sequence(backend, dtype):
    arguments, gradients = draw((4, 3, 2, 5), dtype)
    clean = run(arguments, gradients)
    arguments[0][1, 2, 0] = np.nan
    results = run(arguments, gradients)
    assert np.isnan(results["y"][1:, 2]).all() and np.isnan(results["dweight_ih"]).any()
    np.testing.assert_array_equal(results["y"][:, :2], clean["y"][:, :2])
    np.testing.assert_array_equal(results["dx"][:, :2], clean["dx"][:, :2])


def test_a_scale_of_the_weights_does_not_matter(backend):
    """What layer normalisation is for: 1000 W gives the states of W, and a thousandth of its gradient."""
    arguments, gradients = draw((4, 3, 6, 16))
    base = run(arguments, gradients, eps=1e-12)
    arguments[3] *= 1000
    arguments[4] *= 1000
    scaled = run(arguments, gradients, eps=1e-12)
    assert_close(scaled["y"], base["y"], "differences", magnitude="largest")
    assert_close(1000 * scaled["dweight_hh"], base["dweight_hh"], "differences", magnitude="largest")


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    arguments, gradients = draw((4, 33, 17, 65), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in thread_counts:
            fastgrad.set_num_threads(threads)
            results = run(arguments, gradients, 0.1, **NOISES["all"], seed=1)
            seen.add(b"".join(a.tobytes() for a in results.values()))
    assert len(seen) == 1


def test_the_layer(backend, dtype):
    noise = {"zoneout_h": 0.2, "zoneout_c": 0.1, "recurrent_dropout": 0.1}
    layer = LayerNormLSTM(4, 6, 2, True, rng=3, dtype=dtype, state_grad_clip=0.1, eps=1e-3, gain=0.5, **noise)
    names = ["weight_ih", "weight_hh", "gain_ih", "gain_hh", "gain_c", "bias_ih", "bias_hh", "bias_c"]
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert list(layer.state_dict()) == [f"{name}_{suffix}" for suffix in suffixes for name in names]
    for name, parameter in layer.named_parameters():
        if name.startswith(("gain", "bias")):
            np.testing.assert_array_equal(parameter.data, 0.5 if name.startswith("gain") else 0)
            parameter.data += random(len(name), parameter.data.shape, dtype)
    parameters = {name: p.data.copy() for name, p in layer.named_parameters()}
    seed, layer = layer.seed, placed(layer, backend)
    x, dy = random(1, (5, 3, 4), dtype), random(2, (5, 3, 12), dtype)
    y, (h, c) = layer.forward(x, lengths=[5, 2, 3])
    below, saved, ends = x, [], []
    for k, suffix in enumerate(suffixes):
        own = [parameters[f"{name}_{suffix}"] for name in names]
        options = {**noise, "seed": seed, "offset": k, "reverse": bool(k % 2), "eps": 1e-3, "lengths": [5, 2, 3]}
        one, end, kept = layer_norm_lstm(below, None, None, *own, **options)
        saved.append((one, kept))
        ends.append(end)
        if k % 2:
            below = np.concatenate([saved[-2][0], one], axis=-1)
    np.testing.assert_array_equal(y, below)
    np.testing.assert_array_equal(h, np.stack([end[0] for end in ends]))
    np.testing.assert_array_equal(c, np.stack([end[1] for end in ends]))
    dx, wanted, gradient = layer.backward(dy), {}, dy
    for first in (2, 0):
        parts = []
        for k in (first, first + 1):
            half = np.ascontiguousarray(gradient[..., 6 * (k % 2) : 6 * (k % 2) + 6])
            dbelow, _, _, *others = layer_norm_lstm_backward(half, None, None, saved[k][1], state_grad_clip=0.1)
            parts.append(dbelow)
            wanted |= {f"{name}_{suffixes[k]}": d for name, d in zip(names, others, strict=True)}
        gradient = parts[0] + parts[1]
    np.testing.assert_array_equal(dx, gradient)
    for name, parameter in layer.named_parameters():
        np.testing.assert_array_equal(parameter.grad, wanted[name], err_msg=name)


def test_errors():
    arguments, gradients = draw((2, 3, 4, 5), np.float32)
    with pytest.raises(ValueError, match="eps"):
        layer_norm_lstm(*arguments, eps=0.0)
    with pytest.raises(TypeError, match=r"gain_hh: expected a numpy\.ndarray or cupy\.ndarray, got None"):
        layer_norm_lstm(*arguments[:6], None, arguments[7])
    with pytest.raises(ValueError, match=r"gain_c: expected shape \(H,\) with H = 5, got \(20,\)"):
        layer_norm_lstm(*arguments[:7], arguments[6])
    with pytest.raises(ValueError, match=r"bias_c: expected shape \(H,\) with H = 5, got \(20,\)"):
        layer_norm_lstm(*arguments[:10], arguments[6])
    _, _, saved = layer_norm_lstm(*arguments)
    with pytest.raises(TypeError, match=r"came from fastgrad\.layer_norm_lstm, so call layer_norm_lstm_backward"):
        fastgrad.lstm_backward(*gradients, saved)
    for kwargs, match in (({"eps": 0}, "eps"), ({"gain": np.nan}, "gain")):
        with pytest.raises(ValueError, match=match):
            LayerNormLSTM(3, 4, **kwargs)
