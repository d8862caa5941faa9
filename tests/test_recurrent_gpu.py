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
