"""What compiled code reads of Python's objects: the tables of kernels, and the shapes of a call's arrays."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from fastgrad.kernels import objects, runtime
from support import random

import fastgrad
from fastgrad._shapes import Shapes

ARRAY, OTHER = np.arange(6.0), np.zeros((2, 3), np.float32)


def laid(pointers):
    """Return the table that compiled code lays, or None."""
    memory = np.zeros(objects.TABLE_NUMBERS, np.int64)
    possible = runtime._in_turn()(id(pointers), runtime._KINDS_AT, 0, runtime.address(memory))
    return memory if possible else None


def test_a_table_has_what_its_tuple_has():
    kernel = int.__new__(runtime.Kernel, 77)
    pointers = (
        ARRAY,
        5,
        -(1 << 63),
        (1 << 64) - 1,
        True,
        False,
        0.1,
        -0.0,
        None,
        kernel,
        OTHER[1:],
        (7, ARRAY, (0.5,)),
        3,
    )
    table = laid(pointers)
    address = ARRAY.__array_interface__["data"][0]
    number = np.array([0.1, -0.0, 0.5]).view(np.int64).tolist()
    start = runtime.address(table)
    assert table[:11].tolist() == [
        address, 5, -(1 << 63), -1, 1, 0, number[0], number[1], 0, 77, OTHER[1:].__array_interface__["data"][0],
    ]  # fmt: skip
    assert table[11:13].tolist() == [start + 13 * 8, 3] and table[13:16].tolist() == [7, address, start + 16 * 8]
    assert table[16] == number[2]
    made = runtime._table_of(pointers)
    assert made[0][:11].tolist() == table[:11].tolist() and made[0][12] == 3


@pytest.mark.parametrize(
    "entry",
    [
        np.int64(3),
        np.float64(0.5),
        "3",
        [3],
        1j,
        (np.float32(1),),
        (0,) * objects.TABLE_ENTRIES,
        ((),) * objects.TABLES,
    ],
    ids=["int64", "float64", "str", "list", "complex", "inner", "many entries", "many tables"],
)
def test_what_can_not_be_laid(entry):
    assert laid((1, entry)) is None


def steps():
    p, g, m, v = (np.abs(random(k, (5, 7), np.float32)) for k in range(4))
    norm = fastgrad.adam_step([p, p + 1], [g, g], [m, m + 1], [v, v + 1], step=2, max_norm=0.5)
    y, saved = fastgrad.layer_norm(p, g[0])
    dy, *_ = fastgrad.layer_norm_backward(g, saved)
    return [a.tobytes() for a in (p, m, v, norm, y, dy, fastgrad.dropout(g, 0.5, (1 << 64) - 1, 3))]


@pytest.mark.parametrize("threads", [1, 2])
def test_objects_that_can_not_be_read_cost_no_bits(monkeypatch, threads):
    from fastgrad.kernels import activation_cpu

    def whole():
        large = random(3, 300_000, np.float32)
        return [*steps(), fastgrad.activation(large, "elu", alpha=0.5).tobytes()]

    if threads > runtime.max_threads():
        pytest.skip("one thread only")
    before = runtime.num_threads()
    fastgrad.set_num_threads(threads)
    try:
        found = whole()
        monkeypatch.setattr(runtime, "_READABLE", False)
        assert whole() == found
        monkeypatch.undo()
        # What is laid in Python, because an entry is not Python's own, is taken for what it is.
        x, y, z = random(5, 300_000, np.float32), *np.empty((2, 300_000), np.float32)
        kernel = activation_cpu._forward("elu", x.dtype, 1, False)
        for out, kind, half in ((y, int, float), (z, np.int64, np.float64)):
            blocks = -(-x.size // 16384)
            pointers = (x, out), kind(1), (0, kind(blocks)), (kind(x.size),), (half(0.5),), None
            runtime.run(kernel, blocks, pointers)
        np.testing.assert_array_equal(y, z)
    finally:
        fastgrad.set_num_threads(before)


def test_whole_numbers_are_the_same_as_fractions(cpu_backend):
    def run(number):
        p, g, m, v, a = (np.abs(random(k, (5, 7), np.float32)) for k in range(5))
        one, two, none = number(1), number(2), number(0)
        found = [fastgrad.adam_step(p, g, m, v, step=1, lr=one, betas=(none, none), eps=one, weight_decay=two,
                                    decoupled=False, grad_scale=two, max_norm=two)]  # fmt: skip
        fastgrad.adam_step(p, g, m, v, step=1, lr=one, betas=(none, none), eps=one, weight_decay=two)
        fastgrad.sgd_step(p, g, m, lr=one, momentum=one, dampening=two, weight_decay=one)
        fastgrad.rmsprop_step(p, g, v, m, a, lr=one, alpha=one, eps=two, momentum=two, centered=True, weight_decay=one)
        fastgrad.clip_by_value(p, none, two)
        found += [fastgrad.clip_by_norm(p, one), *fastgrad.clip_by_norm(p, one, axis=0)]
        fastgrad.adaptive_clip(g, p, one, one)
        found += [fastgrad.clip_by_global_norm(v, one), fastgrad.activation(p, "elu", alpha=two)]
        found += [fastgrad.activation_backward(g, p, "hardtanh", bias_grad=np.empty(7, np.float32), max_val=two)]
        found += [fastgrad.activation_dropout(p, "elu", none, 1, alpha=two), fastgrad.dropout(p, one, 1)]
        found += [*fastgrad.softmax_cross_entropy(p, np.arange(5), label_smoothing=one)]
        found += [fastgrad.batch_norm(p, eps=one, momentum=one)[0], fastgrad.layer_norm(p, eps=one)[0]]
        return [a.tobytes() for a in (p, g, m, v, a, *found)]

    assert run(int) == run(float)


def test_a_kernel_runs_without_the_lock_of_the_interpreter(monkeypatch):
    # A second thread runs Python's code while the first is in a kernel: it sees an output that is half written.
    before, x = runtime.num_threads(), np.full(1 << 22, 0.5, np.float32)
    fastgrad.activation(x[:9], "mish")
    outs, seen, done = [np.zeros_like(x)], set(), threading.Event()

    def watch():
        while not done.is_set():
            out = outs[0]
            first = bool(out[0])
            seen.add((first, bool(out[-1])))

    fastgrad.set_num_threads(1)
    monkeypatch.setattr("fastgrad.kernels.streams.STREAMING_BYTES", 1 << 40)
    worker = threading.Thread(target=watch)
    worker.start()
    try:
        for _ in range(20):
            outs[0] = np.zeros_like(x)
            fastgrad.activation(x, "mish", out=outs[0])
            if (True, False) in seen:
                break
    finally:
        done.set()
        worker.join()
        fastgrad.set_num_threads(before)
    assert (True, False) in seen


F4 = np.float32
X, W, B = np.zeros((2, 5, 3), F4), np.zeros((8, 3), F4), np.zeros(8, F4)


class Sub(np.ndarray):
    pass


FROZEN = np.zeros(8, F4)
FROZEN.flags.writeable = False


@pytest.mark.parametrize(
    ("words", "arrays", "fits"),
    [
        (("* K", "N K", "N?"), (X, W, B), True),
        (("* K", "N K", "N?"), (X, W, None), True),
        (("* K", "N K", "N?"), (X[0], W, B), True),
        (("* K", "N K", "N?"), (X[0, 0], W, B), True),
        (("* K", "N K", "N?"), (X, None, B), False),
        (("* K", "N K", "N?"), (X, W, B[:7]), False),
        (("* K", "N K", "N?"), (X, W[:, :2].copy(), B), False),
        (("* K", "N K", "N?"), (X, W, B.astype(np.float64)), False),
        (("* K", "N K", "N?"), (X.astype(np.int32), W, B), False),
        (("* K", "N K", "N?"), (X.astype(">f4"), W, B), False),
        (("* K", "N K", "N?"), (X.tolist(), W, B), False),
        (("* K", "N K", "N?"), (X, W, 3.0), False),
        (("* K", "N K", "N?"), (np.float32(1), W, B), False),
        (("* K", "N K", "N?"), (np.zeros((), F4), W, B), False),
        (("* K", "N K", "N?"), (X.view(Sub), W, B), False),
        (("* K", "N K", "N?"), (X[:, ::2], W, B), False),
        (("* K", "N K", "N?"), (X, np.asfortranarray(W), B), False),
        (("* K", "N K", "N?"), (X, W, np.zeros((8, 1), F4)), False),
        (("* N", "* K"), (np.zeros((2, 5, 8), F4), X), True),
        (("* N", "* K"), (np.zeros((2, 4, 8), F4), X), False),
        (("* N", "* K"), (np.zeros((5, 8), F4), X), False),
        (("* N", "* K"), (np.zeros((1, 2, 5, 8), F4), X), False),
        (("4H H", "4H?"), (np.zeros((8, 2)), np.zeros(8)), True),
        (("4H H", "4H?"), (np.zeros((9, 2)), np.zeros(9)), False),
        (("4H H", "4H?"), (np.zeros((8, 3)), np.zeros(8)), False),
        (("4H", "H"), (np.zeros(0), np.zeros(0)), True),
        (("4H", "H"), (np.zeros(9), np.zeros(2)), False),
        (("B C *", "C!?"), (X, np.zeros(5, F4)), True),
        (("B C *", "C!?"), (X[0], np.zeros(3, F4)), True),
        (("B C *", "C!?"), (B, np.zeros(8, F4)), False),
        (("B C *", "C!?"), (np.zeros((2, 8, 1, 1, 1, 1), F4), B), True),
        (("B C *", "C!?"), (np.zeros((2, 8), F4), FROZEN), False),
        (("B C *", "C"), (np.zeros((2, 8), F4), FROZEN), True),
    ],
)
def test_shapes(words, arrays, fits):
    shapes = Shapes(*words)
    for _ in range(2):  # what one call has left matters to no other
        assert shapes.fit(*arrays) is fits
        shapes.fit(*[np.zeros((3, 7))] * len(words))
    with fastgrad.backend("reference"):
        assert shapes.fit(*arrays) is False
