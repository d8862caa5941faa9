"""Bytes and flops of operations, against formulas written out and against the arrays themselves."""

from __future__ import annotations

import numpy as np
import pytest

from fastgrad import _warmup
from fastgrad.profiling import costs, limits, ops
from fastgrad.profiling.costs import Cost


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (costs.activation(100), (800, 0)),
        (costs.activation_backward(100), (1200, 0)),
        (costs.activation_backward(100, True, size=8), (2400, 100)),
        (costs.prelu_backward(100), (1200, 200)),
        (costs.glu(100), (1200, 100)),
        (costs.glu_backward(100), (2000, 300)),
        (costs.adam(100), (2800, 1200)),
        (costs.adam(100, clipped=True), (3200, 1500)),
        (costs.sgd(100), (2000, 400)),
        (costs.norm(100), (400, 200)),
        (costs.linear(2, 3, 5), (4 * (6 + 15 + 5 + 10), 60)),
        (costs.linear_backward(2, 3, 5), (4 * (10 + 12 + 30 + 5), 130)),
        (costs.attention(2, 3, 5, 7, 4), (4 * 2 * 3 * 4 * (10 + 14), 4 * 2 * 3 * 5 * 7 * 4)),
        (costs.attention_backward(2, 3, 5, 7, 4, causal=True), (4 * 2 * 3 * 4 * 48, 5 * 2 * 3 * 5 * 7 * 4)),
        (costs.embedding(7, 3), (8 * 21 + 56, 0)),
        (costs.embedding_backward(7, 3, 5), (4 * 21 + 56 + 60, 21)),
        (costs.recurrent("lstm", 2, 3, 5, 7), (8 * (2 * 3 * 12 + 28 * 14), 6 * 4 * 2 * 3 * 7 * 12)),
    ],
)
def test_formulas(found, expected):
    assert tuple(found) == expected


def test_forward_and_backward_are_the_whole():
    for cell in costs.GATES:
        whole = costs.recurrent(cell, 4, 3, 8, 16)
        assert costs.recurrent_forward(cell, 4, 3, 8, 16) + costs.recurrent_backward(cell, 4, 3, 8, 16) == whole


def test_the_rate_is_given_in_the_unit_of_what_limits():
    assert Cost(10**9, 10**9).rate(0.5) == "2.0 GB/s"
    assert Cost(10**9, 10**10).rate(0.5) == "20.0 GFLOP/s"


@pytest.mark.parametrize("name", sorted(ops.OPS))
def test_every_operation_runs_and_its_arrays_fit_its_bytes(name):
    """The bytes are those of inputs and results, without rows and columns; more where an array is read twice."""
    case = ops.OPS[name].build(1 << 12)
    results = case.bind(*case.inputs)()
    case.bind(*case.inputs)()
    arrays = [*case.inputs, *_arrays_in(results), *(case.inputs[k] for k in case.changed)]
    largest = max(a.size for a in case.inputs)
    moved = sum(a.nbytes for a in arrays if a.size > largest / 2 and a.dtype.kind == "f")
    if not name.startswith(("lstm", "gru", "linear", "batch_norm", "layer_norm_lstm")):
        assert 0.95 * moved <= case.cost.bytes <= 2 * moved + 100, (moved, case.cost)
    else:
        assert 0.4 * moved <= case.cost.bytes <= 2.5 * moved, (moved, case.cost)


def _arrays_in(value):
    if isinstance(value, tuple | list):
        for part in value:
            yield from _arrays_in(part)
    elif isinstance(value, np.ndarray):
        yield value


def test_every_kernel_of_warmup_is_measured():
    """A new operation is to be added to fastgrad/profiling/cases and its table in ops.py."""
    covered = {name.removesuffix("_backward") for name in ops.OPS} | {"activation"}
    assert set(_warmup.STEMS) <= covered


def test_names_are_resolved_and_unknown_ones_explained():
    assert [op.name for op in ops.chosen(["Adam", "adam_step", "activation_backward"])] == [
        "adam_step",
        "gelu_backward",
    ]
    assert [op.name for op in ops.chosen([])] == list(ops.DEFAULT)
    assert len(ops.chosen(["all"])) == len(ops.OPS)
    with pytest.raises(ValueError, match="unknown operation 'lstn': did you mean lstm") as caught:
        ops.chosen(["gelu", "lstn"])
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(("reads", "writes", "in_place"), [(1, 1, False), (2, 1, False), (4, 3, True)])
def test_the_limit_moves_what_it_says(reads, writes, in_place):
    """Each stream written gets another's bits: nothing was dropped."""
    n = 10_000
    streams = [np.full(n, k + 1, np.float32) for k in range(reads if in_place else reads + writes)]
    targets = streams[:writes] if in_place else streams[reads:]
    before = [t.copy() for t in targets]
    limits.moving(n, reads, writes, in_place=in_place, streams=streams)()
    for target, old in zip(targets, before, strict=True):
        assert ((target == target[0]).all() and (target != old).all()) or reads == writes == 1
    if reads == writes == 1:
        assert (streams[1] == 1).all()
