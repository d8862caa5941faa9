"""Subnormal numbers: the CPU kernels keep or flush them, in every thread, and leave the processor as they found it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from fastgrad.kernels import fpcontrol
from support import oracle, random

import fastgrad
from fastgrad.linear import linear, linear_backward

SIZE = 300_007  # many blocks, the last one partial, and enough to be split over threads
POLICIES = ["keep", "flush"]
flushing = pytest.mark.skipif(not fpcontrol.FLUSH, reason="no register known on this processor")


def tiny(dtype) -> float:
    """Return the smallest normal number."""
    return np.finfo(dtype).tiny


def small(dtype) -> float:
    """Return the smallest subnormal number."""
    return np.finfo(dtype).smallest_subnormal


def around_tiny(seed: int, shape, dtype) -> np.ndarray:
    """Return numbers of both signs, most of them subnormal, some just above."""
    return (random(seed, shape) * (0.3 * float(tiny(dtype)))).astype(dtype)


def numpy_keeps(dtype=np.float32) -> bool:
    """Say whether NumPy computes with subnormals in this thread: the witness of the control register."""
    one = np.full(1000, tiny(dtype))
    assert one.dtype == dtype
    half = one * dtype(0.5)
    return bool((half * dtype(2.0) == one).all())


def assert_units(actual: np.ndarray, exact: np.ndarray, units: float) -> None:
    """Compare in units of the smallest subnormal number, and demand that there is something to compare."""
    error = np.abs(actual.astype(np.longdouble) - exact.astype(np.longdouble)) / small(actual.dtype)
    assert (error <= units).all(), f"off by {error.max()} units"
    assert np.abs(exact).max() > 1000 * units * small(actual.dtype)


@pytest.fixture(params=[100, SIZE], ids=["serial", "parallel"])
def size(request):
    return request.param


# --- keep


@pytest.mark.parametrize("kind", ["gelu", "tanh", "silu", "elu"])
def test_keep_backward_of_activations(dtype, size, kind):
    x, dy = random(1, size, dtype), around_tiny(2, size, dtype)
    # A derivative within 4 ulp times a dy of at most as many digits, rounded once more.
    scale = 2.0 ** (120 if dtype is np.float32 else 900)
    exact = oracle(fastgrad.activation_backward, dy * dtype(scale), x, kind).astype(np.longdouble) / scale
    assert_units(fastgrad.activation_backward(dy, x, kind), exact, 5)


def test_keep_is_exact_where_one_product_is_all(dtype, size):
    dy, x = around_tiny(3, size, dtype), -np.abs(random(4, size, dtype))
    slope = dtype(0.37)
    np.testing.assert_array_equal(
        fastgrad.activation_backward(dy, x, "leaky_relu", negative_slope=float(slope)), dy * slope
    )


def test_keep_in_clipping(dtype, size):
    grads = [around_tiny(5, size, dtype), np.array([4.0], dtype)]
    coefficient = dtype(1.0 / (4.0 + 1e-6))
    expected = [g * coefficient for g in grads]
    assert fastgrad.clip_by_global_norm(grads, 1.0) == 4.0
    for grad, right in zip(grads, expected, strict=True):
        np.testing.assert_array_equal(grad, right)
    low = np.percentile(expected[0], 30)
    fastgrad.clip_by_value(grads, low, 1.0)
    np.testing.assert_array_equal(grads[0], np.maximum(expected[0], low))


def test_keep_in_norms(dtype, size):
    grad = np.full(size, 3 * small(dtype))
    assert fastgrad.global_norm(grad, ord=np.inf) == grad[0]
    assert fastgrad.global_norm(grad, ord=1) == pytest.approx(size * float(grad[0]), rel=1e-12)
    assert fastgrad.global_norm(grad) == pytest.approx(size**0.5 * float(grad[0]), rel=1e-12, abs=2 * small(np.float64))


def test_keep_in_adam_whose_state_decays(dtype, size):
    first = around_tiny(6, size, dtype) * dtype(8)
    state = {"exp_avg": first.copy(), "exp_avg_sq": np.abs(first)}
    mean, square = first.copy(), np.abs(first)
    param, grad = np.zeros(size, dtype), np.zeros(size, dtype)
    for step in range(1, 41):
        fastgrad.adam_step(param, grad, *state.values(), step=step, betas=(0.75, 0.9375))
        mean, square = mean * dtype(0.75), square * dtype(0.9375)  # rounded once, as the kernel's fma with 0
    assert (np.abs(mean) < tiny(dtype)).all() and mean.any()
    np.testing.assert_array_equal(state["exp_avg"], mean)
    np.testing.assert_array_equal(state["exp_avg_sq"], square)


def test_keep_in_matrix_products(dtype):
    rng = np.random.default_rng(7)
    x, weight, dy = (rng.integers(-9, 9, shape).astype(dtype) for shape in ((65, 33), (130, 33), (65, 130)))
    unit = small(dtype)
    np.testing.assert_array_equal(linear(x * unit, weight), (x @ weight.T) * unit)
    dx, dweight, dbias = linear_backward(dy * unit, x, weight)
    np.testing.assert_array_equal(dx, (dy @ weight) * unit)
    np.testing.assert_array_equal(dweight, (dy.T @ x) * unit)
    np.testing.assert_array_equal(dbias, dy.sum(axis=0) * unit)


def lstm_gradients(dtype, scale):
    x, dy = random(8, (6, 5, 7), dtype), random(9, (6, 5, 33), dtype, scale=0.5)
    weights = [random(10 + k, shape, dtype, scale=0.3) for k, shape in enumerate([(132, 7), (132, 33)])]
    saved = fastgrad.lstm(x, None, None, *weights)[2]
    return fastgrad.lstm_backward(dy * scale, None, None, saved)[:5]


def test_keep_in_lstm(dtype):
    """The gradients of a dy that is subnormal are those of a usual one, shrunk by a power of two."""
    scale = dtype(tiny(dtype) / 4)
    for gradient, usual in zip(lstm_gradients(dtype, scale), lstm_gradients(dtype, dtype(1)), strict=True):
        assert_units(gradient, usual.astype(np.longdouble) * scale, 100)


# --- flush


@flushing
def test_flush_takes_inputs_for_zero_and_returns_zero(dtype, size):
    x = -np.abs(random(11, size, dtype))
    with fastgrad.subnormals("flush"):
        for dy, slope in ((tiny(dtype) / 2, 2.0**20), (tiny(dtype), 0.5)):
            dx = fastgrad.activation_backward(np.full(size, -dy, dtype), x, "leaky_relu", negative_slope=slope)
            assert not dx.any() and np.signbit(dx).all()
        dx = fastgrad.activation_backward(np.full(size, tiny(dtype)), x, "leaky_relu", negative_slope=2.0)
        assert (dx == 2 * tiny(dtype)).all()


@flushing
@pytest.mark.parametrize("kind", ["gelu", "tanh", "silu", "mish"])
def test_flush_backward_of_activations(dtype, size, kind):
    dy = np.full(size, tiny(dtype) / 2)
    bias_grad = np.ones(size, dtype)
    with fastgrad.subnormals("flush"):
        dx = fastgrad.activation_backward(dy[None], random(12, (1, size), dtype), kind, bias_grad=bias_grad)
    assert not dx.any() and not bias_grad.any()


@flushing
def test_flush_in_optimizers_clipping_and_norms(dtype, size):
    grads = [around_tiny(13, size, dtype), np.array([4.0], dtype)]
    below = np.abs(grads[0]) < tiny(dtype)
    with fastgrad.subnormals("flush"):
        for order in (1, 2, np.inf):
            assert fastgrad.global_norm(grads[0][below], ord=order) == 0
        fastgrad.clip_by_global_norm(grads, 1.0)
        assert not grads[0][below].any() and not grads[0][np.abs(grads[0]) < tiny(dtype)].any()
        mean, square = (np.full(size, tiny(dtype)) for _ in range(2))
        fastgrad.adam_step(np.zeros(size, dtype), np.zeros(size, dtype), mean, square, step=1)
        assert not mean.any() and not square.any()


@flushing
def test_flush_in_matrix_products_and_lstm(dtype):
    rows = np.full((257, 129), tiny(dtype) / 2)
    weight = np.full((130, 129), dtype(2.0**10))
    with fastgrad.subnormals("flush"):
        assert not linear(rows, weight).any()
        assert not any(gradient.any() for gradient in lstm_gradients(dtype, dtype(tiny(dtype) / 2**10)))
    assert linear(rows, weight).all()


@flushing
def test_flush_gives_the_same_bits_for_any_number_of_threads(dtype, thread_counts):
    dy, x = around_tiny(14, SIZE, dtype), random(15, SIZE, dtype)
    results = []
    with fastgrad.subnormals("flush"):
        for threads in thread_counts:
            fastgrad.set_num_threads(threads)
            results.append(fastgrad.activation_backward(dy, x, "gelu"))
    assert all((r == results[0]).all() for r in results)
    assert results[0].any() and not results[0][np.abs(results[0]) < tiny(dtype)].any()


# --- the register is the caller's


def each_thread_keeps() -> bool:
    """Say whether all threads of Numba compute with subnormals."""
    import numba

    @numba.njit(parallel=True)
    def halves(a):
        out = np.empty_like(a)
        for i in numba.prange(a.size):
            out[i] = a[i] * np.float32(0.5)
        return out

    return bool(halves(np.full(SIZE, tiny(np.float32))).all())


@flushing
def test_the_register_is_put_back(dtype, size):
    assert numpy_keeps(dtype)
    dy, x = around_tiny(16, size, dtype), random(17, size, dtype)
    with fastgrad.subnormals("flush"):
        fastgrad.activation_backward(dy, x, "gelu")
        assert numpy_keeps(dtype) and each_thread_keeps()
        with pytest.raises(ValueError, match="dy: expected the shape of x"):
            fastgrad.activation_backward(dy[1:], x, "gelu")
        assert numpy_keeps(dtype)
    assert numpy_keeps(dtype) and each_thread_keeps()


@pytest.fixture
def flushing_thread():
    """A thread whose register another library has set to flush."""
    import numba

    @numba.njit
    def put(flush):
        before = fpcontrol.read_control()
        fpcontrol.write_control(before | fpcontrol.FLUSH if flush else before & ~fpcontrol.FLUSH)

    put(True)
    yield
    put(False)


@flushing
def test_keep_keeps_where_the_caller_flushes(flushing_thread, dtype, size):
    dy, x = np.full(size, tiny(dtype)), -np.ones(size, dtype)
    assert not numpy_keeps(dtype)
    dx = fastgrad.activation_backward(dy, x, "leaky_relu", negative_slope=0.5)
    assert not numpy_keeps(dtype)  # and the register is still the caller's
    bits = np.uint32 if dtype is np.float32 else np.uint64
    assert (dx.view(bits) == 1 << (np.finfo(dtype).nmant - 1)).all()


@flushing
def test_the_whole_register_is_put_back():
    import numba

    @numba.njit
    def control():
        return fpcontrol.read_control()

    x = np.ones(100, np.float32)
    before = control()
    with fastgrad.subnormals("flush"):
        fastgrad.activation(x, "gelu")
    assert control() == before


# --- the choice


@flushing
def test_the_policy_of_a_block_and_of_the_process():
    dy, x = np.full(100, tiny(np.float32)), -np.ones(100, np.float32)

    def kept() -> bool:
        return bool(fastgrad.activation_backward(dy, x, "leaky_relu", negative_slope=0.5).any())

    def elsewhere() -> bool:
        found = []
        thread = threading.Thread(target=lambda: found.append(kept()))
        thread.start()
        thread.join()
        return found[0]

    assert fastgrad.get_subnormals() == "keep" and kept() and elsewhere()
    with fastgrad.subnormals("flush"):
        assert fastgrad.get_subnormals() == "flush" and not kept()
        assert elsewhere()  # a block is its own thread's
        with fastgrad.subnormals("keep"):
            assert kept()
        assert not kept()
    assert kept()
    fastgrad.set_subnormals("flush")
    try:
        assert fastgrad.get_subnormals() == "flush" and not kept() and not elsewhere()
        with fastgrad.subnormals("keep"):
            assert kept() and not elsewhere()
    finally:
        fastgrad.set_subnormals("keep")
    with pytest.raises(RuntimeError, match="mine"), fastgrad.subnormals("flush"):
        raise RuntimeError("mine")
    assert kept()


@flushing
def test_python_threads_with_policies_of_their_own():
    dy, x = np.full(SIZE, tiny(np.float32)), -np.ones(SIZE, np.float32)
    counts: dict[str, set[int]] = {"keep": set(), "flush": set()}
    intact = []

    def work(policy: str) -> None:
        with fastgrad.subnormals(policy):
            for _ in range(20):
                dx = fastgrad.activation_backward(dy, x, "leaky_relu", negative_slope=0.5)
                counts[policy].add(int(np.count_nonzero(dx)))
                intact.append(numpy_keeps())

    threads = [threading.Thread(target=work, args=(policy,)) for policy in POLICIES * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {"keep": {SIZE}, "flush": {0}} and intact == [True] * 80


def test_the_reference_ignores_the_policy():
    with fastgrad.backend("reference"), fastgrad.subnormals("flush"):
        dx = fastgrad.activation_backward(
            np.full(100, tiny(np.float32)), -np.ones(100, np.float32), "leaky_relu", negative_slope=0.5
        )
    assert dx.all()


def test_errors(monkeypatch):
    for wrong in ("FLUSH", None, True):
        with pytest.raises(ValueError, match=f"policy: expected one of 'keep', 'flush', got {wrong!r}"):
            fastgrad.set_subnormals(wrong)
        with pytest.raises(ValueError, match="policy: expected one of"), fastgrad.subnormals(wrong):
            pass
    monkeypatch.setattr(fpcontrol, "FLUSH", 0)
    monkeypatch.setattr(fpcontrol, "architecture", lambda: "ppc64le")
    with pytest.raises(NotImplementedError, match="x86-64 and aarch64 processors, and this is ppc64le"):
        fastgrad.set_subnormals("flush")
    assert fastgrad.get_subnormals() == "keep"
    fastgrad.set_subnormals("keep")


@pytest.mark.parametrize(
    ("triple", "expected"),
    [
        ("aarch64-unknown-linux-gnu", ["mrs", "msr", "FPCR"]),
        ("x86_64-unknown-linux-gnu", ["stmxcsr", "ldmxcsr"]),
        ("powerpc64le-unknown-linux-gnu", []),
    ],
    ids=["aarch64", "x86-64", "other"],
)
def test_code_for_other_processors(triple, expected):
    from llvmlite import binding, ir

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this LLVM has no {triple}")
    name = triple.partition("-")[0]
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.IntType(64), [ir.IntType(64)]), "swap")
    builder = ir.IRBuilder(function.append_basic_block())
    before = fpcontrol.emit_read(builder, name)
    fpcontrol.emit_write(builder, name, function.args[0])
    builder.ret(before)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    assembly = target.create_target_machine().emit_assembly(parsed)
    assert all(word.lower() in assembly.lower() for word in expected)
