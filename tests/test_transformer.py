"""layers.MultiHeadAttention and layers.TransformerBlock: against torch, by differences, and in training."""

from __future__ import annotations

import numpy as np
import pytest
from backends import placed
from support import random
from tolerances import assert_close

import fastgrad
from fastgrad.layers import (
    LayerNorm,
    Linear,
    MultiHeadAttention,
    Sequential,
    TransformerBlock,
)
from fastgrad.testing import gradcheck

E, H = 12, 3


def torch_dtype(torch, dtype):
    return torch.float64 if dtype is np.float64 else torch.float32


def same_values(torch, layer, module, scale=0.3):
    """Give both the same random parameters."""
    state = layer.state_dict()
    assert set(state) == set(module.state_dict())
    values = {name: random(k, state[name].shape, state[name].dtype, scale) for k, name in enumerate(sorted(state), 10)}
    layer.load_state_dict(values)
    module.load_state_dict({name: torch.tensor(value) for name, value in values.items()})


def assert_gradients(layer, module):
    theirs = dict(module.named_parameters())
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, theirs[name].grad.numpy(), "torch", magnitude="largest", label=name)


def padding(torch, lengths, S):
    return torch.arange(S)[None, :] >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("bias", "causal", "lengths"), [
    (True, False, None), (False, True, None), (True, True, [7, 3]), (True, False, [2, 7]),
])  # fmt: skip
def test_attention_to_itself_against_torch(backend, dtype, batch_first, bias, causal, lengths):
    torch = pytest.importorskip("torch")
    layer = MultiHeadAttention(E, H, bias, causal, batch_first=batch_first, dtype=dtype)
    module = torch.nn.MultiheadAttention(E, H, bias=bias, batch_first=batch_first, dtype=torch_dtype(torch, dtype))
    assert list(layer.state_dict()) == list(module.state_dict())
    same_values(torch, layer, module)
    layer = placed(layer, backend)
    shape = (2, 7, E) if batch_first else (7, 2, E)
    x, dy = random(1, shape, dtype), random(2, shape, dtype)
    t = torch.tensor(x, requires_grad=True)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    hidden = None if lengths is None else padding(torch, lengths, 7)
    expected = module(t, t, t, key_padding_mask=hidden, attn_mask=mask, need_weights=False)[0]
    expected.backward(torch.tensor(dy))
    given = None if lengths is None else np.array(lengths)
    assert_close(layer.forward(x, lengths=given), expected.detach().numpy(), "torch", magnitude="largest")
    assert_close(layer.backward(dy), t.grad.numpy(), "torch", magnitude="largest")
    assert_gradients(layer, module)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_to_another_sequence_against_torch(backend, dtype, batch_first, bias):
    torch = pytest.importorskip("torch")
    layer = MultiHeadAttention(E, H, bias, batch_first=batch_first, dtype=dtype)
    module = torch.nn.MultiheadAttention(E, H, bias=bias, batch_first=batch_first, dtype=torch_dtype(torch, dtype))
    same_values(torch, layer, module)
    layer = placed(layer, backend)
    x, context, dy = (random(n, (2, T, E) if batch_first else (T, 2, E), dtype) for n, T in ((1, 5), (2, 8), (3, 5)))
    t, c = (torch.tensor(a, requires_grad=True) for a in (x, context))
    expected = module(t, c, c, key_padding_mask=padding(torch, [8, 6], 8), need_weights=False)[0]
    expected.backward(torch.tensor(dy))
    y = layer.forward(x, context, lengths=np.array([8, 6]))
    assert_close(y, expected.detach().numpy(), "torch", magnitude="largest")
    for gradient, tensor in zip(layer.backward(dy), (t, c), strict=True):
        assert_close(gradient, tensor.grad.numpy(), "torch", magnitude="largest")
    assert_gradients(layer, module)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("activation", "causal", "bias"), [("gelu", True, True), ("relu", False, False)])
def test_the_block_against_torch(backend, dtype, batch_first, norm, activation, causal, bias):
    torch = pytest.importorskip("torch")
    layer = TransformerBlock(E, H, 20, activation, causal, norm, bias=bias, batch_first=batch_first, dtype=dtype)
    module = torch.nn.TransformerEncoderLayer(
        E, H, 20, 0.0, activation, norm_first=norm == "pre", bias=True, batch_first=batch_first,
        dtype=torch_dtype(torch, dtype),
    )  # fmt: skip
    if not bias:  # torch leaves out the norms' biases too
        module.self_attn.in_proj_bias = module.self_attn.out_proj.bias = None
        module.linear1.bias = module.linear2.bias = None
    same_values(torch, layer, module)
    layer = placed(layer, backend)
    shape = (2, 7, E) if batch_first else (7, 2, E)
    x, dy = random(1, shape, dtype), random(2, shape, dtype)
    t = torch.tensor(x, requires_grad=True)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=t.dtype) if causal else None
    expected = module(t, src_mask=mask, is_causal=causal)
    expected.backward(torch.tensor(dy))
    assert_close(layer.forward(x), expected.detach().numpy(), "torch", magnitude="largest")
    assert_close(layer.backward(dy), t.grad.numpy(), "torch", magnitude="largest")
    assert_gradients(layer, module)


def test_the_block_begins_as_torchs():
    torch = pytest.importorskip("torch")
    layer = TransformerBlock(64, 4, rng=1)
    module = torch.nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", norm_first=True)
    theirs = {name: value.numpy() for name, value in module.state_dict().items()}
    assert list(layer.state_dict()) == list(theirs)
    for name, value in layer.state_dict().items():
        assert value.shape == theirs[name].shape, name
        assert float(value.mean()) == pytest.approx(
            float(theirs[name].mean()), abs=0.01 + 0.1 * float(np.abs(theirs[name]).max())
        ), name
        assert float(np.abs(value).max()) == pytest.approx(float(np.abs(theirs[name]).max()), rel=0.1), name


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "geglu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_block_by_central_differences(cpu_backend, activation, norm):
    layer = TransformerBlock(6, 2, 5, activation, True, norm, dropout=0.3, dtype=np.float64, rng=3)
    assert len([part for part in layer._walk() if part._counters]) == 4  # dropouts, whose masks are replayed
    gradcheck(layer, random(1, (4, 2, 6)))


def test_the_same_bits_forward_whatever_is_behind_a_causal_step(dtype):
    layer = Sequential(*(TransformerBlock(E, H, causal=True, dtype=dtype, rng=n) for n in range(2)))
    x = random(1, (9, 2, E), dtype)
    y = layer.forward(x)
    changed = x.copy()
    changed[5:] = np.nan
    np.testing.assert_array_equal(layer.forward(changed)[:5], y[:5])


def test_dropout_is_off_in_evaluation_and_another_in_each_pass(backend, dtype):
    layer = TransformerBlock(E, H, dropout=0.5, dtype=dtype, rng=1)
    plain = TransformerBlock(E, H, dtype=dtype, rng=1)
    plain.load_state_dict(layer.state_dict())
    layer.eval()
    device, other = placed(layer, backend), placed(plain, backend)
    x = random(1, (5, 2, E), dtype)
    np.testing.assert_array_equal(device.forward(x), other.forward(x))
    layer.train()
    first, second = device.forward(x), device.forward(x)
    assert not np.array_equal(first, second)
    for part in layer._walk():
        for name in part._counters:
            setattr(part, name, 0)
    np.testing.assert_array_equal(device.forward(x), first)


def test_fifty_steps_of_training_beside_torch():
    """Next-token prediction by two causal blocks, Adam on both sides, float64: the same losses all the way."""
    torch = pytest.importorskip("torch")
    V, T, B, D = 11, 9, 4, 16
    layer = Sequential(
        Linear(V, D, rng=1, dtype=np.float64),
        *(TransformerBlock(D, 4, 24, causal=True, dtype=np.float64, rng=n) for n in (2, 3)),
        LayerNorm(D, dtype=np.float64),
        Linear(D, V, rng=4, dtype=np.float64),
    )
    block = {"dropout": 0.0, "activation": "gelu", "norm_first": True}
    module = torch.nn.ModuleList([
        torch.nn.Linear(V, D), *(torch.nn.TransformerEncoderLayer(D, 4, 24, **block) for _ in range(2)),
        torch.nn.LayerNorm(D), torch.nn.Linear(D, V),
    ]).double()  # fmt: skip
    module.load_state_dict({name: torch.tensor(value) for name, value in layer.state_dict().items()})
    ours = fastgrad.Adam(layer.parameters(), lr=1e-2)
    theirs = torch.optim.Adam(module.parameters(), lr=1e-2)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(50):
        codes = (np.cumsum(rng.integers(1, 3, (T + 1, B)), axis=0)) % V
        x, targets = np.eye(V)[codes[:-1]], codes[1:]
        ours.zero_grad()
        logits = layer.forward(x)
        loss, dlogits = fastgrad.softmax_cross_entropy(logits.reshape(-1, V), targets.reshape(-1))
        layer.backward(dlogits.reshape(T, B, V))
        ours.step()
        t = module[0](torch.tensor(x))
        for part in module[1:3]:
            t = part(t, src_mask=mask, is_causal=True)
        expected = torch.nn.functional.cross_entropy(
            module[4](module[3](t)).reshape(-1, V), torch.tensor(targets).reshape(-1)
        )
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-8)
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]


def test_errors():
    def error(exception, match, function, *args, **kwargs):
        with pytest.raises(exception, match=match):
            function(*args, **kwargs)

    x = np.zeros((3, 2, E), np.float32)
    layer = MultiHeadAttention(E, H)
    error(ValueError, "num_heads: expected a divisor of embed_dim = 12, got 5", MultiHeadAttention, E, 5)
    error(ValueError, "embed_dim must be a whole number", MultiHeadAttention, 0, 1)
    error(ValueError, "dropout: expected", MultiHeadAttention, E, H, dropout=2.0)
    error(
        ValueError,
        r"x: expected shape \(time, batch, 12\), got ndarray of shape \(3, 2, 5\)",
        layer.forward,
        x[..., :5],
    )
    error(ValueError, r"context: expected shape \(time, batch, 12\)", layer.forward, x, x[0])
    error(RuntimeError, "expected a forward pass before", layer.backward, x)
    error(ValueError, "norm: expected 'pre' or 'post', got None", TransformerBlock, E, H, norm=None)
    error(ValueError, "activation: expected one of swiglu, geglu, .*, got 'swigly'", TransformerBlock, E, H,
          activation="swigly")  # fmt: skip
    block = TransformerBlock(E, H)
    error(RuntimeError, "expected a forward pass before", block.backward, x)
    block.forward(x)
    error(ValueError, "dy: expected shape", block.backward, x[1:])
