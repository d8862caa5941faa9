"""Layers: against torch, by central differences, names, accumulation, state, lengths, errors."""

from __future__ import annotations

import backends
import numpy as np
import pytest
from backends import placed
from support import random
from tolerances import assert_close

from fastgrad import SGD, Adam, RMSprop, layers
from fastgrad.layers import GRU, LSTM, Activation, Embedding, Layer, Linear, Parameter, Sequential
from fastgrad.testing import gradcheck

T, B, I, H = 5, 3, 4, 6  # noqa: E741 the letters of the house

RECURRENT = [(cell, depth, both) for cell in ("LSTM", "GRU") for depth in (1, 2) for both in (False, True)]


def torch_twin(layer, module):
    """Return torch's module with the parameters of `layer`."""
    torch = pytest.importorskip("torch")
    module = module.to(torch.float64 if layer.parameters()[0].data.dtype == np.float64 else torch.float32)
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in layer.state_dict().items()})
    return module


def assert_gradients_match(layer, module, dtype):
    theirs = dict(module.named_parameters())
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == dtype
        assert_close(parameter.grad, theirs[name].grad.numpy(), "torch", magnitude="largest", label=name)


def as_state(arrays, cell):
    return tuple(arrays) if cell == "LSTM" else arrays[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(7,), (2, 3), (2, 1, 3), (), (0,)])
def test_linear_against_torch(backend, dtype, leading, bias):
    torch = pytest.importorskip("torch")
    layer = placed(Linear(I, H, bias=bias, rng=1, dtype=dtype), backend)
    module = torch_twin(layer, torch.nn.Linear(I, H, bias=bias))
    x, dy = random(2, (*leading, I), dtype), random(3, (*leading, H), dtype)
    xt = torch.from_numpy(x.copy()).requires_grad_()
    expected = module(xt)
    y = layer.forward(x)
    assert y.shape == (*leading, H) and y.dtype == dtype
    assert_close(y, expected.detach().numpy(), "torch", magnitude="largest")
    expected.backward(torch.from_numpy(dy))
    assert_close(layer.backward(dy), xt.grad.numpy(), "torch", magnitude="largest")
    assert_gradients_match(layer, module, dtype)


@pytest.mark.parametrize("shape", [(4, 3), (6,), (0, 2), (2, 2, 2)])
def test_embedding_against_torch(backend, dtype, shape):
    torch = pytest.importorskip("torch")
    layer = placed(Embedding(5, I, rng=1, dtype=dtype), backend)
    module = torch_twin(layer, torch.nn.Embedding(5, I))
    x = np.random.default_rng(2).integers(0, 4, shape)
    dy = random(3, (*shape, I), dtype)
    y = layer.forward(x)
    expected = module(torch.from_numpy(x))
    assert_close(y, expected.detach().numpy(), "exact")
    expected.backward(torch.from_numpy(dy))
    assert layer.backward(dy) is None
    assert_gradients_match(layer, module, dtype)


@pytest.mark.parametrize(
    ("kind", "params", "name"),
    [
        ("sigmoid", {}, "Sigmoid"), ("tanh", {}, "Tanh"), ("relu", {}, "ReLU"),
        ("leaky_relu", {"negative_slope": 0.2}, "LeakyReLU"), ("relu6", {}, "ReLU6"),
        ("hardtanh", {"min_val": 0.0, "max_val": 1.5}, "Hardtanh"), ("elu", {"alpha": 0.7}, "ELU"),
        ("selu", {}, "SELU"), ("gelu", {}, "GELU"), ("silu", {}, "SiLU"), ("mish", {}, "Mish"),
    ],
)  # fmt: skip
def test_every_remedy_among_activations(backend, dtype, kind, params, name):
    """Those that the literature names; a ReLU clipped at any bound is hardtanh from 0."""
    torch = pytest.importorskip("torch")
    layer, module = placed(Activation(kind, **params), backend), getattr(torch.nn, name)(**params)
    x, dy = random(1, (5, 7), dtype, scale=2.0), random(2, (5, 7), dtype)
    t = torch.tensor(x, requires_grad=True)
    expected = module(t)
    expected.backward(torch.tensor(dy))
    assert_close(layer.forward(x), expected.detach().numpy(), "torch", magnitude="largest")
    assert_close(layer.backward(dy), t.grad.numpy(), "torch", magnitude="largest")


def test_activation(backend, dtype):
    torch = pytest.importorskip("torch")
    layer = placed(Activation("leaky_relu", negative_slope=0.3), backend)
    x, dy = random(1, (3, 5), dtype), random(2, (3, 5), dtype)
    xt = torch.from_numpy(x.copy()).requires_grad_()
    expected = torch.nn.functional.leaky_relu(xt, 0.3)
    expected.backward(torch.from_numpy(dy))
    assert_close(layer.forward(x), expected.detach().numpy(), "torch")
    assert_close(layer.backward(dy), xt.grad.numpy(), "torch")
    assert layer.parameters() == []


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("cell", "depth", "both"), RECURRENT)
def test_recurrent_against_torch(backend, dtype, cell, depth, both, batch_first, with_state):
    torch = pytest.importorskip("torch")
    layer = placed(getattr(layers, cell)(I, H, depth, both, batch_first, rng=1, dtype=dtype), backend)
    module = torch_twin(layer, getattr(torch.nn, cell)(I, H, depth, batch_first=batch_first, bidirectional=both))
    directions = 2 if both else 1
    lead = (B, T) if batch_first else (T, B)
    count = 2 if cell == "LSTM" else 1
    x, dy = random(2, (*lead, I), dtype), random(3, (*lead, H * directions), dtype)
    shape = (depth * directions, B, H)
    start = [random(4 + k, shape, dtype, 0.5) for k in range(count)]
    dend = [random(6 + k, shape, dtype) for k in range(count)]
    xt = torch.from_numpy(x.copy()).requires_grad_()
    startt = [torch.from_numpy(part.copy()).requires_grad_() for part in start]

    expected, end = module(xt, as_state(startt, cell) if with_state else None)
    y, state = layer.forward(x, as_state(start, cell) if with_state else None)
    assert y.dtype == dtype
    assert_close(y, expected.detach().numpy(), "torch", magnitude="largest")
    parts, ends = (state, end) if cell == "LSTM" else ((state,), (end,))
    for part, theirs in zip(parts, ends, strict=True):
        assert_close(part, theirs.detach().numpy(), "torch", magnitude="largest")

    torch.autograd.backward([expected, *ends], [torch.from_numpy(dy), *map(torch.from_numpy, dend)])
    assert_close(layer.backward(dy, as_state(dend, cell)), xt.grad.numpy(), "torch", magnitude="largest")
    assert_gradients_match(layer, module, dtype)
    if with_state:
        dstate0 = layer.dstate0 if cell == "LSTM" else (layer.dstate0,)
        for part, theirs in zip(dstate0, startt, strict=True):
            assert_close(part, theirs.grad.numpy(), "torch", magnitude="largest")


@pytest.mark.parametrize(("cell", "depth", "both"), RECURRENT)
def test_lengths_against_torch_packed(backend, dtype, cell, depth, both):
    torch = pytest.importorskip("torch")
    layer = placed(getattr(layers, cell)(I, H, depth, both, rng=1, dtype=dtype), backend)
    module = torch_twin(layer, getattr(torch.nn, cell)(I, H, depth, bidirectional=both))
    lengths = np.array([2, 5, 3])
    x, dy = random(2, (T, B, I), dtype), random(3, (T, B, H * (1 + both)), dtype)
    x[3, 0] = np.nan  # behind the length of sequence 0: must not be read
    xt = torch.from_numpy(np.nan_to_num(x)).requires_grad_()
    packed = torch.nn.utils.rnn.pack_padded_sequence(xt, torch.from_numpy(lengths), enforce_sorted=False)
    output, end = module(packed)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(output, total_length=T)
    y, state = layer.forward(x, lengths=lengths)
    assert_close(y, expected.detach().numpy(), "torch", magnitude="largest")
    for part, theirs in zip(*(((state, end)) if cell == "LSTM" else ((state,), (end,))), strict=True):
        assert_close(part, theirs.detach().numpy(), "torch", magnitude="largest")
    expected.backward(torch.from_numpy(dy))
    assert_close(layer.backward(dy), xt.grad.numpy(), "torch", magnitude="largest")
    assert_gradients_match(layer, module, dtype)


@pytest.mark.parametrize("make", [
    lambda: LSTM(3, 2, 2, True, rng=1, dtype=np.float64),
    lambda: GRU(3, 2, 2, True, rng=1, dtype=np.float64),
    lambda: GRU(3, 2, 2, True, reset_after=False, rng=1, dtype=np.float64),
], ids=["lstm", "gru", "gru-paper"])  # fmt: skip
def test_recurrent_by_central_differences(cpu_backend, make):
    layer = make()
    start = [random(5 + k, (4, 3, 2)) for k in range(2)]
    gradcheck(layer, (random(2, (4, 3, 3)), as_state(start, type(layer).__name__), np.array([4, 2, 0])))


def model(dtype=np.float64):
    return Sequential(
        Embedding(7, I, rng=1, dtype=dtype),
        GRU(I, H, rng=2, dtype=dtype),
        Linear(H, 5, rng=3, dtype=dtype),
        Activation("gelu"),
        Linear(5, 2, rng=4, dtype=dtype),
    )


def test_sequential_by_central_differences(cpu_backend):
    net, x = model(), np.random.default_rng(1).integers(0, 7, (3, 2))
    gradcheck(net, x)
    y = net.forward(x)
    assert net.backward(y) is None


def test_a_dropped_state_gradient_is_noticed(monkeypatch, backend):
    """A planted fault: the comparison with torch above must fail when the gradient of the last state is lost."""
    pytest.importorskip("torch")
    original = LSTM.backward
    monkeypatch.setattr(LSTM, "backward", lambda self, dy, dstate=None: original(self, dy, None))
    with pytest.raises(AssertionError, match="entries are off"):
        test_recurrent_against_torch(backend, np.float64, "LSTM", 1, False, False, True)


@pytest.mark.parametrize(("cell", "depth", "both"), RECURRENT)
def test_state_dict_is_torchs(cell, depth, both):
    torch = pytest.importorskip("torch")
    module = getattr(torch.nn, cell)(I, H, depth, bidirectional=both)
    layer = getattr(layers, cell)(I, H, depth, both, rng=1)
    theirs = module.state_dict()
    assert list(layer.state_dict()) == list(theirs)
    assert {name: a.shape for name, a in layer.state_dict().items()} == {n: tuple(t.shape) for n, t in theirs.items()}
    layer.load_state_dict(theirs)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, theirs[name].numpy())


def test_state_dict_of_a_model_is_torchs():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(torch.nn.Embedding(7, I), torch.nn.GELU(), torch.nn.Linear(I, 2)).state_dict()
    net = Sequential(Embedding(7, I), Activation("gelu"), Linear(I, 2))
    assert list(net.state_dict()) == list(theirs) == ["0.weight", "2.weight", "2.bias"]
    net.load_state_dict(theirs)
    assert [parameter.name for parameter in net.parameters()] == list(theirs)


def test_initial_values():
    for make in (lambda: LSTM(9, 16, rng=3), lambda: GRU(9, 16, rng=3), lambda: Linear(16, 50, rng=3)):
        values = np.concatenate([parameter.data.ravel() for parameter in make().parameters()])
        assert values.dtype == np.float32
        assert np.abs(values).max() <= 0.25 and np.abs(values).max() > 0.245 and abs(values.mean()) < 0.02
        np.testing.assert_array_equal(make().parameters()[0].data, make().parameters()[0].data)
    table = Embedding(300, 100, rng=3).weight.data
    assert abs(table.std() - 1) < 0.02 and abs(table.mean()) < 0.03


def test_gradients_accumulate_as_in_torch(cpu_backend, dtype):
    layer = LSTM(I, H, rng=1, dtype=dtype)
    x, dy = random(2, (T, B, I), dtype), random(3, (T, B, H), dtype)
    layer.forward(x)
    layer.backward(dy)
    first = {name: parameter.grad.copy() for name, parameter in layer.named_parameters()}
    arrays = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert len({id(array) for array in arrays.values()}) == 4  # the two biases do not share one
    layer.forward(x)
    layer.backward(dy)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is arrays[name]
        np.testing.assert_array_equal(parameter.grad, 2 * first[name])


def test_carried_state_is_one_long_sequence(backend, dtype):
    layer = placed(LSTM(I, H, 2, rng=1, dtype=dtype), backend)
    x = random(2, (6, B, I), dtype)
    whole, end = layer.forward(x)
    first, state = layer.forward(x[:4])
    second, state = layer.forward(x[4:], state)
    assert_close(np.concatenate([first, second]), whole, "recurrent", magnitude="largest")
    for part, expected in zip(state, end, strict=True):
        assert_close(part, expected, "recurrent", magnitude="largest")


def test_only_the_state_has_a_gradient(backend):
    layer = placed(LSTM(I, H, rng=1, dtype=np.float64), backend)
    x, dh = random(2, (T, B, I)), random(3, (1, B, H))
    layer.forward(x)
    dx = layer.backward(None, (dh, None))
    layer.forward(x)
    dy = np.zeros((T, B, H))
    dy[-1] = dh[0]
    assert_close(dx, layer.backward(dy), "recurrent", magnitude="largest")


def test_your_own_layer():
    class Block(Layer):
        def __init__(self):
            self.scale = Parameter(np.ones(3))
            self.inner = Sequential(Linear(3, 3), Activation("tanh"))

    block = Sequential(Block(), Linear(3, 2, bias=False))
    names = ["0.scale", "0.inner.0.weight", "0.inner.0.bias", "1.weight"]
    assert list(block.state_dict()) == names == [parameter.name for parameter in block.parameters()]
    assert "0.scale" in repr(block.parameters()[0])
    assert block.eval() is block and not block[0].inner[1].training
    assert block.train()[0].inner[1].training and len(block) == 2
    with pytest.raises(NotImplementedError, match="Block has no forward"):
        block.forward(np.ones(3))
    with pytest.raises(NotImplementedError, match="Block has no backward"):
        block[0].backward(np.ones(3))


def test_load_state_dict_changes_all_or_nothing():
    layer = Linear(2, 3, rng=1)
    before = {name: array.copy() for name, array in layer.state_dict().items()}
    new = {"weight": np.ones((3, 2)), "bias": np.ones(3)}
    with pytest.raises(KeyError, match=r"missing \['bias'\], unexpected \['bais'\]"):
        layer.load_state_dict({"weight": new["weight"], "bais": new["bias"]})
    with pytest.raises(ValueError, match=r"state\['bias'\].*\(3,\).*\(4,\)"):
        layer.load_state_dict({**new, "bias": np.ones(4)})
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    kept = layer.weight.data
    layer.load_state_dict(new)
    assert layer.weight.data is kept and kept.dtype == np.float32 and (kept == 1).all()


ERRORS = [
    (lambda: LSTM(I, H).backward(np.zeros((T, B, H), np.float32)), RuntimeError, "LSTM.backward.*forward"),
    (lambda: Linear(I, H).backward(np.zeros((B, H), np.float32)), RuntimeError, "Linear.backward.*forward"),
    (lambda: Sequential(Embedding(3, 2)).backward(np.zeros(2)), RuntimeError, "Embedding.backward.*forward"),
    (lambda: LSTM(I, H).forward(np.zeros((T, I), np.float32)), ValueError, r"x.*\(time, batch, 4\).*\(5, 4\)"),
    (
        lambda: GRU(I, H, batch_first=True).forward(np.zeros((B, T, 9), np.float32)),
        ValueError,
        r"x.*\(batch, time, 4\)",
    ),
    (lambda: LSTM(I, H).forward(np.zeros((T, B, I))), TypeError, "float64.*float32|float32.*float64"),
    (lambda: LSTM(I, H).forward(np.zeros((T, B, I), np.float32), np.zeros((1, B, H))), TypeError, r"pair \(h, c\)"),
    (lambda: GRU(I, H).forward(np.zeros((T, B, I), np.float32), np.zeros((B, H))), ValueError, r"state.*\(1, 3, 6\)"),
    (lambda: Linear(I, H).forward(np.zeros((B, 3), np.float32)), ValueError, r"x.*\(\.\.\., 4\).*\(3, 3\)"),
    (lambda: Linear(0, 3), ValueError, "in_features.*0"),
    (lambda: LSTM(3, 2.5), ValueError, "hidden_size.*2.5"),
    (lambda: LSTM(3, 2, dtype=np.float16), TypeError, "float16"),
    (lambda: Embedding(3, 2).forward(np.array([3])), ValueError, "3"),
    (lambda: Activation("gelu_exact"), ValueError, "gelu_exact"),
    (lambda: Sequential(Linear(1, 1), "tanh"), TypeError, r"layers\[1\].*str"),
    (lambda: Sequential(*[Linear(1, 1)] * 2), ValueError, r"layers\[1\] is in this Sequential already"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_backward_twice_and_wrong_shape(backend):
    layer = placed(LSTM(I, H, rng=1), backend)
    layer.forward(np.zeros((T, B, I), np.float32))
    with pytest.raises(ValueError, match=r"dy: expected shape \(5, 3, 6\).*got ndarray of shape \(5, 3, 7\)"):
        layer.backward(np.zeros((T, B, 7), np.float32))
    layer.backward(np.zeros((T, B, H), np.float32))
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(np.zeros((T, B, H), np.float32))


# --- on a GPU: moved, made there, errors


def everything():
    """Return layers of each kind with parameters, gradients, and a buffer of their own."""

    class Scaled(Layer):
        def __init__(self):
            self.scale = Parameter(np.full(3, 2.0, np.float32), np.ones(3, np.float32))
            self.mean = np.zeros(3, np.float32)
            self.pair = (np.ones(2), None)
            self.shape = (2, 3)

    net = Sequential(
        Embedding(7, I, rng=1), GRU(I, H, rng=2), LSTM(H, 3, 2, True, rng=2), Linear(6, 5, rng=3), Scaled()
    )
    for parameter in net.parameters():
        parameter.grad = random(4, parameter.data.shape, np.float32)
    return net


def test_moving_there_and_back(emulated_gpu):
    net = everything()
    parameters = net.parameters()
    data, grads = [p.data.copy() for p in parameters], [p.grad.copy() for p in parameters]
    assert net.to("gpu") is net
    assert all(now is before for now, before in zip(net.parameters(), parameters, strict=True))
    for parameter, values, gradient in zip(parameters, data, grads, strict=True):
        assert type(parameter.data) is type(parameter.grad) is emulated_gpu.ndarray
        np.testing.assert_array_equal(parameter.data.get(), values)
        np.testing.assert_array_equal(parameter.grad.get(), gradient)
    own = net[4]
    assert type(own.mean) is type(own.pair[0]) is emulated_gpu.ndarray
    assert own.pair[1] is None and own.shape == (2, 3)
    there = [parameter.data for parameter in parameters]
    net.to("gpu")  # what is there stays as it is
    assert all(parameter.data is array for parameter, array in zip(parameters, there, strict=True))
    net.to("cpu")
    for parameter, values in zip(parameters, data, strict=True):
        assert type(parameter.data) is type(parameter.grad) is np.ndarray
        np.testing.assert_array_equal(parameter.data, values)
    assert type(own.mean) is type(own.pair[0]) is np.ndarray


def test_one_parameter_in_two_places_stays_one(emulated_gpu):
    head, table = Linear(I, 7, rng=1), Embedding(7, I, rng=1)
    head.weight = table.weight
    Sequential(table, head).to("gpu")
    assert head.weight is table.weight and type(head.weight.data) is emulated_gpu.ndarray


@pytest.mark.parametrize("make", [
    lambda **settings: Linear(3, 4, rng=5, **settings), lambda **settings: Embedding(3, 4, rng=5, **settings),
    lambda **settings: LSTM(3, 4, rng=5, **settings), lambda **settings: GRU(3, 4, rng=5, **settings),
], ids=["Linear", "Embedding", "LSTM", "GRU"])  # fmt: skip
def test_made_on_the_gpu_with_the_numbers_of_the_cpu(emulated_gpu, make, dtype):
    here, there = make(dtype=dtype).state_dict(), make(dtype=dtype, device="gpu").state_dict()
    assert here.keys() == there.keys()
    for name, array in there.items():
        assert type(array) is emulated_gpu.ndarray
        np.testing.assert_array_equal(array.get(), here[name])


def test_state_dicts_cross_devices(emulated_gpu):
    here, there = Linear(3, 4, rng=1), Linear(3, 4, rng=2, dtype=np.float64, device="gpu")
    kept = there.weight.data
    there.load_state_dict(here.state_dict())
    assert there.weight.data is kept and kept.dtype == np.float64
    np.testing.assert_array_equal(kept.get(), here.weight.data)
    other = Linear(3, 4, rng=3)
    other.load_state_dict(there.state_dict())
    np.testing.assert_array_equal(other.bias.data, here.bias.data)
    third = Linear(3, 4, rng=4, device="gpu")
    third.load_state_dict(there.state_dict())
    np.testing.assert_array_equal(third.weight.data.get(), here.weight.data)
    with pytest.raises(ValueError, match=r"state\['bias'\].*\(4,\).*\(5,\)"):
        third.load_state_dict({"weight": np.zeros((4, 3)), "bias": np.zeros(5)})
    np.testing.assert_array_equal(third.weight.data.get(), here.weight.data)


def test_what_forward_kept_does_not_move(emulated_gpu):
    layer = Linear(3, 4)
    layer.forward(np.zeros((2, 3), np.float32))
    layer.to("gpu")
    with pytest.raises(RuntimeError, match="expected a forward pass before"):
        layer.backward(emulated_gpu.zeros((2, 4), np.float32))


WRONG_DEVICE = [
    (lambda: Linear(3, 4), np.zeros((2, 3), np.float32)),
    (lambda: Embedding(3, 4), np.zeros(2, np.int64)),
    (lambda: LSTM(3, 4), np.zeros((2, 1, 3), np.float32)),
    (lambda: GRU(3, 4), np.zeros((2, 1, 3), np.float32)),
]


@pytest.mark.parametrize(("make", "x"), WRONG_DEVICE, ids=["Linear", "Embedding", "LSTM", "GRU"])
def test_an_input_on_the_other_device(emulated_gpu, make, x):
    layer = make()
    with pytest.raises(
        TypeError, match=r"^x is a CuPy array but this \w+ is on the CPU; pass cupy.asnumpy\(x\), or .*gpu"
    ):
        layer.forward(emulated_gpu.asarray(x))
    layer.to("gpu")
    with pytest.raises(
        TypeError, match=r"^x is a NumPy array but this \w+ is on the GPU; pass cupy.asarray\(x\), or .*cpu"
    ):
        layer.forward(x)
    with pytest.raises(TypeError, match=r"^x: expected a numpy.ndarray or cupy.ndarray, got list"):
        layer.forward(x.tolist())


def test_a_state_on_the_other_device(emulated_gpu):
    layer = LSTM(3, 4, device="gpu")
    state = (emulated_gpu.zeros((1, 2, 4), np.float32), np.zeros((1, 2, 4), np.float32))
    with pytest.raises(TypeError, match=r"^state\[1\] \(c\) is a NumPy array but this LSTM is on the GPU"):
        layer.forward(emulated_gpu.zeros((5, 2, 3), np.float32), state)


def test_a_gradient_on_the_other_device(backend):
    if backend not in backends.DEVICES:
        pytest.skip("needs a device")
    xp = backends.module(backend)
    layer = Activation("tanh")
    layer.forward(xp.asarray(random(1, (3,), np.float32)))
    with pytest.raises(
        TypeError, match=r"^dy is a NumPy array but forward returned a CuPy array; pass cupy.asarray\(dy\)"
    ):
        layer.backward(random(2, (3,), np.float32))
    layer.backward(xp.asarray(random(2, (3,), np.float32)))  # the right one may follow


def test_devices_that_do_not_exist(monkeypatch):
    from fastgrad import _gpu

    layer = Linear(3, 4)
    with pytest.raises(ValueError, match=r"^device: expected 'cpu' or 'gpu', got 'cuda'$"):
        layer.to("cuda")
    monkeypatch.setattr(_gpu, "gpu_status", lambda: _gpu.GPUStatus(None, "there is none", "buy one"))
    message = "^device: no GPU can be used: there is none; buy one, or stay on the CPU$"
    with pytest.raises(RuntimeError, match=message):
        layer.to("gpu")
    with pytest.raises(RuntimeError, match=message):
        Linear(3, 4, device="gpu")
    assert type(layer.to("cpu").weight.data) is np.ndarray


OPTIMIZERS = {
    "SGD": lambda params: SGD(params, lr=0.1, momentum=0.9),
    "RMSprop": lambda params: RMSprop(params, lr=0.1, momentum=0.5, centered=True),
    "Adam": lambda params: Adam(params, lr=0.1, amsgrad=True, max_norm=1.0),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_takes_its_state_along(device, kind, dtype):
    moving, staying = Linear(3, 4, rng=1, dtype=dtype), Linear(3, 4, rng=1, dtype=dtype)
    pairs = [(layer, OPTIMIZERS[kind](layer.parameters())) for layer in (moving, staying)]
    for step, where in enumerate(["cpu", "gpu", "gpu", "cpu", "gpu"]):
        moving.to(where)
        for layer, optimizer in pairs:
            for k, parameter in enumerate(layer.parameters()):
                gradient = random(10 * step + k, parameter.data.shape, dtype)
                parameter.grad = gradient if layer is staying or where == "cpu" else device.asarray(gradient)
            optimizer.step()
    there, here = (optimizer.state_dict()["state"] for _, optimizer in pairs)
    assert there.keys() == here.keys() == {0, 1}
    for index, entry in here.items():
        for key, value in entry.items():
            if key == "step":
                assert there[index][key] == value == 5
            else:
                assert_close(there[index][key].get(), value, "step", magnitude="largest", label=key)
    for one, other in zip(moving.parameters(), staying.parameters(), strict=True):
        assert type(one.data) is device.ndarray
        assert_close(one.data.get(), other.data, "step", magnitude="largest", label=one.name)
    reports = [optimizer.step() for _, optimizer in pairs]
    assert float(reports[0].grad_norm) == pytest.approx(reports[1].grad_norm)
