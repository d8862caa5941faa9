"""softmax_cross_entropy."""

from __future__ import annotations

import numpy as np
import pytest
from fastgrad.kernels import cross_entropy_gpu, cross_entropy_ref
from support import layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import softmax_cross_entropy
from fastgrad.testing import gradcheck

SHAPES = [(1, 1), (1, 7), (13, 1), (7, 2), (64, 97), (33, 1000), (4097, 5), (3, 4099), (2, 3, 5), (6,)]


def draw(shape, dtype, seed=0):
    targets = np.random.default_rng(seed).integers(0, shape[-1], shape[:-1])
    return random(seed + 1, shape, dtype, scale=3.0), targets


def rows(shape):
    return int(np.prod(shape[:-1]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(backend, dtype, shape):
    logits, targets = draw(shape, dtype)
    loss, gradient = softmax_cross_entropy(logits, targets)
    assert isinstance(loss, np.ndarray) and loss.shape == () and loss.dtype == gradient.dtype == dtype
    expected_loss, expected = oracle(softmax_cross_entropy, logits, targets)
    assert_close(loss, expected_loss, "reduction", magnitude=np.abs(logits).max())
    # (p - 1) / M loses digits where p is close to 1, and exp(z - max) where z - max is large.
    assert_close(gradient, expected, "product", magnitude=(np.abs(expected) * 3 + 0.1 / rows(shape)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_torch(backend, shape):
    torch = pytest.importorskip("torch")
    logits, targets = draw(shape, np.float64)
    t = torch.tensor(logits.reshape(-1, shape[-1]), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(t, torch.tensor(targets.reshape(-1)))
    loss.backward()
    actual, gradient = softmax_cross_entropy(logits, targets)
    assert_close(actual, loss.item(), "torch", magnitude=1.0)
    assert_close(gradient, t.grad.numpy().reshape(shape), "torch", magnitude=1 / rows(shape))


def assert_differences_agree(logits, targets, **options):
    gradcheck(
        lambda z: softmax_cross_entropy(z, targets, **options)[0], logits,
        lambda dloss, z: dloss * softmax_cross_entropy(z, targets, **options)[1],
    )  # fmt: skip


def test_central_differences(backend):
    logits, targets = draw((3, 5), np.float64)
    assert_differences_agree(logits, targets)


def test_large_logits_do_not_overflow(backend, dtype):
    logits = np.array([[1e4, -1e4, 0.0], [-1e30, 1e30, 1e30], [-np.inf, 0.0, 0.0]], dtype)
    loss, gradient = softmax_cross_entropy(logits, np.array([0, 1, 2]))
    assert_close(loss, 2 * np.log(2) / 3, "transcendental")
    assert_close(gradient, np.array([[0, 0, 0], [0, -0.5, 0.5], [0, 0.5, -0.5]]) / 3, "transcendental")
    loss, gradient = softmax_cross_entropy(logits[:1], np.array([1]))
    assert_close(loss, 2e4, "transcendental")
    assert_close(gradient, [[1, -1, 0]], "transcendental")


@pytest.mark.parametrize("V", [3, 97])
def test_nan_and_inf(backend, dtype, V):
    for bad in (np.nan, np.inf):
        logits, targets = draw((5, V), dtype)
        clean = softmax_cross_entropy(logits, targets)[1]
        for place in (0, V - 1):
            dirty = logits.copy()
            dirty[2, place] = bad
            loss, gradient = softmax_cross_entropy(dirty, targets)
            assert np.isnan(loss) and np.isnan(gradient[2]).any()
            others = [0, 1, 3, 4]
            np.testing.assert_array_equal(gradient[others], clean[others])
    masked = np.array([[-np.inf, 1.0, 2.0]], dtype)
    assert softmax_cross_entropy(masked, np.array([0]))[0] == np.inf
    assert np.isnan(softmax_cross_entropy(np.full((1, 3), -np.inf, dtype), np.array([0]))[0])


def test_no_rows(backend, dtype):
    for shape in ((0, 5), (3, 0, 5)):
        loss, gradient = softmax_cross_entropy(np.zeros(shape, dtype), np.zeros(shape[:-1], np.int64))
        assert np.isnan(loss) and gradient.shape == shape and gradient.dtype == dtype


def test_layouts_and_aliases(backend, dtype):
    logits, targets = draw((13, 17), dtype)
    loss, gradient = softmax_cross_entropy(logits, targets)
    for name, view in layouts(logits).items():
        actual_loss, actual = softmax_cross_entropy(view, targets, out=view)
        assert actual is view and actual_loss == loss
        np.testing.assert_array_equal(view, gradient, err_msg=name)
    for kind in (np.int8, np.uint8, np.int32, np.uint64):
        np.testing.assert_array_equal(softmax_cross_entropy(read_only(logits), targets.astype(kind))[1], gradient)
    np.testing.assert_array_equal(softmax_cross_entropy(logits, np.repeat(targets, 2)[::2])[1], gradient)


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    logits, targets = draw((1031, 97), dtype)
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            loss, gradient = softmax_cross_entropy(logits, targets)
            seen.add(loss.tobytes() + gradient.tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("skips", [(0, 0), (1, 1), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1), (65, 2), (9, 3), (7, 31), (5, 64), (3, 65), (4, 97), (3, 512), (2, 1000), (2, 1023)], ids=str
)
def test_a_device_has_the_gradient_of_the_cpu_for_short_rows(on_device, dtype, shape, skips):
    """Bit for bit, as the order of the sum is the same; a long row has one of its own."""
    logits, targets = draw(shape, dtype)
    with fastgrad.backend("cpu"):
        loss, gradient = softmax_cross_entropy(logits, targets)
    places = [np.zeros(logits.size + 4, dtype)[skip : skip + logits.size].reshape(shape) for skip in skips]
    places[0][...] = logits
    actual, _ = on_device(softmax_cross_entropy)(places[0], targets, out=places[1])
    if shape[1] * logits.itemsize <= 4096:
        np.testing.assert_array_equal(places[1], gradient)
    else:
        assert_close(places[1], gradient, "product", magnitude="largest")
    assert_close(actual, loss, "reduction", magnitude=max(1, np.abs(logits).max()))


@pytest.mark.parametrize("skips", [(0, 0), (1, 1), (3, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("V", [1025, 1028, 2051])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "read twice"])
def test_long_rows_on_a_device(on_device, monkeypatch, dtype, V, kept, skips):
    """Rows in shared memory and rows that do not fit, from any address; masked classes first, where sums start."""
    if not kept:
        monkeypatch.setattr(cross_entropy_gpu, "STATIC_SHARED", 1 << 30)
    shape = (5, V)
    logits, targets = draw(shape, dtype)
    logits[1, :700] = -np.inf
    logits[2, -700:] *= 1e4
    targets[:3] = V - 1, V - 2, V - 3
    expected_loss, expected = oracle(softmax_cross_entropy, logits, targets)
    places = [np.zeros(logits.size + 4, dtype)[skip : skip + logits.size].reshape(shape) for skip in skips]
    places[0][...] = logits
    loss, _ = on_device(softmax_cross_entropy)(places[0], targets, out=places[1])
    assert_close(loss, expected_loss, "reduction", magnitude=np.abs(logits[np.isfinite(logits)]).max())
    assert_close(places[1], expected, "product", magnitude=(np.abs(expected) * 3 + 0.02))
    again, _ = on_device(softmax_cross_entropy)(places[0], targets, out=places[0])
    np.testing.assert_array_equal(again, loss)
    if (skips[0] - skips[1]) % 4 == 0:
        np.testing.assert_array_equal(places[0], places[1])
    for bad in (np.nan, np.inf):
        for place in (0, V // 2, V - 1):
            dirty = logits.copy()
            dirty[0, place] = bad
            loss, gradient = on_device(softmax_cross_entropy)(dirty, targets)
            assert np.isnan(loss) and np.isnan(gradient[0]).any() and not np.isnan(gradient[1:]).any()
    loss, gradient = on_device(softmax_cross_entropy)(np.full_like(logits, -np.inf), targets)
    assert np.isnan(loss) and np.isnan(gradient).all()


@pytest.mark.parametrize("V", [3, 97, 1031])
@pytest.mark.parametrize("bad", [-1, None, -(2**40), 2**40])
def test_a_target_out_of_range_on_a_device(on_device, dtype, V, bad):
    logits, targets = draw((5, V), dtype)
    clean = on_device(softmax_cross_entropy)(logits, targets)[1]
    targets[2] = V if bad is None else bad
    loss, gradient = on_device(softmax_cross_entropy)(logits, targets)
    assert np.isnan(loss) and np.isnan(gradient[2]).all()
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(gradient[others], clean[others])


def test_errors():
    logits, targets = draw((4, 3), np.float32)

    def error(exception, match, *args, **kwargs):
        with pytest.raises(exception, match=match):
            softmax_cross_entropy(*args, **kwargs)

    error(ValueError, r"targets: expected shape \(4,\), got \(4, 1\)", logits, targets[:, None])
    error(TypeError, "targets: expected integers, got float64", logits, targets.astype(float))
    error(TypeError, "targets: expected integers, got bool", logits, targets.astype(bool))
    error(TypeError, "targets: expected a numpy.ndarray or cupy.ndarray, got list", logits, targets.tolist())
    error(ValueError, r"targets: expected entries from 0 to 2 .*, got 3", logits, targets * 0 + 3)
    error(ValueError, r"targets: expected entries from 0 to 2 .*, got -1", logits, targets * 0 - 1)
    error(ValueError, r"logits: expected shape \(..., V\) with at least one class", logits[:, :0], targets)
    error(ValueError, r"logits: expected shape \(..., V\)", np.zeros((), np.float32), targets)
    error(TypeError, "logits: expected float32 or float64, got int64", targets[:, None], targets)
    error(TypeError, "out is float64 but logits is float32", logits, targets, out=logits.astype(float))
    error(ValueError, "out: the array is read-only", logits, targets, out=read_only(logits))
    base = random(3, 30, np.float32)
    error(ValueError, "out and logits overlap", base[:12].reshape(4, 3), targets, out=base[1:13].reshape(4, 3))


@pytest.mark.parametrize("fault", ["mean", "target", "loss"])
def test_planted_faults_are_caught(monkeypatch, fault):
    logits, targets = draw((5, 7), np.float64)
    expected_loss, expected = oracle(softmax_cross_entropy, logits, targets)
    original = cross_entropy_ref.cross_entropy

    def wrong(z, t, dz, *more):
        loss = original(z, (t + 1) % 7 if fault == "target" else t, dz)
        if fault == "mean":
            dz *= len(t)
        return loss + (1e-6 if fault == "loss" else 0)

    monkeypatch.setattr(cross_entropy_ref, "cross_entropy", wrong)
    loss, gradient = oracle(softmax_cross_entropy, logits, targets)
    with pytest.raises(AssertionError):
        assert_close(loss, expected_loss, "reduction", magnitude=np.abs(logits).max())
        assert_close(gradient, expected, "product", magnitude="largest")


# --- label smoothing and ignored targets

OPTIONS = [
    {"label_smoothing": 0.1},
    {"ignore_index": -100},
    {"ignore_index": 0},
    {"label_smoothing": 0.3, "ignore_index": -1},
    {"label_smoothing": 1.0},
]


def with_ignored(shape, dtype, options, seed=0):
    logits, targets = draw(shape, dtype, seed)
    if "ignore_index" in options and targets.size > 1:
        targets.reshape(-1)[1::3] = options["ignore_index"]
    return logits, targets


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES[1:8], (5, 1031)], ids=str)
def test_options_against_torch(backend, dtype, shape, options):
    torch = pytest.importorskip("torch")
    logits, targets = with_ignored(shape, dtype, options)
    t = torch.tensor(logits.reshape(-1, shape[-1]).astype(np.float64), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(t, torch.tensor(targets.reshape(-1)), **options)
    expected.backward()
    loss, gradient = softmax_cross_entropy(logits, targets, **options)
    assert loss.dtype == gradient.dtype == dtype
    assert_close(loss, expected.item(), "reduction", magnitude=np.abs(logits).max())
    wanted = t.grad.numpy().reshape(shape)
    count = max(1, np.sum(targets != options.get("ignore_index")))
    assert_close(gradient, wanted, "product", magnitude=np.abs(wanted) * 3 + 0.2 / count)
    if "ignore_index" in options:
        assert (gradient[targets == options["ignore_index"]] == 0).all()


def test_options_by_central_differences(backend):
    logits, targets = draw((4, 5), np.float64)
    targets[:] = 1, 3, 0, 4
    assert_differences_agree(logits, targets, label_smoothing=0.2, ignore_index=3)


@pytest.mark.parametrize("V", [5, 1031])
def test_ignored_rows_have_no_say(backend, dtype, V):
    logits, targets = draw((4, V), dtype)
    expected_loss, expected = softmax_cross_entropy(logits[1:3].copy(), targets[1:3].copy())
    logits[0], logits[3, 0] = np.nan, np.inf
    targets[[0, 3]] = -100
    loss, gradient = softmax_cross_entropy(logits, targets, ignore_index=-100)
    assert_close(loss, expected_loss, "reduction")
    # A long row of a device is added up in an order that depends on where it lies.
    assert_close(gradient[1:3], expected, "product", magnitude=np.abs(expected))
    assert (gradient[[0, 3]] == 0).all()
    targets[:] = -100
    loss, gradient = softmax_cross_entropy(logits, targets, ignore_index=-100)
    assert np.isnan(loss) and (gradient == 0).all()


def test_errors_of_options():
    logits, targets = draw((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"label_smoothing: expected a finite number >= 0 and <= 1, got 1.5"):
        softmax_cross_entropy(logits, targets, label_smoothing=1.5)
    with pytest.raises(ValueError, match=r"targets: expected entries from 0 to 2 .*, got -2"):
        softmax_cross_entropy(logits, np.array([0, -1, -2, 1]), ignore_index=-1)
