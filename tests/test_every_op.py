"""Every operation on an emulated device: blocks small and large, several schedules, results compared with the CPU's."""

from __future__ import annotations

import functools

import backends
import numpy as np
import pytest

REASON = backends.missing("emulated")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@functools.cache
def on_the_cpu(dtype):
    from devtools.every_op import every_op

    return every_op(np, dtype)


@pytest.mark.parametrize(
    ("dtype", "threads", "policy"),
    [
        (np.float32, 32, 0),  # threads and blocks ascending
        (np.float32, 256, 3),  # random: the blocks of a real device
        (np.float32, 1024, 1),  # descending
        (np.float64, 256, 2),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_operation(monkeypatch, dtype, threads, policy):
    import emulated

    from devtools.every_op import compare, every_op

    backends.stand_in(monkeypatch, "emulated")
    monkeypatch.setattr(emulated.DEVICE, "block_limit", threads)
    monkeypatch.setattr(emulated.DEVICE, "policy", policy)
    compare(every_op(emulated.Module, dtype), on_the_cpu(dtype), dtype)


def test_a_wrong_result_is_seen():
    from devtools.every_op import compare

    right = [[np.ones(3), np.zeros(0)], [np.float64(2.0) * np.ones(())]]
    compare(right, right, np.float64)
    for wrong in ([[np.ones(3), np.zeros(0)], [np.full((), 2.1)]], [[np.full(3, np.nan), np.zeros(0)], right[1]],
                  [[np.ones(3)], right[1]], right[:1]):  # fmt: skip
        with pytest.raises(AssertionError):
            compare(wrong, right, np.float64)
