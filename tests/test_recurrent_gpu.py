"""What only the device's recurrent kernels have: the persistent way through the steps, its barriers, the choice."""

from __future__ import annotations

import backends
import numpy as np
import pytest
import test_gru
import test_lstm
from fastgrad.kernels import lstm_gpu, recurrent_gpu
from support import oracle

import fastgrad

emulated = pytest.importorskip("emulated")


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Call the public functions on emulated device arrays."""
    reason = backends.missing("emulated")
    if reason is not None:
        pytest.skip(reason)
    for module in (test_lstm, test_gru):
        backends.divert(monkeypatch, "emulated", module)
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

    for module in (lstm_gpu,):
        monkeypatch.setattr(module, "persistent_plan", recorded)
    return made


# (T, B, I, H): members and groups on 3 and on 7 multiprocessors vary, the last block of a row is not full, a group has
# several sequences, and one more than can be multiplied at a time.
PERSISTENT = [(4, 2, 3, 4), (3, 5, 2, 12), (4, 3, 1, 20), (2, 7, 2, 8), (1, 1, 1, 4)]


@pytest.mark.parametrize("multiprocessors", [3, 7])
@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"lengths": True}, {"lengths": True, "reverse": True}], ids=str
)
@pytest.mark.parametrize("sizes", PERSISTENT, ids=str)
def test_persistent_lstm(method, plans, device, monkeypatch, sizes, options, multiprocessors):
    monkeypatch.setattr(device, "multiprocessors", multiprocessors)
    monkeypatch.setattr(device, "policy", 2 + sum(sizes) + multiprocessors)
    method("persistent")
    arguments, gradients = test_lstm.draw(sizes, np.float32)
    options = dict(options)
    if options.get("lengths"):
        options["lengths"] = test_lstm.some_lengths(*sizes[:2])
    actual = test_lstm.run(arguments, gradients, **options)
    assert len(plans) == 2 and all(plans), "expected the persistent kernels"
    wide = [a.astype(np.float64) for a in arguments], [g.astype(np.float64) for g in gradients]
    test_lstm.assert_results(actual, oracle(test_lstm.run, *wide, **options))


# One line of the persistent kernels each, and what stands there instead.
MUTANTS = {
    "forward: no wait for the other blocks": ("if (s > 0) place.await(s);", ""),
    "backward: no wait for the other blocks": ("            place.await(s);\n", ""),
    "no barrier before arriving": ("__syncthreads();\n        if (threadIdx.x == 0) atomic", "if (threadIdx.x == 0) atomic"),
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
    "gradients of padding": ("dh_own[i] = dh_now;", "dh_own[i] = 0;"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_faults_are_caught(method, device, monkeypatch, name):
    """Replace a line of the persistent kernels."""
    from devtools.cuda_on_cpu import LaunchError

    line, other = MUTANTS[name]
    method("persistent")
    monkeypatch.setattr(device, "multiprocessors", 6)
    monkeypatch.setattr(recurrent_gpu, "PASS", 1)
    function = device.function
    changed = []

    def mutated(text, kernel, shared):
        if "persistent" in kernel:
            if line not in text:
                pytest.fail(f"the line is no longer in the source: {line}")
            changed.append(kernel)
            text = text.replace(line, other)
        return function(text, kernel, shared)

    monkeypatch.setattr(device, "function", mutated)
    for kernel in (lstm_gpu._PERSISTENT_FORWARD, lstm_gpu._PERSISTENT_BACKWARD):
        monkeypatch.setattr(kernel, "_functions", {})
    arguments, gradients = test_lstm.draw((4, 5, 2, 12), np.float32)
    options = {"lengths": np.array([4, 2, 0, 3, 1])}
    wide = [a.astype(np.float64) for a in arguments], [g.astype(np.float64) for g in gradients]
    expected = oracle(test_lstm.run, *wide, **options)
    # A wait for too little shows only where the threads run in an order in which it matters.
    with pytest.raises((LaunchError, AssertionError)):
        for policy in range(20):
            monkeypatch.setattr(device, "policy", policy)
            actual = test_lstm.run(arguments, gradients, **options)
            test_lstm.assert_results(actual, expected)
    assert changed
