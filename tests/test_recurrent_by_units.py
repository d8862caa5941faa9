"""LSTM and GRU whose hidden units are split over threads that meet after each step: few sequences, large weights."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from fastgrad.kernels import gru_cpu, gru_units_cpu, lstm_cpu, lstm_units_cpu, meeting, recurrent_cpu, runtime
from support import random

import fastgrad

pytestmark = pytest.mark.skipif(runtime.max_threads() < 2, reason="one processor")

# (T, B, I, H): hidden sizes that are and are not multiples of a panel, fewer units than threads take
SIZES = [(5, 1, 7, 32), (4, 1, 9, 128), (3, 2, 5, 70), (6, 3, 4, 33), (2, 5, 8, 257), (3, 1, 0, 64), (2, 1, 3, 5)]


@pytest.fixture
def threads():
    before = runtime.num_threads()
    fastgrad.set_num_threads(runtime.max_threads())
    if runtime.team_size() < 2:
        pytest.skip("no threads that meet")
    yield runtime.max_threads()
    fastgrad.set_num_threads(before)


@pytest.fixture
def split(monkeypatch):
    """Set how the units are split: by what `parts_of_units` returns."""

    def set_split(parts):
        for module in (lstm_cpu, gru_cpu):
            monkeypatch.setattr(module, "parts_of_units", parts)

    return set_split


def results_of(cell, sizes, dtype, **options):
    T, B, I, H = sizes  # noqa: E741
    rows = {"lstm": 4, "gru": 3}[cell] * H
    shapes = [(T, B, I), (rows, I), (rows, H), (rows,), (rows,), (T, B, H), (B, H), (B, H), (B, H), (B, H)]
    x, w_ih, w_hh, b_ih, b_hh, dy, *states = (random(k, shape, dtype, scale=0.5) for k, shape in enumerate(shapes))
    h, c, dh, dc = states
    if cell == "lstm":
        y, last, saved = fastgrad.lstm(x, h, c, w_ih, w_hh, b_ih, b_hh, **options)
        return [y.copy(), *last, *fastgrad.lstm_backward(dy, dh, dc, saved)]
    y, hn, saved = fastgrad.gru(x, h, w_ih, w_hh, b_ih, b_hh, **options)
    return [y.copy(), hn, *fastgrad.gru_backward(dy, dh, saved)]


def bits(results):
    return b"".join(a.tobytes() for a in results)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_bits_are_those_of_sequences(threads, split, dtype, cell, sizes, padded, reverse):
    lengths = np.random.default_rng(1).integers(0, sizes[0] + 1, sizes[1]) if padded else None
    split(lambda *sizes: 0)
    expected = bits(results_of(cell, sizes, dtype, lengths=lengths, reverse=reverse))
    for parts in range(2, threads + 1):
        split(lambda *sizes, parts=parts: parts)
        assert bits(results_of(cell, sizes, dtype, lengths=lengths, reverse=reverse)) == expected


def test_which_sizes_go_by_units(threads):
    f4 = np.dtype(np.float32)
    parts = recurrent_cpu.parts_of_units
    assert parts(1, 4, 256, f4) == min(threads, 8) and parts(1, 4, 64, f4) == 0
    most = min(threads, 4)  # 128 units are four panels: more threads than that go by sequences
    assert parts(2 * most - 1, 4, 128, f4) == most and parts(2 * most, 4, 128, f4) == 0
    assert parts(4 * threads + 1, 4, 1024, f4) == 0 and parts(4 * threads, 4, 1024, f4) > 1
    assert parts(1, 4, 0, f4) == parts(0, 4, 0, f4) == parts(0, 4, 256, f4) == 0
    fastgrad.set_num_threads(1)
    assert parts(1, 4, 256, f4) == 0


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_many_steps_against_one_thread(threads, cell):
    """Enough meetings for one that is left out to show: the states of others would be read too early."""
    sizes = (400, 1, 3, 256)
    found = bits(results_of(cell, sizes, np.float32))
    fastgrad.set_num_threads(1)
    assert bits(results_of(cell, sizes, np.float32)) == found


def test_several_threads_of_python_at_once(threads):
    expected = bits(results_of("lstm", (50, 1, 3, 256), np.float32))
    found = []
    workers = [
        threading.Thread(target=lambda: found.append(bits(results_of("lstm", (50, 1, 3, 256), np.float32))))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert found == [expected] * 3


def test_what_comes_between_steps_goes_by_sequences(threads, monkeypatch):
    """Zoneout, a bound of the state's gradient and the paper's GRU are of the other kernels."""

    def refuse(*key):
        raise AssertionError("these kernels know nothing of what comes between steps")

    def gru_of(refused, bound=None, **options):
        with monkeypatch.context() as patch:
            for name in refused:
                patch.setattr(gru_units_cpu, name, refuse)
            _, _, saved = fastgrad.gru(x, h, *weights, **options)
            fastgrad.gru_backward(None, h, saved, state_grad_clip=bound)

    def lstm_of(refused, bound=None, **options):
        with monkeypatch.context() as patch:
            for name in refused:
                patch.setattr(lstm_units_cpu, name, refuse)
            _, _, saved = fastgrad.lstm(x, h, h, *wide, **options)
            fastgrad.lstm_backward(None, h, None, saved, state_grad_clip=bound)

    x, h = random(0, (3, 1, 4), np.float32), random(1, (1, 256), np.float32)
    weights = random(2, (768, 4), np.float32), random(3, (768, 256), np.float32)
    wide = random(4, (1024, 4), np.float32), random(5, (1024, 256), np.float32)
    with pytest.raises(AssertionError, match="between steps"):
        lstm_of(["forward"])
    lstm_of(["forward", "backward"], zoneout_c=0.5, seed=1)
    lstm_of(["backward"], bound=0.1)
    with pytest.raises(AssertionError, match="between steps"):  # these sizes go by units
        gru_of(["forward"])
    gru_of(["forward", "backward"], zoneout_h=0.5, seed=1)
    gru_of(["forward", "backward"], reset_after=False)
    gru_of(["backward"], bound=0.1)


TEAMS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, zlib
from test_recurrent_by_units import bits, results_of
print([zlib.crc32(bits(results_of(cell, (20, 1, 5, 256), np.float32))) for cell in ("lstm", "gru")])
"""


def test_teams_of_other_sizes():
    """More threads than processors, fewer than asked for, threads that can't meet."""
    tests = os.path.dirname(__file__)

    def run(**environment):
        command = [sys.executable, "-c", TEAMS, tests]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    alone = run(NUMBA_NUM_THREADS="1")
    assert run(NUMBA_NUM_THREADS="5") == alone
    assert run(NUMBA_NUM_THREADS="4", OMP_THREAD_LIMIT="1") == alone
    assert run(NUMBA_NUM_THREADS="4", OMP_THREAD_LIMIT="3") == alone
    assert run(NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER="workqueue") == alone


@pytest.mark.parametrize(
    ("triple", "instruction"),
    [("x86_64-unknown-linux-gnu", "pause"), ("aarch64-unknown-linux-gnu", "isb"), ("ppc64le-unknown-linux-gnu", "")],
)
def test_who_waits_pauses(triple, instruction):
    """Without a pause the 2,000 turns of a wait would be over in some microseconds."""
    from llvmlite import binding, ir

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module("waiting")
    module.triple = triple
    builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(ir.VoidType(), ()), "wait").append_basic_block())
    meeting.emit_pause(builder, triple.partition("-")[0])
    builder.ret_void()
    machine = binding.Target.from_triple(triple).create_target_machine()
    assembly = machine.emit_assembly(binding.parse_assembly(str(module)))
    if instruction:
        assert instruction in assembly
    else:
        assert "call" not in assembly
