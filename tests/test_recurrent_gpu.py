"""What only the device's recurrent kernels have: the persistent way through the steps, its barriers, the choice."""

from __future__ import annotations

import backends
import numpy as np
import pytest
import test_gru
import test_lstm
from fastgrad.kernels import gru_gpu, lstm_gpu, recurrent_gpu
from support import oracle

import fastgrad
from fastgrad import gate_orders, recurrent

emulated = pytest.importorskip("emulated")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Call the public functions on emulated device arrays."""
    reason = backends.missing("emulated")
    if reason is not None:
        pytest.skip(reason)
    emulated.register()
    backends.divert(monkeypatch, "emulated", test_lstm)
    for name in ("gru", "gru_backward"):
        monkeypatch.setattr(test_gru, name, getattr(fastgrad, name))
    return emulated.DEVICE


@pytest.fixture
def method(monkeypatch):
    """Choose the way through the steps."""
    yield recurrent_gpu.set_method
    recurrent_gpu.set_method("auto")


@pytest.fixture
def plans(monkeypatch):
    """The plans of the calls made."""
    made = []
    plan = recurrent_gpu.persistent_plan

    def recorded(*args):
        made.append(plan(*args))
        return made[-1]

    for module in (lstm_gpu, gru_gpu):
        monkeypatch.setattr(module, "persistent_plan", recorded)
    return made


OPS = {"lstm": (test_lstm, lstm_gpu), "gru": (test_gru, gru_gpu)}
OPTIONS = [{}, {"reverse": True}, {"lengths": True}, {"lengths": True, "reverse": True}]
# (T, B, I, H): members and groups vary with the number of multiprocessors, the last block of a row is not full, groups
# have several sequences and not all the same number.
PERSISTENT = [(4, 2, 3, 4), (3, 5, 2, 12), (4, 3, 1, 20), (2, 7, 2, 8), (1, 1, 1, 4), (2, 2, 3, 36)]


def compared(cases, arguments, gradients, **options):
    """Run a layer and compare it with the reference in float64."""
    wide = [a.astype(np.float64) for a in arguments]
    gradients_wide = [g if g is None else g.astype(np.float64) for g in gradients]
    actual = cases.run(arguments, gradients, **options)
    cases.assert_results(actual, oracle(cases.run, wide, gradients_wide, **options))


@pytest.mark.parametrize("multiprocessors", [3, 7])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", PERSISTENT, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_persistent(method, plans, machine, monkeypatch, op, sizes, options, multiprocessors):
    if multiprocessors == 3 and sizes[-1] > 24:
        pytest.skip("does not fit 3 multiprocessors")
    monkeypatch.setattr(machine, "multiprocessors", multiprocessors)
    monkeypatch.setattr(machine, "policy", 2 + sum(sizes) + multiprocessors)
    monkeypatch.setattr(recurrent_gpu, "PASS", 2)
    method("persistent")
    cases, _ = OPS[op]
    arguments, gradients = cases.draw(sizes, np.float32)
    lengths = cases.some_lengths(*sizes[:2]) if options.get("lengths") else None
    compared(cases, arguments, gradients, **{**options, "lengths": lengths})
    assert len(plans) == 2 and all(plans), "expected the persistent kernels"


@pytest.mark.parametrize("policy", [0, 1, 2, 3])
@pytest.mark.parametrize("op", OPS)
def test_persistent_in_every_order(method, machine, monkeypatch, op, policy):
    monkeypatch.setattr(machine, "multiprocessors", 6)
    cases, _ = OPS[op]
    arguments, gradients = cases.draw((3, 5, 2, 12), np.float32)
    method("persistent")
    results = []
    for order in (0, policy):
        monkeypatch.setattr(machine, "policy", order)
        results.append(b"".join(a.tobytes() for a in cases.run(arguments, gradients).values()))
    assert results[0] == results[1]


@pytest.mark.parametrize("op", OPS)
def test_persistent_without_biases_and_gradients(method, plans, op):
    method("persistent")
    cases, _ = OPS[op]
    arguments, gradients = cases.draw((3, 2, 2, 8), np.float32)
    compared(cases, arguments[:-2], [gradients[0], *[None] * (len(gradients) - 1)])
    compared(cases, arguments[:-2], [None, *gradients[1:]])
    assert len(plans) == 4 and all(plans)


def test_the_blocks_do_not_change_the_bits_of_forward(method, machine, monkeypatch):
    arguments, _ = test_lstm.draw((3, 5, 2, 12), np.float32)
    method("persistent")
    seen = set()
    for multiprocessors in (3, 6, 15):
        monkeypatch.setattr(machine, "multiprocessors", multiprocessors)
        y, _, _ = test_lstm.lstm(*arguments)
        seen.add(y.tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype, hidden", [(np.float64, 8), (np.float32, 6), (np.float32, 28)], ids=str)
def test_what_does_not_fit_goes_step_by_step(method, plans, op, dtype, hidden):
    method("persistent")
    cases, _ = OPS[op]
    arguments, gradients = cases.draw((2, 2, 3, hidden), dtype)
    compared(cases, arguments, gradients)
    assert plans == [None, None]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("noise", "persistent"),
    [
        ({"input_dropout": 0.4}, True),
        ({"input_dropout": 0.4, "recurrent_dropout": 0.3}, False),
        ({"recurrent_dropout": 0.3, "training": False}, True),
        ({"zoneout_h": 0.3, "training": False}, False),
    ],
    ids=str,
)
def test_noise_outside_of_the_steps_leaves_them_in_one_kernel(method, plans, op, noise, persistent):
    method("persistent")
    cases, _ = OPS[op]
    arguments, gradients = cases.draw((3, 2, 2, 8), np.float32)
    compared(cases, arguments, gradients, **noise, seed=3)
    assert [plan is not None for plan in plans] == ([True] * 2 if persistent else [])


def test_weights_off_16_bytes_go_step_by_step(method, plans):
    method("persistent")
    arguments, gradients = test_lstm.draw((2, 2, 3, 8), np.float32)
    shifted = np.empty(arguments[4].size + 1, np.float32)[1:].reshape(arguments[4].shape)
    shifted[...] = arguments[4]
    compared(test_lstm, [*arguments[:4], shifted, *arguments[5:]], gradients)
    assert plans == [None, None]


def test_the_method(method, plans):
    arguments, gradients = test_lstm.draw((2, 2, 3, 8), np.float32)
    for name, expected in (("stepwise", False), ("persistent", True), ("auto", True)):
        method(name)
        assert recurrent_gpu.method() == name
        plans.clear()
        test_lstm.run(arguments, gradients)
        assert [plan is not None for plan in plans] == [expected] * 2
    with pytest.raises(ValueError, match="expected one of auto, stepwise, persistent, got 'fast'"):
        method("fast")


@pytest.mark.parametrize("op", OPS)
def test_lengths_of_every_kind(op):
    cases, _ = OPS[op]
    arguments, gradients = cases.draw((3, 4, 2, 5), np.float32)
    expected = cases.run(arguments, gradients, lengths=np.array([3, 0, 2, 1]))
    on_device = [emulated.ndarray(a) for a in arguments]
    function = {"lstm": recurrent.lstm, "gru": recurrent.gru}[op]
    # Beyond its bounds a length on the device is taken as 0 or T: nothing has looked at it.
    kinds = [[3, 0, 2, 1], np.array([3, 0, 2, 1], np.int32), emulated.ndarray(np.array([9, -1, 2, 1]))]
    for lengths in kinds:
        y, _, _ = function(*on_device, lengths=lengths)
        np.testing.assert_array_equal(y.get(), expected["y"])
    with pytest.raises(ValueError, match=r"lengths: expected entries from 0 to 3 .* got 4"):
        function(*on_device, lengths=[4, 0, 0, 0])
    with pytest.raises(TypeError, match="lengths is a CuPy array but x a NumPy array"):
        function(*arguments, lengths=kinds[2])


def test_reorder_gates_on_the_device():
    host = np.arange(24.0).reshape(12, 2)
    array = emulated.ndarray(host)
    for axis, given in ((0, array), (1, array.T)):
        moved = gate_orders.reorder_gates(given, "gru", source="keras", axis=axis)
        assert type(moved) is emulated.ndarray
        np.testing.assert_array_equal(
            moved.get(), gate_orders.reorder_gates(given.get(), "gru", source="keras", axis=axis)
        )
    out = emulated.Module.empty((12, 2))
    assert gate_orders.reorder_gates(array, "lstm", source="onnx", out=out) is out
    np.testing.assert_array_equal(out.get(), gate_orders.reorder_gates(host, "lstm", source="onnx"))
    with pytest.raises(ValueError, match="out and array overlap"):
        gate_orders.reorder_gates(array, "lstm", source="onnx", out=array)
    with pytest.raises(TypeError, match="out is a NumPy array but array is a CuPy array"):
        gate_orders.reorder_gates(array, "lstm", source="onnx", out=np.empty((12, 2)))
    with pytest.raises(TypeError, match="out is a CuPy array but array is a NumPy array"):
        gate_orders.reorder_gates(host, "lstm", source="onnx", out=out)


class H200:
    """What a plan asks of a device; no measurement has its name."""

    name = "H200 of a test"
    multiprocessors = 132
    shared_memory = 227 << 10
    block_limit = 1024


def plan_for(op, batch, hidden):
    gates = 4 if op == "lstm" else 3
    state = emulated.ndarray(np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (batch, hidden), (0, 0)))
    return recurrent_gpu.persistent_plan(H200, gates, 100, state, ())


@pytest.mark.parametrize("op", OPS)
def test_plans_fit_an_h200(method, op):
    method("persistent")
    gates = 4 if op == "lstm" else 3
    for hidden in range(4, 1028, 4):
        for batch in (1, 2, 7, 16, 64):
            plan = plan_for(op, batch, hidden)
            assert plan is not None, (batch, hidden)
            rows = gates * plan.units
            assert plan.members * plan.units >= hidden and plan.blocks <= 132
            assert plan.groups * plan.most >= batch
            assert plan.forward % 32 == 0 and plan.forward <= 256
            assert plan.forward // 4 * plan.depth * 4 >= hidden and plan.backward * 4 >= hidden
            assert rows // 4 * plan.depth * 4 <= 144
            assert max(plan.shared_forward, plan.shared_backward) <= H200.shared_memory
    assert plan_for(op, 16, 1028) is None
    method("auto")
    assert plan_for(op, 16, 1024) is not None
    assert plan_for(op, 64, 1024) is None


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("op", OPS)
def test_compiles_with_the_parameters_declared(op, arch):
    from devtools import nvrtc

    if nvrtc.why_unavailable():
        pytest.skip(nvrtc.why_unavailable())
    from test_cuda import differences, warnings_of

    module = OPS[op][1]
    kernels = [module._PERSISTENT_FORWARD, module._PERSISTENT_BACKWARD]
    text = kernels[0].text("float32", units=8, depth=4)
    options = ["-fmad=false", "-ftz=true", "--ptxas-options=-v"]
    log = nvrtc.compile(text, arch, options).log
    assert warnings_of(log) == [] and len(kernels) == log.count("Used ")
    assert differences(kernels, "float32", nvrtc.compile(text, arch.replace("sm", "compute")).ptx) == []


@pytest.mark.parametrize("op", OPS)
def test_no_variant_spills(method, op):
    from devtools import nvrtc, sass

    if sass.why_unavailable():
        pytest.skip(sass.why_unavailable())
    method("persistent")
    variants = {(p.units, p.depth) for h in range(4, 1028, 4) for b in (1, 16, 64) if (p := plan_for(op, b, h))}
    options = ["-fmad=false", "-ftz=true", "--ptxas-options=-v"]
    kernel = OPS[op][1]._PERSISTENT_FORWARD
    for units, depth in sorted(variants):
        compiled = nvrtc.compile(kernel.text("float32", units=units, depth=depth), "sm_90", options)
        for name, resources in sass.resources(compiled.log).items():
            assert resources.spills == resources.stack == 0, (name, units, depth, resources)
    found = sass.report(kernel.text("float32", units=8, depth=4), "sm_90", options)
    forward, backward = (found[f"fg_{op}_persistent_{name}"].accesses for name in ("forward", "backward"))
    # 16 bytes at a time: the rows of W_hh, the numbers of h, the partial sums, the gradients in shared memory.
    assert forward["LDG.128"] >= 32 and backward["LDG.128"] >= 24
    assert backward["STG.128"] == 2 and backward["LDS.128"] >= 12


# One line of the persistent kernels each, and what stands there instead.
MUTANTS = {
    "forward: no wait for the other blocks": ("if (s > 0) place.await(s);", ""),
    "backward: no wait for the other blocks": ("            place.await(s);\n", ""),
    "no barrier before arriving": ("__syncthreads();\n        if (threadIdx.x == 0) at", "if (threadIdx.x == 0) at"),
    "arrive without release": ("atomic_add_release(counter, 1u)", "atomicAdd(counter, 1u)"),
    "wait without acquire": ("load_acquire(counter) <", "atomicAdd(counter, 0u) <"),
    "no barrier after waiting": ("            }\n        __syncthreads();", "            }"),
    "one arrival less": ("unsigned(n * members)", "unsigned(n * members - 1)"),
    "one buffer for two steps": ("own_partial + s % 2 * one_step", "own_partial + one_step"),
    "both steps in one buffer": ("2 * one_step", "2 * 0"),
    "sums read before they are there": ("products);\n            __syncthreads();", "products);"),
    "sums overwritten while they are read": ("if (low > 0) __syncthreads();", ""),
    "gradients read before they are there": ("__syncthreads();\n        slice.multiply(grad", "slice.multiply(grad"),
    "a lane's sums kept twice": ("upper ? low : high, STEP", "upper ? high : low, STEP"),
    "one step too many": ("lengths && t >= lengths[sequence]", "lengths && t > lengths[sequence]"),
    "gradients of padding": ("dh_own[i] = dh_now;", "dh_own[i] = dh_now = 0;"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("op", OPS)
def test_planted_faults_are_caught(method, machine, monkeypatch, op, name):
    """Replace a line of the persistent kernels."""
    from devtools.cuda_on_cpu import LaunchError

    line, other = MUTANTS[name]
    cases, module = OPS[op]
    method("persistent")
    monkeypatch.setattr(machine, "multiprocessors", 6)
    monkeypatch.setattr(recurrent_gpu, "PASS", 1)
    function = machine.function
    changed = []

    def mutated(text, kernel, shared):
        if "persistent" in kernel:
            if line not in text:
                pytest.fail(f"the line is no longer in the source: {line}")
            changed.append(kernel)
            text = text.replace(line, other)
        return function(text, kernel, shared)

    monkeypatch.setattr(machine, "function", mutated)
    for kernel in (module._PERSISTENT_FORWARD, module._PERSISTENT_BACKWARD):
        monkeypatch.setattr(kernel, "_functions", {})
    arguments, gradients = cases.draw((4, 5, 2, 12), np.float32)
    # A wait for too little shows only where the threads run in an order in which it matters.
    with pytest.raises((LaunchError, AssertionError)):
        for policy in range(20):
            monkeypatch.setattr(machine, "policy", policy)
            compared(cases, arguments, gradients, lengths=np.array([4, 2, 0, 3, 1]))
    assert changed
