"""health: one record of every tensor."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from fastgrad.kernels import fpcontrol, health_ref, norm_cpu
from support import layouts, random, read_only
from tolerances import assert_close

import fastgrad
from fastgrad import health

COUNTS = ["nan", "inf", "zero", "subnormal"]
# One block of the kernel has 16384 entries.
SHAPES = [(13, 17), (), (0,), (1,), (64,), (65,), (16384,), (16385,), (2, 3, 5), (0, 3), (300_007,), (4097,)]


def special(dtype) -> dict[str, list[float]]:
    """Return numbers of each kind, at the edges of it."""
    info = np.finfo(dtype)
    below = np.nextafter(info.tiny, dtype(0))
    return {
        "nan": [np.nan, -np.nan, np.array(-1, f"i{info.bits // 8}").view(dtype)[()]],  # the last: every bit is set
        "inf": [np.inf, -np.inf],
        "zero": [0.0, -0.0],
        "subnormal": [info.smallest_subnormal, -info.smallest_subnormal, below, -below, info.tiny / 2],
        "usual": [info.tiny, -info.tiny, info.max, -info.max, 1.0],
    }


def draw(seed: int, shape, dtype, kinds=COUNTS) -> tuple[np.ndarray, dict[str, int]]:
    """Return an array with some entries of each kind, at random places, and how many it has of each."""
    array = random(seed, shape, dtype)
    flat = array.reshape(-1)
    rng = np.random.default_rng(seed)
    which = rng.choice(len(kinds) + 4, flat.size)  # more than half of them usual
    for k, kind in enumerate(kinds):
        places = np.flatnonzero(which == k)
        flat[places] = rng.choice(np.array(special(dtype)[kind], dtype), places.size)
    return array, {kind: int((which == kinds.index(kind)).sum()) if kind in kinds else 0 for kind in COUNTS}


@pytest.mark.parametrize("kinds", [COUNTS, ["zero", "subnormal"], ["inf", "zero"], ["nan"], []], ids="+".join)
def test_counts(backend, dtype, kinds):
    drawn = [draw(k, shape, dtype, kinds) for k, shape in enumerate(SHAPES)]
    arrays = [array for array, _ in drawn]
    h = health(arrays)
    for kind in COUNTS:
        counts = getattr(h, kind)
        assert counts.dtype == np.int64
        assert counts.tolist() == [expected[kind] for _, expected in drawn], kind
    assert h.sizes.tolist() == [a.size for a in arrays]
    for array, tensor in zip(arrays, h, strict=True):
        rest = np.abs(array[~np.isnan(array)])
        assert tensor.max_abs == (rest.max() if rest.size else 0)
    assert h.norm.dtype == h.max_abs.dtype == np.float64
    assert_close(h.norm, health_ref.health([a.astype(np.float64) for a in arrays])[0], "norm")
    exact = [np.linalg.norm(a.astype(np.longdouble).ravel()) for a in arrays]
    assert_close(h.norm, exact, "norm")


@pytest.mark.parametrize("place", [0, 5, 63, 64, 16383, 16384, 20_000, 20_003])
@pytest.mark.parametrize("kind", [*COUNTS, "usual"])
def test_one_entry_of_a_kind(backend, dtype, kind, place):
    """Wherever it lies: at the ends of a vector, of a block, in the last, partial vector."""
    for value in special(dtype)[kind]:
        array = np.full(20_004, 0.5, dtype)
        array[place] = value
        tensor = health(array)[0]
        assert {k: getattr(tensor, k) for k in COUNTS} == {k: int(k == kind) for k in COUNTS}
        assert tensor.max_abs == (0.5 if kind == "nan" else max(0.5, abs(float(value))))
        assert math.isnan(tensor.norm) if kind == "nan" else tensor.norm >= 0.5


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("size", [1, 63, 16384, 100_003])
def test_all_entries_of_a_kind(backend, dtype, kind, size):
    value = special(dtype)[kind][0]
    tensor = health(np.full(size, value, dtype))[0]
    assert {k: getattr(tensor, k) for k in COUNTS} == {k: size * (k == kind) for k in COUNTS}
    assert tensor.max_abs == (0 if kind == "nan" else value)


def test_norms_neither_overflow_nor_underflow(backend, dtype):
    info = np.finfo(dtype)
    values = [info.max / 8, info.tiny, info.smallest_subnormal, 3.5 * info.tiny]
    h = health([np.full(9, value, dtype) for value in values] + [np.full(40_000, info.max, dtype)])
    if backend == "gpu" and dtype is np.float32:
        values[2] = 0.0  # -ftz takes a subnormal number for 0
    for norm, value in zip(h.norm.tolist(), values, strict=False):
        assert norm == pytest.approx(3 * float(value), rel=1e-12, abs=2 * math.ulp(0.0))
    assert h.norm[-1] == (np.inf if dtype is np.float64 else pytest.approx(200 * float(info.max)))


def test_the_norm_is_that_of_global_norm(dtype):
    arrays = [draw(k, shape, dtype, ["zero"])[0] for k, shape in enumerate(SHAPES)]
    arrays += [np.full(99, np.finfo(dtype).max / 16), np.full(99, np.finfo(dtype).tiny)]
    with fastgrad.backend("cpu"):
        np.testing.assert_array_equal(health(arrays).norm, norm_cpu.tensor_norms(arrays, 2.0))


def test_the_same_bits_for_any_number_of_threads(thread_counts, dtype):
    arrays = [draw(k, shape, dtype)[0] for k, shape in enumerate(SHAPES)] + [random(99, 1_000_003, dtype)]
    seen = set()
    with fastgrad.backend("cpu"):
        for threads in [*thread_counts, *thread_counts]:
            fastgrad.set_num_threads(threads)
            seen.add(pickle.dumps([column.tobytes() for column in health(arrays)._all()]))
    assert len(seen) == 1


@pytest.mark.skipif(not fpcontrol.FLUSH, reason="no register known on this processor")
def test_counts_are_right_where_subnormals_are_flushed(dtype):
    arrays = [draw(k, shape, dtype)[0] for k, shape in enumerate(SHAPES)]
    arrays.append(np.full(100, np.finfo(dtype).tiny / 2))
    kept = health(arrays)
    with fastgrad.subnormals("flush"):
        flushed = health(arrays)
    for kind in [*COUNTS, "max_abs"]:
        np.testing.assert_array_equal(getattr(flushed, kind), getattr(kept, kind), err_msg=kind)
    assert flushed["12"].norm == 0 < kept["12"].norm


def test_layouts(backend, dtype):
    array, counts = draw(3, (13, 17), dtype, ["inf", "zero", "subnormal"])
    for name, view in layouts(array).items():
        tensor = health([np.ones(2, dtype), view])[1]
        assert {kind: getattr(tensor, kind) for kind in COUNTS} == counts, name
    assert health(read_only(array))[0] == health((array,))[0] == health(array)[0]
    before = array.copy()
    health(array)
    np.testing.assert_array_equal(array, before)


# --- the result


def test_records_by_position_and_name():
    arrays = [np.array([[0.0, 3.0], [4.0, 0.0]]), np.zeros(0), np.array(-2.0), np.array([5e-324, 1.0, np.nan, np.inf])]
    h = health(arrays, ["w", "empty", "b", "odd"])
    assert len(h) == 4 and h.names == ("w", "empty", "b", "odd")
    assert h["w"] == h[0] == h[-4] == ("w", 4, 5.0, 4.0, 0, 0, 2, 0, None)
    assert h["w"].zero_share == 0.5 and h["w"].subnormal_share == 0
    assert h["empty"] == ("empty", 0, 0.0, 0.0, 0, 0, 0, 0, None) and h["empty"].zero_share == h[1].subnormal_share == 0
    assert h["b"] == h[np.int64(2)] == ("b", 1, 2.0, 2.0, 0, 0, 0, 0, None)
    assert h["odd"][3:] == (np.inf, 1, 1, 0, 1, None) and h["odd"].subnormal_share == 0.25
    assert [t.name for t in h] == list(h.names) and next(iter(h)) == h[0]
    assert type(h[0].zero) is int and type(h[0].norm) is float
    np.testing.assert_array_equal(h.zero_share, [0.5, 0, 0, 0])
    np.testing.assert_array_equal(h.subnormal_share, [0, 0, 0, 0.25])
    assert [t.name for t in health(arrays)] == ["0", "1", "2", "3"] and health(arrays)["2"].norm == 2
    for wrong, error in (("v", KeyError), (4, IndexError), (-5, IndexError), (1.0, TypeError), (slice(2), TypeError)):
        with pytest.raises(error):
            h[wrong]


def test_the_result_cannot_be_changed():
    h = health(np.ones(3))
    with pytest.raises(AttributeError):
        h.norm = np.zeros(1)
    for column in h._all():
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 7


def test_nothing_to_look_at(backend):
    h = health([])
    assert len(h) == 0 and list(h) == [] and h.norm.shape == h.zero.shape == (0,) and h.zero_share.shape == (0,)
    assert health([np.zeros((0, 3), np.float32)])[0] == ("0", 0, 0.0, 0.0, 0, 0, 0, 0, None)


def test_the_table():
    zeros = np.zeros(20_000)
    zeros[0], zeros[1] = 1e-310, 7.0
    dense = np.full((300, 400), 0.25)
    dense[3, 3], dense[:2, 0] = 0.0, np.nan
    h = health([dense, zeros], ["embedding.weight", "b"])
    assert str(h) == (
        "tensor            entries  norm  max abs  NaN  Inf     zero  subnormal\n"
        "embedding.weight  120,000   nan     0.25    2    -  <0.01 %          -\n"
        "b                  20,000     7        7    -    -  99.99 %    <0.01 %"
    )
    assert repr(h) == "<Health of 2 tensors>"
    assert str(health([])).startswith("tensor  entries")


def test_errors():
    a, b = np.ones(3), np.ones(3, np.float32)

    def error(exception, match, *args):
        with pytest.raises(exception, match=match):
            health(*args)

    error(TypeError, r"arrays\[1\] is float32 but arrays\[0\] is float64", [a, b])
    error(TypeError, r"arrays\[1\]: expected a numpy.ndarray or cupy.ndarray, got None", [a, None])
    error(TypeError, "arrays: expected an array or a list of arrays, got dict", {"a": a})
    error(TypeError, r"arrays\[0\]: expected float32 or float64, got int64", np.arange(3))
    error(ValueError, "names: expected one for each of 2 arrays, got 1", [a, a], ["w"])
    error(ValueError, "names: 'w' stands there more than once", [a, a, a], ["v", "w", "w"])
    error(TypeError, r"names\[1\]: expected a string, got int", [a, a], ["w", 1])
    error(TypeError, "names: expected a list of strings, got str", [a], "w")
    error(TypeError, "names: expected a list of strings, got dict", [a], {"w": 1})
