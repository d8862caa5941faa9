"""attention and attention_backward: against float64, torch and central differences, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from backends import DEVICES
from fastgrad.kernels import attention_ref
from support import layouts, oracle, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import attention, attention_backward
from fastgrad.testing import gradcheck

NAMES = ("y", "dq", "dk", "dv")
# (B, H, T, S, D): of one, of primes, one past a tile of 12, 32, 64 and 96, none of it a multiple of a vector.
SHAPES = [
    (1, 1, 1, 1, 1), (2, 3, 7, 7, 5), (1, 2, 13, 29, 33), (2, 1, 97, 97, 16), (1, 2, 65, 20, 64), (1, 1, 33, 133, 8),
]  # fmt: skip
LONG = (1, 1, 401, 787, 17)  # two blocks of keys and more on the CPU
OPTIONS = [{}, {"causal": True}, {"lengths": True}, {"causal": True, "lengths": True}]
OPTION_IDS = ["all", "causal", "lengths", "both"]


def draw(shape, dtype, seed=0):
    B, H, T, S, D = shape
    return tuple(
        random(seed + n, (B, H, rows, D), dtype) for n, rows in enumerate((T, T, S, S), start=1)
    )  # dy, q, k, v


def options_for(shape, options):
    B, S = shape[0], shape[3]
    more = {"lengths": [S // 2, 0, S][-B:]} if options.get("lengths") else {}
    return options | more


def both(dy, q, k, v, **options):
    y, saved = attention(q, k, v, **options)
    return y, *attention_backward(dy, saved)


def assert_all_close(results, expected, operation, label=""):
    for name, result, wanted in zip(NAMES, results, expected, strict=True):
        assert_close(result, wanted, operation, magnitude="largest", label=f"{label} {name}")


@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_IDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(backend, dtype, shape, options):
    arrays, options = draw(shape, dtype), options_for(shape, options)
    results = both(*arrays, **options)
    assert all(result.dtype == dtype for result in results)
    assert_all_close(results, oracle(both, *arrays, **options), "product")


@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_IDS)
def test_several_blocks_of_keys(cpu_backend, dtype, options):
    arrays, options = draw(LONG, dtype), options_for(LONG, options)
    assert_all_close(both(*arrays, **options), oracle(both, *arrays, **options), "product")


@pytest.mark.parametrize("shape", [(0, 2, 3, 3, 4), (2, 0, 3, 3, 4), (2, 2, 0, 3, 4), (2, 2, 3, 0, 4), (1, 1, 0, 0, 1)])
def test_nothing_to_attend_to_gives_zeros(backend, dtype, shape):
    dy, q, k, v = draw(shape, dtype)
    results = both(dy, q, k, v)
    for result, like in zip(results, (q, q, k, v), strict=True):
        np.testing.assert_array_equal(result, np.zeros_like(like))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_torch(backend, dtype, shape, causal):
    torch = pytest.importorskip("torch")
    dy, *arrays = draw(shape, dtype)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)
    expected.backward(torch.tensor(dy))
    gradients = [t.grad.numpy() for t in tensors]
    assert_all_close(both(dy, *arrays, causal=causal), (expected.detach().numpy(), *gradients), "torch")


@pytest.mark.parametrize("options", [*OPTIONS, {"scale": 0.3}, {"dropout": 0.4, "seed": 5, "offset": 6}])
def test_central_differences(cpu_backend, options):
    shape = (2, 1, 5, 4, 3)
    _, *arrays = draw(shape, np.float64)
    options = options_for(shape, options)
    gradcheck(
        lambda *inputs: attention(*inputs, **options)[0], arrays,
        lambda dy, *inputs: attention_backward(dy, attention(*inputs, **options)[1]),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 2, 13, 70, 5), (1, 1, 30, 130, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_takes_the_numbers_of_dropout(backend, dtype, shape, causal):
    """With values that are unit vectors, y is the matrix of weights itself."""
    B, H, T, S, _ = shape
    _, q, k, _ = draw((B, H, T, S, S), dtype)
    v = np.broadcast_to(np.eye(S, dtype=dtype), (B, H, S, S)).copy()
    weights = attention(q, k, v, causal=causal)[0]
    dropped = attention(q, k, v, causal=causal, dropout=0.3, seed=7, offset=9)[0]
    padded = np.zeros((B, H, T, -(-S // 64) * 64), dtype)
    padded[..., :S] = 1
    kept = fastgrad.dropout(padded, 0.3, 7, 9)[..., :S]
    assert 0.5 < np.mean(kept > 0) < 0.9
    assert_close(dropped, weights.astype(np.float64) * kept, "product", magnitude="largest")


@pytest.mark.parametrize("options", [{}, {"causal": True, "lengths": True}])
def test_dropout_against_float64(backend, dtype, options):
    shape = (2, 2, 29, 70, 9)
    arrays = draw(shape, dtype)
    options = options_for(shape, options) | {"dropout": 0.25, "seed": 2**63 + 1, "offset": 3}
    assert_all_close(both(*arrays, **options), oracle(both, *arrays, **options), "product")
    for result in both(*arrays, dropout=1.0):
        assert not result.any()


# --- NaN, Inf and large numbers


@pytest.mark.parametrize("place", [0, 14, 40])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_nan_stays_with_those_who_see_it(backend, dtype, which, place):
    """q: its row. k, v: the rows that see them. dy: what flows back from its row."""
    arrays = list(draw((2, 2, 41, 41, 6), dtype))
    clean = both(*arrays, causal=True)
    arrays[which][1, 0, place, 2] = np.nan
    y, dq, dk, dv = both(*arrays, causal=True)
    rows = np.zeros((2, 2, 41), bool)
    rows[1, 0, place:] = True
    if which == 1:
        rows[1, 0, place + 1 :] = False
    assert np.isnan(y[rows][:, 2]).all()
    np.testing.assert_array_equal(y[~rows], clean[0][~rows])
    np.testing.assert_array_equal(dq[~rows], clean[1][~rows])
    others = np.ones((2, 2), bool)
    others[1, 0] = False
    for result, before in ((dk, clean[2]), (dv, clean[3])):
        np.testing.assert_array_equal(result[others], before[others])
        if which == 1:  # keys that no NaN row sees
            np.testing.assert_array_equal(result[1, 0, place + 1 :], before[1, 0, place + 1 :])
            assert np.isnan(result[1, 0, : place + 1]).all()


@pytest.mark.parametrize("place", [0, 14, 40])
def test_nan_in_dy_reaches_the_keys_that_its_row_sees(backend, dtype, place):
    arrays = list(draw((1, 2, 41, 41, 6), dtype))
    clean = both(*arrays, causal=True)
    arrays[0][0, 1, place, 3] = np.nan
    _, dq, dk, dv = both(*arrays, causal=True)
    assert np.isnan(dq[0, 1, place]).all() and np.isnan(dk[0, 1, : place + 1]).all()
    assert np.isnan(dv[0, 1, : place + 1, 3]).all()
    np.testing.assert_array_equal(dk[0, 1, place + 1 :], clean[2][0, 1, place + 1 :])
    np.testing.assert_array_equal(dv[0, 1, place + 1 :], clean[3][0, 1, place + 1 :])
    rest = np.arange(41) != place
    np.testing.assert_array_equal(dq[0, 1, rest], clean[1][0, 1, rest])


def test_padding_is_not_read(backend, dtype):
    dy, q, k, v = draw((2, 2, 20, 30, 6), dtype)
    expected = both(dy, q, k, v, lengths=[17, 0])
    for array in (k, v):
        array[0, :, 17:] = np.nan
        array[1] = np.inf
    results = both(dy, q, k, v, lengths=[17, 0])
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)
    assert not results[0][1].any() and not any(r[1].any() for r in results[1:])
    assert not results[2][0, :, 17:].any() and not results[3][0, :, 17:].any()


def test_infinite_scores(backend, dtype):
    q, k, v = np.zeros((1, 1, 4, 2), dtype), np.ones((1, 1, 3, 2), dtype), random(1, (1, 1, 3, 2), dtype)
    k[0, 0, 1] = -1, 1
    q[0, 0, 0] = np.inf, 0  # scores NaN: inf * 0 has no value ...
    k[..., 1] = 0.5
    q[0, 0, 0] = np.inf, np.inf  # ... but inf, NaN, inf
    q[0, 0, 1] = -np.inf, 1  # -inf, inf, -inf
    k[0, 0, :, 0] = 1, 2, 3
    q[0, 0, 2] = -np.inf, 0  # -inf for all
    y, _ = attention(q, k, v)
    assert np.isnan(y[0, 0, :3]).all() and np.isfinite(y[0, 0, 3]).all()
    large = 1e30 if dtype is np.float32 else 1e300
    q[0, 0, 2], k[0, 0, :, 0] = (-large, 0), (large, 0, large)  # scores -inf by overflow, but for one of 0
    y, saved = attention(q, k, v)
    assert_close(y[0, 0, 2], v[0, 0, 1], "exact")
    assert np.isfinite(attention_backward(np.ones_like(y), saved).dq[0, 0, 3]).all()


def test_a_score_of_minus_inf_has_no_weight_also_in_the_first_block_of_keys(backend, dtype):
    S = 400 if backend not in DEVICES else 70
    q, k, v = np.ones((1, 1, 1, 1), dtype), np.full((1, 1, S, 1), -np.inf, dtype), random(1, (1, 1, S, 1), dtype)
    k[0, 0, -1] = -3
    y, _ = attention(q, k, v)
    assert_close(y[0, 0, 0], v[0, 0, -1], "exact")
    k[...] = -np.inf
    assert np.isnan(attention(q, k, v)[0]).all()


@pytest.mark.parametrize("shift", [-80.0, 80.0, 3000.0])
def test_large_scores_neither_overflow_nor_lose_their_differences(backend, dtype, shift):
    """A feature that is the same for all keys moves all scores alike, and the weights not at all."""
    dy, q, k, v = draw((1, 1, 9, 40, 5), dtype)
    q[..., 0], k[..., 0] = 1, 0
    q[..., 1:], k[..., 1:] = (np.round(a[..., 1:] * 8) / 8 for a in (q, k))  # scores are exact
    expected = both(dy, q, k, v, scale=1.0)
    k[..., 0] = shift
    results = both(dy, q, k, v, scale=1.0)
    for name, result, wanted in zip(NAMES, results, expected, strict=True):
        if name == "dq":  # the gradient of the feature is that of the shift: 0, by terms as large as it
            result, wanted = result[..., 1:], wanted[..., 1:]
        assert_close(result, wanted, "product", magnitude="largest", label=name)


# --- arrays


def assert_same(backend, result, expected, label):
    if backend in DEVICES:
        assert_close(result, expected, "product", magnitude="largest", label=label)
    else:
        np.testing.assert_array_equal(result, expected, err_msg=label)


def test_layouts(backend, dtype):
    dy, q, k, v = draw((2, 3, 13, 17, 5), dtype)
    expected = both(dy, q, k, v, causal=True)
    for name in layouts(q):
        views = [layouts(a)[name] for a in (dy, q, k, v)]
        for result, wanted in zip(both(*views, causal=True), expected, strict=True):
            assert_same(backend, result, wanted, name)
    _, saved = attention(q, k, v, causal=True)
    for name in layouts(q):
        view = layouts(np.zeros_like(q))[name]
        assert attention(q, k, v, causal=True, out=view)[0] is view
        assert_same(backend, view, expected[0], name)
        outs = tuple(layouts(np.zeros_like(a))[name] for a in (q, k, v))
        results = attention_backward(dy, saved, out=outs)
        for result, out, wanted in zip(results, outs, expected[1:], strict=True):
            assert result is out
            assert_same(backend, result, wanted, name)


# Features of a lane: 1, 2, 4 and 8, of whole vectors or with a tail, and of more than a slab.
@pytest.mark.parametrize("D", [6, 32, 36, 131, 260])
def test_rows_that_begin_anywhere(backend, dtype, D):
    """On 16 bytes or beside them, with rows that lie apart by whole vectors or not: the same bits."""
    shape = (1, 2, 9, 35, D)
    arrays = draw(shape, dtype)
    expected = both(*arrays, causal=True)

    def placed(array, offset, apart):
        room = np.zeros(offset + array[..., 0].size * (D + apart) + 8, dtype)
        start = -room.ctypes.data % 16 // room.itemsize + offset
        view = room[start : start + array[..., 0].size * (D + apart)].reshape(*array.shape[:3], D + apart)[..., :D]
        view[...] = array
        return view

    for offset, apart in ((0, 4), (1, 0), (0, 1), (3, 4)):
        views = [placed(a, offset, apart) for a in arrays]
        outs = [placed(np.full_like(a, np.nan), offset, apart) for a in (arrays[1], *arrays[1:])]
        _, saved = attention(*views[1:], causal=True, out=outs[0])
        attention_backward(views[0], saved, out=tuple(outs[1:]))
        for result, wanted in zip(outs, expected, strict=True):
            np.testing.assert_array_equal(result, wanted, err_msg=f"{offset} {apart}")


@pytest.mark.parametrize("time_major", [False, True])
def test_views_of_one_projection(backend, dtype, time_major):
    """Heads are read where a projection (B, T, 3 H D) or (T, B, 3 H D) has them, and gradients written likewise."""
    B, H, T, D = 2, 3, 14, 4
    shape = (T, B, 3 * H * D) if time_major else (B, T, 3 * H * D)

    def heads(array, count):
        array = array.swapaxes(0, 1) if time_major else array
        return [a.reshape(B, T, H, D).swapaxes(1, 2) for a in np.split(array, count, axis=-1)]

    projected, joined, dprojected = (
        random(1, shape, dtype),
        np.zeros((*shape[:2], H * D), dtype),
        np.zeros(shape, dtype),
    )
    dy = random(2, (B, H, T, D), dtype)
    expected = both(dy, *(np.ascontiguousarray(a) for a in heads(projected, 3)))
    views, out, gradients = heads(projected, 3), heads(joined, 1)[0], heads(dprojected, 3)
    assert all(np.shares_memory(a, dprojected) for a in gradients)
    y, saved = attention(*views, out=out)
    assert y is out
    attention_backward(dy, saved, out=tuple(gradients))
    for result, wanted in zip((out, *gradients), expected, strict=True):
        assert_same(backend, result, wanted, "views")
    if backend == "cpu":
        assert saved.q is views[0] and saved.y is out  # nothing was copied


@pytest.mark.parametrize("shape", [(3, 2, 101, 101, 9), (1, 1, 1000, 130, 6)])
@pytest.mark.parametrize("causal", [False, True])
def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype, shape, causal):
    arrays, seen = draw(shape, dtype), set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            results = both(*arrays, causal=causal, dropout=0.1)
            seen.add(b"".join(result.tobytes() for result in results))
    assert len(seen) == 1


def test_a_row_does_not_depend_on_those_beside_it(dtype):
    """Of a causal sequence, a longer one repeats the bits of a shorter one."""
    _, q, k, v = draw((1, 1, 130, 130, 7), dtype)
    with fastgrad.backend("cpu"):
        whole = attention(q, k, v, causal=True)[0]
        for T in (1, 12, 13, 96, 97, 129):
            part = attention(q[:, :, :T], k[:, :, :T], v[:, :, :T], causal=True)[0]
            np.testing.assert_array_equal(part, whole[:, :, :T])


def test_no_matrix_of_all_scores_is_ever_in_memory():
    import tracemalloc

    dy, q, k, v = draw((4, 1, 2048, 2048, 8), np.float32)
    with fastgrad.backend("cpu"):
        both(*(a[:, :, :50] for a in (dy, q, k, v)))  # compiles
        tracemalloc.start()
        both(dy, q, k, v)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * 2048 * 2048 * 4 / 8


def test_on_a_device_what_is_saved_stays_there(on_device, dtype):
    dy, q, k, v = draw((1, 2, 9, 9, 4), dtype)
    y, saved = on_device(attention)(q, k, v, causal=True, lengths=[7])
    expected = oracle(both, dy, q, k, v, causal=True, lengths=[7])
    assert_all_close((y, *on_device(attention_backward)(dy, saved)), expected, "product")


def test_errors():
    dy, q, k, v = draw((2, 3, 4, 5, 6), np.float32)
    y, saved = attention(q, k, v)

    def error(exception, match, function, *args, **kwargs):
        with pytest.raises(exception, match=match):
            function(*args, **kwargs)

    error(ValueError, r"q: expected shape \(B, H, T, D\), got \(3, 4, 6\)", attention, q[0], k, v)
    error(ValueError, r"q: expected at least one feature", attention, q[..., :0], k[..., :0], v[..., :0])
    error(ValueError, r"k: expected shape \(2, 3, 5, 6\), got \(2, 3, 5, 5\)", attention, q, k[..., :5], v)
    error(ValueError, r"v: expected shape \(2, 3, 5, 6\), got \(2, 3, 4, 6\)", attention, q, k, v[:, :, :4])
    error(TypeError, "v is float64 but q is float32", attention, q, k, v.astype(np.float64))
    error(TypeError, "q: expected float32 or float64, got int64", attention, q.astype(int), k, v)
    error(TypeError, "k: expected a numpy.ndarray", attention, q, k.tolist(), v)
    error(ValueError, r"lengths: expected shape \(2,\), got \(3,\)", attention, q, k, v, lengths=[1, 2, 3])
    error(
        ValueError, r"expected entries from 0 to 5 \(the number of keys S\), got 6", attention, q, k, v, lengths=[6, 0]
    )
    error(ValueError, "dropout: expected", attention, q, k, v, dropout=1.5)
    error(ValueError, "seed: expected 0 to", attention, q, k, v, dropout=0.5, seed=-1)
    error(ValueError, "scale: expected a finite number", attention, q, k, v, scale=np.inf)
    error(ValueError, "out and q overlap", attention, q, k, v, out=q)
    error(ValueError, "out: the array is read-only", attention, q, k, v, out=read_only(q))
    error(ValueError, r"dy: expected shape \(2, 3, 4, 6\), got \(2, 3, 4\)", attention_backward, dy[..., 0], saved)
    error(TypeError, r"out: expected three arrays \(dq, dk, dv\), got 2 entries", attention_backward, dy, saved,
          out=(dy, dy))  # fmt: skip
    error(ValueError, r"out\[2\] and out\[1\] overlap", attention_backward, dy, saved,
          out=(None, *[np.empty_like(k)] * 2))  # fmt: skip
    error(ValueError, r"out\[0\] and y overlap", attention_backward, dy, saved, out=(y, None, None))


def test_a_planted_fault_is_caught(monkeypatch):
    arrays = draw((1, 2, 5, 6, 3), np.float64)
    expected = oracle(both, *arrays, causal=True)
    original = attention_ref.attention_backward

    def without_the_sum(dy, q, k, v, y, *rest):
        original(dy, q, k, v, np.zeros_like(y), *rest)

    monkeypatch.setattr(attention_ref, "attention_backward", without_the_sum)
    with pytest.raises(AssertionError):
        assert_all_close(oracle(both, *arrays, causal=True), expected, "product")
