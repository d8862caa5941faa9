"""Lists of arrays on a device, beyond the cases of each op: tables, launches, replays, and no wait for the host.

All of it runs on the emulated device; a captured graph is what a replay of the same launches stands for.
"""

from __future__ import annotations

import contextlib
import math
import weakref

import emulated
import numpy as np
import pytest
from fastgrad.kernels import adam_cpu, adam_gpu, cuda, norm_gpu, rmsprop_cpu, rmsprop_gpu, sgd_cpu, sgd_gpu, table_gpu
from support import random
from tolerances import assert_close

import fastgrad
from fastgrad import _device_step
from fastgrad._device_lists import plain
from fastgrad.layers import Parameter
from fastgrad.optim import SGD, Adam, AdamW, RMSprop

pytestmark = pytest.mark.usefixtures("device")
CHUNK = table_gpu.CHUNK
# Nothing, one entry, parts of vectors, one past a warp of vectors, a chunk and one more than it, several chunks.
SIZES = [0, 1, 3, 5, 127, 129, CHUNK, 0, CHUNK + 1, 2 * CHUNK + 7, 2]
SMALL = [0, 1, 5, 130, 33]
OPTIMIZERS = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (RMSprop, {"lr": 0.05, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    (Adam, {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}),
    (AdamW, {"lr": 0.05, "weight_decay": 0.1}),
]
IDS = [f"{optimizer.__name__}-{len(options)}" for optimizer, options in OPTIMIZERS]


@pytest.fixture
def device(monkeypatch, emulated_gpu):
    """The array module, with no tables of other tests."""
    monkeypatch.setattr(table_gpu, "_tables", type(table_gpu._tables)())
    monkeypatch.setattr(cuda, "captured", [])
    return emulated_gpu


@pytest.fixture
def launches(monkeypatch):
    """The launches made, as (name, how to make it again)."""
    made = []
    original = cuda.Kernel.__call__

    def call(self, *args, **kwargs):
        made.append((self.name, lambda: original(self, *args, **kwargs)))
        original(self, *args, **kwargs)

    monkeypatch.setattr(cuda.Kernel, "__call__", call)
    return made


@contextlib.contextmanager
def no_wait(monkeypatch):
    """Fail where anything reads an array of the device."""

    def read(self, *args):
        raise AssertionError("the host waits for the device")

    with monkeypatch.context() as patch:
        for name in ("get", "item", "tolist", "__float__", "__int__", "__bool__"):
            patch.setattr(emulated.ndarray, name, read)
        yield


def there(arrays):
    return [emulated.ndarray(a) for a in arrays]


def misaligned(array):
    """Return the same numbers one element behind a multiple of 16 bytes."""
    memory = np.empty(array.size + 8, array.dtype)
    start = (-memory.ctypes.data % 16) // array.itemsize + 1
    memory[start : start + array.size] = array.ravel()
    return memory[start : start + array.size].reshape(array.shape)


def draw(dtype, seed=0, sizes=SIZES, odd=()):
    arrays = [random(seed + k, size, dtype) for k, size in enumerate(sizes)]
    return [misaligned(a) if k in odd else a for k, a in enumerate(arrays)]


STEPS = {
    "adam": (adam_cpu.adam_step, adam_gpu.adam_step, 4, (3, 0.01, 0.9, 0.99, 1e-8, 0.1, True, True)),
    "adam coupled": (adam_cpu.adam_step, adam_gpu.adam_step, 4, (3, 0.01, 0.9, 0.99, 1e-8, 0.1, False, False)),
    "amsgrad": (adam_cpu.adam_step, adam_gpu.adam_step, 5, (3, 0.01, 0.9, 0.99, 1e-8, 0.0, False, False)),
    "sgd": (sgd_cpu.sgd_step, sgd_gpu.sgd_step, 2, (0.1, 0.0, 0.0, False, 0.1, True)),
    "momentum": (sgd_cpu.sgd_step, sgd_gpu.sgd_step, 3, (0.1, 0.9, 0.2, False, 0.0, False)),
    "nesterov": (sgd_cpu.sgd_step, sgd_gpu.sgd_step, 3, (0.1, 0.9, 0.0, True, 0.1, False)),
    "rmsprop": (rmsprop_cpu.rmsprop_step, rmsprop_gpu.rmsprop_step, 3, (0.1, 0.9, 1e-8, 0.1, 0.0, False)),
    "centered": (rmsprop_cpu.rmsprop_step, rmsprop_gpu.rmsprop_step, 5, (0.1, 0.9, 1e-8, 0.0, 0.9, True)),
}


@pytest.mark.parametrize("odd", [(), (5, 8, 9)], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("name", STEPS)
def test_updates_have_the_bits_of_the_cpu(dtype, name, odd):
    on_cpu, on_gpu, streams, numbers = STEPS[name]
    most = 5 if name in ("amsgrad", "centered") or "adam" in name or "rmsprop" in name else 3
    runs = []
    for function, place in ((on_cpu, list), (on_gpu, there)):
        lists = [draw(dtype, 100 * stream, odd=odd if stream != 1 else ()) for stream in range(streams)]
        for states in lists[2:]:
            for state in states:
                np.abs(state, out=state)
        given = [place(arrays) for arrays in lists] + [None] * (most - streams)
        function(*given, *numbers, 0.37)
        runs.append(lists)
    for ours, theirs in zip(*runs, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_norms_do_not_depend_on_where_tensors_lie(dtype, ord):
    arrays = draw(dtype)
    kept = norm_gpu.tensor_norms(there(arrays), ord).get()
    exact = [np.linalg.norm(np.append(a, 0).astype(np.float64), ord) for a in arrays]
    assert_close(kept, exact, "norm")
    elsewhere = [misaligned(a) for a in arrays]
    for given in (elsewhere, elsewhere[::-1]):
        norms = norm_gpu.tensor_norms(there(given), ord).get()
        np.testing.assert_array_equal(norms if given is elsewhere else norms[::-1], kept)
    assert fastgrad.global_norm(there(arrays), ord).get() == fastgrad.global_norm(there(elsewhere), ord).get()


def test_arrays_allocated_anew_are_noticed(dtype):
    lists = [draw(dtype, 10 * k, SMALL) for k in range(4)]
    expected = [[a.copy() for a in arrays] for arrays in lists]
    device = [there(arrays) for arrays in lists]
    for step in range(1, 5):
        fresh = draw(dtype, 1000 * step, SMALL)
        device[1][2] = emulated.ndarray(fresh[2])  # another array in the list that was there
        expected[1][2] = fresh[2]
        lists[0][3] = lists[0][3].copy()  # a parameter that moved
        device[0][3] = emulated.ndarray(lists[0][3])
        for given in (device, expected):
            fastgrad.adam_step(*given, step=step, max_norm=1e9)
    for mine, other in zip(lists[0], expected[0], strict=True):
        np.testing.assert_array_equal(mine, other)


def test_tables_are_found_again_and_their_number_is_bounded(monkeypatch):
    monkeypatch.setattr(table_gpu, "TABLES_KEPT", 3)
    grads = there(draw(np.float32, 0, SMALL))
    first = table_gpu.table_of([grads])
    assert table_gpu.table_of([list(grads)]) is first
    assert table_gpu.table_of([grads[::-1]]) is not first
    assert table_gpu.table_of([grads], [7] * len(grads)) is not first
    table_gpu.table_of([grads])
    for k in range(10):
        table_gpu.table_of([there(draw(np.float32, k, SMALL))])
        table_gpu.table_of([grads])  # used, so it stays
    assert len(table_gpu._tables) == 3 and table_gpu.table_of([grads]) is first


def test_the_short_check_leaves_what_is_wrong_to_the_long_one():
    def lists():
        return [there(draw(np.float32, 10 * k, SMALL)) for k in range(3)]

    def said(arrays):
        return plain([list(zip(["params", "grads", "state"], arrays, [True, False, True], strict=True))])

    flat = np.zeros(200, np.float32)
    assert said(lists())
    fine = lists()
    fine[1][2:4] = there([flat[:5], flat[2:132]])  # gradients may overlap
    assert said(fine)
    changes = [
        (1, 3, flat[:129]), (1, 3, flat[:130].astype(np.float64)), (1, 3, flat[:130].reshape(10, 13)),
        (1, 4, flat[: 2 * 33 : 2]), (1, 4, flat.view(np.uint8)[2 : 2 + 4 * 33].view(np.float32)),
    ]  # fmt: skip
    for row, column, array in changes:
        wrong = lists()
        wrong[row][column] = emulated.ndarray(array)
        assert not said(wrong)
    for rows in ((0, 0), (0, 1), (2, 1), (2, 0)):
        for shift in (32, 33):
            wrong = lists()
            first, second = emulated.ndarray(flat[:33]), emulated.ndarray(flat[shift : shift + 130])
            wrong[rows[0]][4], wrong[rows[1]][3] = first, second
            assert said(wrong) == (shift == 33)
    assert not said([lists()[0], lists()[1][:4], lists()[2]])
    assert not said([lists()[0], draw(np.float32, 0, SMALL), lists()[2]])
    assert not plain([[("params", [], True)]]) and not plain([[("params", draw(np.float32, 0, SMALL), True)]])


def test_a_step_knows_the_arrays_of_the_one_before(monkeypatch):
    """Checked once, noticed when they are others, and never kept alive."""
    params, grads = [there(draw(np.float32, seed, SMALL)) for seed in (0, 50)]
    made, checks = Adam(params), []
    original = _device_step.TensorSets
    monkeypatch.setattr(_device_step, "TensorSets", lambda sets: checks.append(1) or original(sets))
    for _ in range(3):
        made.step(grads)
    assert len(checks) == 1
    before = params[1].get()
    grads[1] = emulated.ndarray(np.zeros(1, np.float32))
    made.step(grads)
    made.param_groups[0]["amsgrad"] = True
    made.step(grads)
    assert len(checks) == 3 and params[1].get() != before
    alive = weakref.ref(grads[2])
    grads[2] = None
    assert alive() is None
    made.step(grads)
    assert len(checks) == 4
    strided = [emulated.ndarray(np.ones(2 * size, np.float32)[::2]) for size in SMALL]
    for value in (1.0, 2.0):
        for grad in strided:
            grad.fill(value)
        report = made.step(strided)
        assert report.grad_norm == pytest.approx(value * math.sqrt(sum(SMALL)))


def optimizer_of(optimizer, options, params, **more):
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.03}]
    return optimizer(groups, **options, **more)


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=IDS)
def test_three_launches_and_no_wait(monkeypatch, launches, optimizer, options):
    params, grads = [there(draw(np.float32, seed, SMALL)) for seed in (0, 50)]
    made = optimizer_of(optimizer, options, params, max_norm=0.5)
    with no_wait(monkeypatch):
        reports = [made.step(grads)]
        del launches[:]
        reports.append(made.step(grads))
    name = {SGD: "sgd", RMSprop: "rmsprop"}.get(optimizer, "adam")
    assert [launch for launch, _ in launches] == ["fg_health_chunks", f"fg_{name}_finish", f"fg_{name}"]
    norm = math.sqrt(sum(float(np.sum(np.square(g.get(), dtype=np.float64))) for g in grads))
    reads = []
    original = emulated.ndarray.get
    monkeypatch.setattr(emulated.ndarray, "get", lambda self: reads.append(1) or original(self))
    for report in reports:
        del reads[:]
        assert len(report.health) == len(SMALL) and report.health.sizes.tolist() == SMALL and not reads
        assert report.grad_norm == pytest.approx(norm) and not report.skipped
        np.testing.assert_allclose(report.health.norm, [np.linalg.norm(original(g)) for g in grads], rtol=1e-6)
        assert (report.health.update_ratio[1:] > 0).all() and len(reads) == 1
        assert report.clip_coefficient == pytest.approx(0.5 / (norm + 1e-6))
    with pytest.raises(AssertionError, match="waits"), no_wait(monkeypatch):
        made.state_dict()


def test_functions_launch_little_and_do_not_wait(monkeypatch, launches):
    lists = [there(draw(np.float32, seed, SMALL)) for seed in range(4)]
    calls = {
        3: [
            lambda: fastgrad.adam_step(*lists, step=1, max_norm=0.1),
            lambda: fastgrad.sgd_step(*lists[:3], lr=0.1, momentum=0.9, max_norm=0.1),
            lambda: fastgrad.rmsprop_step(*lists[:3], max_norm=0.1),
            lambda: fastgrad.clip_by_global_norm(lists[0], 0.1),
            lambda: fastgrad.clip_by_norm(lists[0], 0.1),
        ],
        2: [lambda: fastgrad.global_norm(lists[0]), lambda: fastgrad.health(lists[0])],
        1: [lambda: fastgrad.adam_step(*lists, step=1), lambda: fastgrad.clip_by_value(lists[0], -1, 1)],
    }
    with no_wait(monkeypatch):
        for count, functions in calls.items():
            for function in functions:
                del launches[:]
                function()
                assert len(launches) == count
    with pytest.raises(AssertionError, match="waits"), no_wait(monkeypatch):
        fastgrad.clip_by_global_norm(lists[0], 0.1, error_if_nonfinite=True)


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=IDS)
def test_a_range_of_weights_is_part_of_the_update(launches, optimizer, options):
    """Of one group alone, changed between replays; a step that is skipped leaves weights where they are."""
    params, grads = [draw(np.float32, seed, SMALL) for seed in (0, 50)]
    made = optimizer_of(optimizer, options, there(params), max_norm=3.0)
    made.param_groups[1]["weight_range"] = (-0.25, 0.5)
    params[1][:], params[4][:3] = 99.0, (np.nan, 7.0, -7.0)
    grads[4][5] = np.nan
    before = [p.copy() for p in params]
    assert made.step(there(grads)).skipped
    for mine, same in zip(params, before, strict=True):
        np.testing.assert_array_equal(mine, same)
    grads[4][5] = 0.0
    del launches[:]
    made.step(there(grads))
    assert len(launches) == 3
    for k, mine in enumerate(params):
        bounded = mine[~np.isnan(mine)]
        assert k < 2 or ((bounded >= -0.25) & (bounded <= 0.5)).all()
    assert np.isnan(params[4][0]) and params[4][2] == -0.25 and params[1][0] > 8.0
    made.param_groups[1]["weight_range"] = (1.0, np.inf)
    made.refresh()
    for _, again in list(launches):
        again()
    assert (params[3] >= 1.0).all() and params[1][0] > 8.0


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=IDS)
def test_a_replay_of_the_launches_goes_on(dtype, launches, optimizer, options):
    """The gradients change in place, and lr by refresh, as a program does that replays a captured step."""

    def train(replay):
        params, grads = [draw(dtype, seed, SMALL) for seed in (0, 50)]
        made = optimizer_of(optimizer, options, there(params), max_norm=3.0)
        on_device = there(grads)
        reports = []
        for step in range(6):
            for grad, fresh in zip(grads, draw(dtype, 500 + 10 * step, SMALL), strict=True):
                grad[...] = fresh * 10.0 ** (step % 3 - 1)
            if step == 3:
                grads[3][7] = np.nan
            if step == 4:
                made.param_groups[1]["lr"] = 0.2
            if not replay or step < 2:
                del launches[:]
                reports.append(made.step(on_device))
            else:
                made.refresh()
                for _, again in list(launches):
                    again()
        return params, made, reports

    expected, other, reports = train(replay=False)
    params, made, captured = train(replay=True)
    for mine, theirs in zip(params, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert made.skipped_steps == other.skipped_steps == 1
    assert captured[-1] == reports[-1]  # read for the first time now
    ours, theirs = made.state_dict()["state"], other.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for index, entry in theirs.items():
        assert entry.get("step", 5) == ours[index].get("step", 5) == 5
        for key in entry.keys() - {"step"}:
            np.testing.assert_array_equal(ours[index][key].get(), entry[key].get())


FAULTS = {
    "step.cuh": [("step = ++state.steps[number]", "step = state.steps[number] + 1"),
                 ("if (!goes_on) return;", ""), ("!goes_on && policy == 1", "policy == 1")],
    "norms.cuh": [("atomicInc(sums.arrived, gridDim.x - 1)", "atomicAdd(sums.arrived, 1u)")],
    "adam.cu": [("if (skips(control, changes)) return;", "")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "right", "wrong"), [(file, *fault) for file, faults in FAULTS.items() for fault in faults]
)
def test_a_planted_fault_of_a_replay_is_caught(monkeypatch, launches, file, right, wrong):
    original = cuda._file

    def planted(name):
        text = original(name)
        return text.replace(right, wrong) if name == file else text

    assert right in original(file)
    monkeypatch.setattr(cuda, "_file", planted)
    monkeypatch.setattr(cuda.Kernel, "text", lambda self, dtype, **variant: cuda.variant_text.__wrapped__(
        self.source, dtype, self._defines(variant)))  # fmt: skip
    for kernel in cuda.declared:
        monkeypatch.setattr(kernel, "_functions", {})
    with pytest.raises((AssertionError, RuntimeError)):
        test_against_the_cpu_with_skipped_steps(AdamW, OPTIMIZERS[-1][1])
        test_a_replay_of_the_launches_goes_on(np.float32, launches, *OPTIMIZERS[-1])


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=IDS)
def test_against_the_cpu_with_skipped_steps(optimizer, options):
    """Missing gradients, a first step that is skipped, and going on elsewhere, by state_dict."""
    host, memory = draw(np.float64, 0, SMALL), draw(np.float64, 0, SMALL)
    first = optimizer_of(optimizer, options, host, max_norm=3.0)
    second = optimizer_of(optimizer, options, there(memory), max_norm=3.0)
    for step in range(6):
        grads = draw(np.float64, 100 + 10 * step, SMALL)
        if step in (0, 3):
            grads[2][1] = np.inf
        given = [None if step and (step + k) % 3 == 0 else g for k, g in enumerate(grads)]
        report = first.step(given)
        other = second.step([None if g is None else emulated.ndarray(g) for g in given])
        assert other.skipped == report.skipped
        if not report.skipped:
            assert_close(other.grad_norm, report.grad_norm, "norm")
        assert second.skipped_steps == first.skipped_steps
        mine, theirs = second.state_dict()["state"], first.state_dict()["state"]
        assert {k: v.get("step") for k, v in mine.items()} == {k: v.get("step") for k, v in theirs.items()}
        if step == 4:
            saved = second.state_dict()
            second = optimizer_of(optimizer, options, there(memory), max_norm=3.0)
            second.load_state_dict(saved)
    for ours, expected in zip(memory, host, strict=True):
        assert_close(ours, expected, "step", magnitude="largest")


def test_state_goes_along_between_devices():
    memory = draw(np.float64, 0, SMALL)
    parameters, others = [[Parameter(a.copy()) for a in memory] for _ in range(2)]
    moving, staying = Adam(parameters, lr=0.1), Adam(others, lr=0.1)
    for step in range(6):
        for k, (parameter, other) in enumerate(zip(parameters, others, strict=True)):
            grad = random(100 * step + k, memory[k].shape)
            if step in (2, 4):
                parameter.data = emulated.ndarray(parameter.data) if step == 2 else parameter.data.get()
            on_device = type(parameter.data) is emulated.ndarray
            parameter.grad, other.grad = emulated.ndarray(grad) if on_device else grad, grad
        assert moving.step().grad_norm == pytest.approx(staying.step().grad_norm)
    for parameter, other in zip(parameters, others, strict=True):
        assert_close(parameter.data, other.data, "step", magnitude="largest")
    assert moving.state_dict()["state"][1]["step"] == 6


def test_what_a_capture_needs_has_to_be_there(monkeypatch, launches):
    params, grads = [there(draw(np.float32, seed, SMALL)) for seed in (0, 50)]
    made = Adam(params, max_norm=1.0)

    def captured(call):
        emulated.STREAM.capturing = 1
        try:
            return call()
        finally:
            emulated.STREAM.end_capture()

    with pytest.raises(RuntimeError, match=r"state of an optimizer can't be made while .*once before"):
        captured(lambda: made.step(grads))
    with pytest.raises(RuntimeError, match="table of these arrays can't be made while a graph is captured"):
        captured(lambda: fastgrad.global_norm(grads))
    assert launches == []
    made.step(grads)
    report = captured(lambda: made.step(grads))
    plan = made._device._known.plan
    kept = [array._host for args, _ in cuda.captured for array in args if isinstance(array, emulated.ndarray)]
    assert any(array is plan.norms.head[0]._host for array in kept)
    assert any(array.base is report._found._host for array in kept)
    made.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match="a change of lr"):
        captured(lambda: made.step(grads))
    monkeypatch.setattr(table_gpu, "TABLES_KEPT", 1)
    for k in range(5):
        fastgrad.global_norm(there(draw(np.float32, k, SMALL)))
    assert plan.norms not in table_gpu._tables.values() and len(cuda.captured) == 3


def test_nonfinite_raise_waits_and_changes_nothing():
    params = [Parameter(emulated.ndarray(a), name=n) for a, n in zip(draw(np.float32, 0, SMALL), "abcde", strict=True)]
    before = [p.data.get() for p in params]
    made = AdamW(params, nonfinite="raise")
    grads = draw(np.float32, 50, SMALL)
    grads[3][2] = np.inf
    with pytest.raises(FloatingPointError, match=r"not finite in d \(norm inf\); nothing was changed"):
        made.step(there(grads))
    for parameter, kept in zip(params, before, strict=True):
        np.testing.assert_array_equal(parameter.data.get(), kept)
    assert made.skipped_steps == 0 and made.state_dict()["state"] == {}


def test_groups_of_other_variants_are_launched_apart(launches):
    host, memory = draw(np.float64, 0, SMALL), draw(np.float64, 0, SMALL)
    made = [
        Adam([{"params": p[::2], "weight_decay": 0.1}, {"params": p[1::2], "amsgrad": True}], max_norm=0.1)
        for p in (host, there(memory))
    ]
    for step in range(3):
        grads = draw(np.float64, 10 * step, SMALL)
        grads = [*grads[::2], *grads[1::2]]
        del launches[:]
        assert made[1].step(there(grads)).grad_norm == pytest.approx(made[0].step(grads).grad_norm, rel=1e-14)
        assert [name for name, _ in launches].count("fg_adam") == 2 and len(launches) == 4
    for ours, expected in zip(memory, host, strict=True):
        assert_close(ours, expected, "step", magnitude="largest")


def test_gradient_norm_is_refused():
    params, grads = [there(draw(np.float32, seed, SMALL)) for seed in (0, 50)]
    norm = fastgrad.GradientNorm()
    for call in (
        lambda: norm.add(grads),
        lambda: Adam(params, max_norm=1.0, gradient_norm=norm),
        lambda: fastgrad.sgd_step(params, grads, lr=1.0, max_norm=1.0, gradient_norm=norm),
    ):
        with pytest.raises(TypeError, match=r"(GradientNorm|gradient_norm): takes NumPy arrays; on a GPU it"):
            call()


def test_arrays_of_two_devices_are_refused():
    params, grads = draw(np.float32, 0, SMALL), draw(np.float32, 50, SMALL)
    with pytest.raises(TypeError, match=r"grads\[0\] is a NumPy array but params\[0\] is a CuPy array"):
        SGD(there(params), lr=0.1).step(grads)
    with pytest.raises(TypeError, match=r"params\[1\] is a CuPy array but params\[0\] is a NumPy array"):
        SGD([params[1], *there(params[2:3])], lr=0.1)


def test_health_is_read_by_one_copy(monkeypatch):
    arrays = draw(np.float32, 0, SMALL)
    arrays[3][:2] = np.nan, np.inf
    with no_wait(monkeypatch):
        health = fastgrad.health(there(arrays), list("abcde"))
        assert len(health) == 5 and health.names == tuple("abcde") and health.sizes.tolist() == SMALL
    reads = []
    original = emulated.ndarray.get
    monkeypatch.setattr(emulated.ndarray, "get", lambda self: reads.append(1) or original(self))
    assert health["d"].nan == 1 and health["d"].inf == 1 and str(health).count("\n") == 5
    assert health.zero_share.shape == (5,) and len(reads) == 1
    with pytest.raises(ValueError, match="read-only"):
        health.norm[0] = 1
    with pytest.raises(AttributeError):
        _ = health.largest
