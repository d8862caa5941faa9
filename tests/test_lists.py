"""The compiled check of lists of arrays and its tables: nothing that changed between two calls goes unseen.

Each case calls once, so that a table is kept, changes one thing, and calls again. The verdict, to the letter of the
error, is that of the check in Python, which the reference kernels go through and which keeps nothing.
"""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import weakref

import numpy as np
import pytest
from fastgrad.kernels import lists
from support import random

import fastgrad
from fastgrad._tensor_lists import TensorGroups

SHAPES = [(4, 6), (7,), (), (0, 3), (2, 3, 4), (24,), (1, 24)]
NAMES = ("params", "grads", "state")


def draw(dtype=np.float32):
    return [[random(100 * k + j, shape, dtype) for j, shape in enumerate(SHAPES)] for k in range(len(NAMES))]


@pytest.fixture
def one_plan(monkeypatch):
    """Every call with lists of one layout gets the table of the call before."""
    monkeypatch.setattr(lists, "PLANS_KEPT", 1)
    monkeypatch.setattr(lists, "_kept", type(lists._kept)())


def check(arrays):
    return TensorGroups("params! grads state!", *arrays)


def verdict(arrays):
    try:
        groups = check(arrays)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    groups.done()
    return "fine"


def assert_seen(arrays, expected=None):
    """The compiled check says what the one in Python says, and tables what is there now."""
    with fastgrad.backend("reference"):
        honest = verdict(arrays)
    assert verdict(arrays) == honest
    if expected == "planned":
        assert honest == "fine" and planned(arrays)
    elif expected:
        assert expected in honest
    if honest == "fine":
        groups = check(arrays)
        if groups._plan is not None:
            table = groups.lists[0].table
            addresses = [a.__array_interface__["data"][0] for entries in arrays for a in entries]
            assert table.addresses.tolist() == addresses
            assert table.sizes.tolist() == [a.size for a in arrays[0]]
            assert np.diff(table.starts).tolist() == [-(-a.size // lists.BLOCK) for a in arrays[0]]
            assert (table.blocks, table.elements) == (table.starts[-1], table.sizes.sum())
            assert table.dtype == arrays[0][0].dtype
            assert all(a.flags.c_contiguous and a.flags.aligned for entries in arrays for a in entries)
            assert [list(map(id, row)) for row in groups.lists] == [list(map(id, entries)) for entries in arrays]
        groups.done()


def planned(arrays):
    """Whether the compiled check passes these lists by itself."""
    groups = check(arrays)
    groups.done()
    return groups._plan is not None


def reallocate(a):
    a[1][4] = a[1][4].copy()


def reallocate_all(a):
    a[1][:] = [g.copy() for g in a[1]]


def resize(a):
    a[1][1].resize(9, refcheck=False)


def resize_everywhere(a):
    for entries in a:
        entries[1].resize(70_000, refcheck=False)


def reshape(a):
    a[2][0].shape = (6, 4)


def reshape_everywhere(a):
    for entries in a:
        entries[0].shape = (2, 12)


def retype(a):
    a[1][0].dtype = np.int32


def retype_the_first(a):
    a[0][0].dtype = np.int32


def widen(a):
    # Same addresses and sizes, and twice the bytes: each array reaches into the next one.
    memory = np.zeros(2000)
    for dtype in (np.float32, np.float64):
        step = 24 * 4
        flat = [
            memory.view(np.uint8)[k * step : k * step + 24 * np.dtype(dtype).itemsize].view(dtype) for k in range(6)
        ]
        for k, entries in enumerate(a):
            entries[:] = flat[2 * k : 2 * k + 2]
        yield


def grow(a):
    memory = np.zeros(200, np.float32)
    for size in (20, 30):
        for k, entries in enumerate(a):
            entries[:] = [memory[40 * k : 40 * k + size], memory[40 * k + 20 : 40 * k + 20 + size]]
        yield


def stride(a):
    a[1][5].strides = (0,)


def freeze(a):
    a[0][4].flags.writeable = False


def freeze_what_is_read(a):
    a[1][4].flags.writeable = False


def other_dtype(a):
    a[2][3] = a[2][3].astype(np.float64)


def other_byte_order(a):
    a[1][1] = a[1][1].astype(a[1][1].dtype.newbyteorder())


def other_shape(a):
    a[1][2] = np.zeros((1,), np.float32)


def other_rank(a):
    a[1][5] = a[1][5].reshape(2, 12)


def swap_alike(a):
    a[0][0], a[2][0] = a[2][0], a[0][0]


def swap_unlike(a):
    a[0][0], a[0][4] = a[0][4], a[0][0]


def twice(a):
    a[2][0] = a[0][0]


def read_twice(a):
    a[1][5] = a[1][0].reshape(24)


def view_of_another(a):
    a[2][1] = a[0][4].reshape(-1)[3:10]


def overlap_by_one(a):
    memory = np.zeros(200, np.float32)
    a[0][5], a[2][5] = memory[:24], memory[24:48]
    yield
    a[2][5] = memory[23:47]
    yield
    a[2][5] = memory[24:48]


def overlap_of_what_is_read(a):
    memory = np.zeros(200, np.float32)
    a[1][1], a[1][5] = memory[:7], memory[3:27]
    assert_seen(a, "planned")
    yield
    a[0][5] = memory[26:50]


def inside_behind_another(a):
    memory = np.zeros(200, np.float32)
    a[1][0], a[1][1] = memory[:24].reshape(4, 6), memory[2:9]
    yield
    a[0][1] = memory[12:19]


def around_an_empty_one(a):
    memory = np.zeros(24, np.float32)
    a[0][5], a[2][3] = memory, memory[5:5].reshape(0, 3)


def strided(a):
    a[0][0] = np.zeros((6, 4), np.float32).T


def misaligned(a):
    a[1][1] = np.zeros(29, np.uint8)[1:].view(np.float32)


def shorter(a):
    a[1].pop()


def longer(a):
    a[2].append(np.zeros(1, np.float32))


def all_shorter(a):
    for entries in a:
        entries.pop(0)


def nothing(a):
    a[1][3] = None


def something_else(a):
    a[0][0] = [1.0, 2.0]


def a_subclass(a):
    a[1][0] = a[1][0].view(np.matrix)


def type_of_an_array(a):
    a[1][0] = np.ndarray


CHANGES = [
    (reallocate, "planned"), (reallocate_all, "planned"),
    (resize, "grads[1]: expected the shape of params[1], (7,), got (9,)"), (resize_everywhere, "planned"),
    (reshape, "state[0]: expected the shape"), (reshape_everywhere, "planned"),
    (retype, "grads[0]: expected float32 or float64, got int32"), (retype_the_first, "params[0]: expected float32"),
    (widen, "overlap in memory"), (grow, "overlap in memory"), (inside_behind_another, "overlap in memory"),
    (stride, "fine"), (freeze, "params[4]: the array is read-only"), (freeze_what_is_read, "planned"),
    (other_dtype, "state[3] is float64 but params[0] is float32"),
    (other_byte_order, "grads[1]: expected native byte order"), (other_shape, "grads[2]: expected the shape"),
    (other_rank, "grads[5]: expected the shape"), (swap_alike, "planned"),
    (swap_unlike, "grads[0]: expected the shape"), (twice, "params[0] and state[0] overlap"), (read_twice, "planned"),
    (view_of_another, "params[4] and state[1] overlap"), (overlap_by_one, "planned"),
    (overlap_of_what_is_read, "overlap in memory"), (around_an_empty_one, "planned"), (strided, "fine"),
    (misaligned, "fine"), (shorter, "grads: expected 7 arrays"), (longer, "state: expected 7 arrays"),
    (all_shorter, "planned"), (nothing, "grads[3]: expected a numpy.ndarray or cupy.ndarray, got None"),
    (something_else, "params[0]: expected a numpy.ndarray or cupy.ndarray, got list"), (a_subclass, "a subclass of it"),
    (type_of_an_array, "grads[0]: expected a numpy.ndarray or cupy.ndarray, got type"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_a_change_between_two_calls_is_seen(one_plan, change, expected):
    arrays = draw()
    assert_seen(arrays, "planned")
    kept = copy.copy(arrays[0]), copy.copy(arrays[1]), copy.copy(arrays[2])
    for _ in change(arrays) or ():
        assert_seen(arrays)
    assert_seen(arrays, expected)
    assert_seen(arrays, expected)  # once more: the first call may have left a table behind
    if "resize" not in change.__name__ and "reshape" not in change.__name__ and "type" not in change.__name__:
        arrays = [list(entries) for entries in kept]
        assert_seen(arrays)  # and back


def test_an_object_in_the_place_of_a_freed_one_is_read_anew(one_plan):
    arrays = draw()
    assert_seen(arrays, "fine")
    for _ in range(100):
        before = id(arrays[1][5])
        arrays[1][5] = None
        arrays[1][5] = np.zeros(23, np.float32)
        if id(arrays[1][5]) == before:
            break
        arrays[1][5] = np.zeros(24, np.float32)
    else:
        pytest.skip("the interpreter does not use the place of an object again")
    assert_seen(arrays, "grads[5]: expected the shape of params[5], (24,), got (23,)")


def test_lists_that_take_turns_do_not_share_a_verdict(one_plan):
    memory = np.zeros(100, np.float32)
    apart, overlapping = [[memory[:10]], [memory[10:20]]], [[memory[:10]], [memory[9:19]]]
    for _ in range(3):
        check([*apart, [memory[20:30]]]).done()
        with pytest.raises(ValueError, match=r"grads\[0\] and params\[0\] overlap"):
            check([*overlapping, [memory[20:30]]])


def test_a_dtype_that_came_through_a_pickle_is_as_good():
    arrays = pickle.loads(pickle.dumps(draw()))
    assert arrays[0][0].dtype is not np.dtype(np.float32)
    assert_seen(arrays, "planned")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_views_of_one_memory(one_plan, dtype):
    rng = np.random.default_rng(5)
    memory = np.zeros(400, dtype)
    seen = set()
    for _ in range(300):
        size = int(rng.integers(0, 9))
        spots = rng.integers(0, 390, (3, 3))
        arrays = [[memory[at : at + size] for at in row] for row in spots]
        assert_seen(arrays)
        seen.add(verdict(arrays) == "fine")
    assert seen == {True, False}


def test_it_holds_for_many_arrays_in_any_order():
    memory = np.zeros(700 * 11, np.float32)
    views = [memory[11 * k : 11 * k + 11] for k in np.random.default_rng(1).permutation(700)]
    arrays = [views[:200], views[200:400], views[400:600]]
    assert_seen(arrays, "fine")
    for k in (0, 57, 199):
        spoiled = [list(entries) for entries in arrays]
        at = spoiled[2][k].__array_interface__["data"][0] - memory.__array_interface__["data"][0]
        spoiled[2][k] = memory[at // 4 - 1 : at // 4 + 10] if at else memory[1:12]
        assert_seen(spoiled, "overlap in memory" if at // 44 - 1 in range(700) else None)


def test_objects_look_as_expected_on_cpython():
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("another interpreter")
    assert lists.readable()


def test_without_readable_objects_python_checks(monkeypatch):
    monkeypatch.setattr(lists, "readable", lambda: False)
    arrays = draw()
    assert not planned(arrays)
    assert_seen(arrays, "fine")
    p, g, m, v = random(1, 5), random(2, 5), np.zeros(5), np.zeros(5)
    expected = p.copy()
    with fastgrad.backend("reference"):
        fastgrad.adam_step(expected, g, m.copy(), v.copy(), step=1)
    fastgrad.adam_step(p, g, m, v, step=1)
    np.testing.assert_allclose(p, expected, rtol=1e-14)


def test_tables_are_few_and_keep_no_array_alive():
    arrays = [random(k, 50, np.float32) for k in range(4)]
    watched = [weakref.ref(a) for a in arrays]
    fastgrad.adam_step(*arrays, step=1, max_norm=1.0)
    bad = random(5, 50, np.float32)
    bad[3] = np.nan
    watched.append(weakref.ref(bad))
    try:
        fastgrad.clip_by_global_norm(bad, 1.0, error_if_nonfinite=True)
    except RuntimeError as error:
        error.__traceback__ = None
    del arrays, bad
    assert [ref() for ref in watched] == [None] * 5
    for count in range(1, 40):
        for _ in range(3):
            fastgrad.global_norm([np.ones(3) for _ in range(count)])
    several = [[np.ones(3), np.ones(4)] for _ in range(10)]
    for grads in several:
        fastgrad.global_norm(grads)
    for plan in [lists.take(((1, 1, 0),), [np.ones(3)]) for _ in range(10)]:
        plan.give_back()
    assert len(lists._kept) <= lists.LAYOUTS_KEPT
    assert max(map(len, lists._kept.values())) <= lists.PLANS_KEPT


def test_threads_do_not_share_a_table():
    steps, members = 60, 6
    rng = np.random.default_rng(3)
    starts = [[rng.standard_normal(50).astype(np.float32) for _ in range(20)] for _ in range(members)]
    grads = [[rng.standard_normal(50).astype(np.float32) for _ in range(20)] for _ in range(members)]

    def train(k, params):
        state = [[np.zeros_like(p) for p in params] for _ in range(2)]
        for step in range(1, steps + 1):
            # A new list of new gradients in each step: all threads ask for tables of one layout.
            fastgrad.adam_step(params, [g * np.float32(step) for g in grads[k]], *state, step=step, max_norm=1.0)

    alone = [[p.copy() for p in params] for params in starts]
    together = [[p.copy() for p in params] for params in starts]
    for k in range(members):
        train(k, alone[k])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=train, args=(k, together[k])) for k in range(members)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    for one, other in zip(alone, together, strict=True):
        for p, q in zip(one, other, strict=True):
            np.testing.assert_array_equal(p, q)
