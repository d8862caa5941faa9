"""The benchmarks on a GPU: fastgrad, a CuPy loop as people write it, and torch, by turns in one process.

    python bench/gpu.py                  print the tables
    python bench/gpu.py --json FILE      and write the figures
    python bench/gpu.py --only LSTM      rows whose name has this in it
    python bench/gpu.py --rehearse       on the CPU, with tiny arrays: shows that it runs; its times mean nothing

The clock is a pair of events on the stream that everybody's work is queued on, around as many calls as take some
milliseconds; the host's part shows in the time where it is the slower one. The limits are what this device does in the
same run: its copy from device to device, counting bytes read and written, and its float32 product of 8192-cubed.
torch computes in full float32 (no TF32), as fastgrad does.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # devtools and tests, for a rehearsal

import numpy as np
from fastgrad.kernels import cuda
from inputs import Shape, count, gpt2_shapes, normal

import fastgrad
from fastgrad.profiling import costs, recurrent_ways
from fastgrad.profiling.device_clock import DeviceClock

FASTGRAD, CUPY, LIMIT = "fastgrad", "cupy", "limit"
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row. bytes, flops: what a call must move and compute; runs: who does it, `fastgrad` first.

    results: where the result of a run is found after it, other than in what it returns
    """

    name: str
    bytes: int
    flops: int
    runs: dict[str, Run]
    results: dict[str, Run] = field(default_factory=dict)


@dataclass
class Row:
    """What was measured of a case: medians in milliseconds, and the time that the device's limits allow."""

    name: str
    bytes: int
    flops: int
    milliseconds: dict[str, float] = field(default_factory=dict)
    limit: float = math.nan
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.limit / self.milliseconds.get(FASTGRAD, math.nan)


class Bench:
    """The device under test: its arrays, its clock, and what the cases share."""

    def __init__(self, rehearse: bool) -> None:
        self.small = rehearse
        self.torch = _torch(rehearse)
        if rehearse:
            sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
            import emulated

            emulated.register()
            self.xp: Any = emulated.Module
        else:
            from fastgrad._gpu import require_gpu

            self.xp = require_gpu("bench/gpu.py")
        # On the stream that is current, CuPy's default one: torch's too.
        self.clock = DeviceClock(cuda.device_of(self.xp.empty(1, np.float32)))
        self.device = "cpu" if rehearse else "cuda"

    def array(self, host: np.ndarray) -> Any:
        return self.xp.asarray(host)

    def tensor(self, host: np.ndarray) -> Any:
        return self.torch.tensor(host, device=self.device)

    def milliseconds(self, run: Run, calls: int) -> float:
        """Return the mean time of a call on the device."""
        return self.clock.queued(run, calls) * 1e3

    def by_turns(self, case: Case, turns: int) -> tuple[dict[str, float], dict[str, str]]:
        """Return each contestant's median time, and who failed with what; who computes something else is not timed."""
        failed: dict[str, str] = {}
        calls: dict[str, int] = {}
        runs, expected = case.runs, None
        for name, run in runs.items():
            try:
                returned = run()
                result = sampled(case.results[name]() if name in case.results else returned)
                del returned
                expected = result if expected is None else expected
                check_same(expected, result)
                first = self.milliseconds(run, 2)
            except Exception as error:  # one contestant must not cost the record
                failed[name] = f"{type(error).__name__}: {error}"[:400]
                continue
            calls[name] = 1 if self.small else max(2, min(200, math.ceil(10 / max(first, 1e-3))))
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for turn in range(turns):
            for k in range(len(names)):
                name = names[(turn + k) % len(names)]
                times[name].append(self.milliseconds(runs[name], calls[name]))
        return {name: statistics.median(ms) for name, ms in times.items()}, failed


def sampled(result: Any) -> list[np.ndarray]:
    """Return numbers of a result, 100,000 or so of each array, in host memory."""
    if result is None:
        return []
    if isinstance(result, list | tuple):
        return [part for entry in result for part in sampled(entry)]
    if hasattr(result, "detach"):
        result = result.detach()
    if hasattr(result, "reshape") and result.shape:
        flat = result.reshape(-1)
        result = flat[:: max(1, flat.shape[0] // 100_003)]
    if hasattr(result, "get"):
        result = result.get()
    elif hasattr(result, "cpu"):
        result = result.cpu().numpy()
    return [np.asarray(result, np.float64)]


def check_same(expected: list[np.ndarray], found: list[np.ndarray], tolerance: float = 2e-3) -> None:
    """Raise ArithmeticError where a contestant computes something else than the first one; loose, for float32."""
    for k, (one, other) in enumerate(zip(expected, found, strict=True)):
        largest = np.abs(one).max(initial=0.0)
        difference = np.abs(one - other).max(initial=0.0) if one.shape == other.shape else math.inf
        if not difference <= tolerance * largest:
            raise ArithmeticError(f"result {k} is another: off by {difference:.3g} where the largest is {largest:.3g}")


def _torch(rehearse: bool) -> Any:
    try:
        import torch
    except ImportError:
        return None
    if not rehearse:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return torch


# --- what the device can do


def ceilings(b: Bench) -> dict[str, float]:
    """Return the rates of the device's own copy (bytes read and written) and float32 product, and launch times."""
    n = 1 << (12 if b.small else 28)
    source, target = b.xp.ones(n, np.float32), b.xp.empty(n, np.float32)

    def copy() -> None:
        target[...] = source

    side = 64 if b.small else 8192
    x, y, out = b.xp.ones((side, side), np.float32), b.xp.ones((side, side), np.float32), None
    x[...] = b.array(normal(1, side, side))
    y[...] = b.array(normal(2, side, side))
    out = b.xp.empty((side, side), np.float32)
    tiny = b.xp.ones(64, np.float32)
    sink = b.xp.empty(64, np.float32)
    ms: dict[str, float] = {}
    for name, run in {
        "copy": copy,
        "product": lambda: b.xp.matmul(x, y, out=out),
        "launch": lambda: fastgrad.activation(tiny, "relu", out=sink),
    }.items():
        times, failed = b.by_turns(Case(name, 0, 0, {name: run}), 5)
        if failed:
            raise RuntimeError(f"the limits of the device can't be measured: {failed}")
        ms |= times
    return {
        "copy_GBps": 8 * n / ms["copy"] * 1e-6,
        "product_TFLOPs": 2 * side**3 / ms["product"] * 1e-9,
        "call_us": ms["launch"] * 1e3,
    }


# --- cases


def _lists(b: Bench, shapes: Sequence[Shape], seed: int) -> list[np.ndarray]:
    return [normal(seed + k, *shape, scale=0.02) for k, shape in enumerate(shapes)]


def _cupy_adam(b: Bench, p: list, g: list, m: list, v: list, max_norm: float | None) -> Run:
    """Adam as people write it on CuPy: one line after the other, one array after the other."""
    xp = b.xp
    state = {"t": 0}

    def run() -> None:
        state["t"] += 1
        scale = 1.0
        if max_norm is not None:
            norm = math.sqrt(sum(float((a * a).sum()) for a in g))
            scale = min(1.0, max_norm / (norm + 1e-6))
        for i in range(len(p)):
            grad = g[i] * xp.float32(scale)
            m[i][...] = 0.9 * m[i] + 0.1 * grad
            v[i][...] = 0.999 * v[i] + 0.001 * grad * grad
            mean = m[i] / (1 - 0.9 ** state["t"])
            square = v[i] / (1 - 0.999 ** state["t"])
            p[i] -= 1e-3 * mean / ((square**0.5) + 1e-8)

    return run


def adam(b: Bench, label: str, shapes: Sequence[Shape], max_norm: float | None) -> Case:
    hosts = _lists(b, shapes, 1), _lists(b, shapes, 5000)

    def arrays() -> tuple[list, list, list, list]:
        p, g = ([b.array(a) for a in host] for host in hosts)
        return p, g, [b.xp.zeros(a.shape, a.dtype) for a in p], [b.xp.zeros(a.shape, a.dtype) for a in p]

    p, g, *_ = arrays()
    optimizer = fastgrad.AdamW(p, lr=1e-3, weight_decay=0.0, max_norm=max_norm)
    runs: dict[str, Run] = {FASTGRAD: lambda: optimizer.step(g)}
    p1, g1, m1, v1 = arrays()
    state = {"step": 0}

    def function() -> None:
        state["step"] += 1
        fastgrad.adam_step(p1, g1, m1, v1, step=state["step"], max_norm=max_norm)

    runs["fastgrad, the function"] = function
    results: dict[str, Run] = {FASTGRAD: lambda: p, "fastgrad, the function": lambda: p1}
    naive = arrays()
    runs[CUPY] = _cupy_adam(b, *naive, max_norm)
    results[CUPY] = lambda: naive[0]
    if b.torch:
        for variant in ("fused", "foreach"):
            parameters = [b.torch.nn.Parameter(b.tensor(a)) for a in hosts[0]]
            for parameter, grad in zip(parameters, hosts[1], strict=True):
                parameter.grad = b.tensor(grad)
            own = b.torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, **{variant: True})

            def step(own: Any = own, parameters: list = parameters) -> None:
                if max_norm is not None:
                    b.torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
                own.step()

            runs[f"torch {variant}"] = step
            results[f"torch {variant}"] = lambda parameters=parameters: parameters
    size = count(shapes)
    name = f"{'clip + ' if max_norm is not None else ''}Adam, {label}"
    return Case(name, *costs.adam(size, max_norm is not None), runs, results)


def norm(b: Bench, label: str, shapes: Sequence[Shape]) -> Case:
    hosts = _lists(b, shapes, 1)
    g = [b.array(a) for a in hosts]
    runs: dict[str, Run] = {
        FASTGRAD: lambda: fastgrad.global_norm(g),
        CUPY: lambda: math.sqrt(sum(float((a * a).sum()) for a in g)),
    }
    if b.torch:
        tensors = [b.tensor(a) for a in hosts]
        runs["torch foreach"] = lambda: b.torch.nn.utils.get_total_norm(tensors, foreach=True)
    return Case(f"global norm, {label}", *costs.norm(count(shapes)), runs)


def _cupy_backward(b: Bench, kind: str) -> Callable[[Any, Any], Any] | None:
    xp = b.xp
    if b.small:
        return None
    formulas = {
        "relu": lambda dy, x: dy * (x > 0),
        "sigmoid": lambda dy, x: dy * (1 / (1 + xp.exp(-x))) * (1 - 1 / (1 + xp.exp(-x))),
        "tanh": lambda dy, x: dy * (1 - xp.tanh(x) ** 2),
        "silu": lambda dy, x: dy * (1 / (1 + xp.exp(-x))) * (1 + x * (1 - 1 / (1 + xp.exp(-x)))),
    }
    return formulas.get(kind)


def _torch_backward(b: Bench, kind: str) -> Callable[[Any, Any], Any] | None:
    aten = b.torch.ops.aten
    formulas = {
        "relu": lambda dy, x: aten.threshold_backward(dy, x, 0),
        "gelu": lambda dy, x: aten.gelu_backward(dy, x),
        "gelu_tanh": lambda dy, x: aten.gelu_backward(dy, x, approximate="tanh"),
        "silu": lambda dy, x: aten.silu_backward(dy, x),
        "mish": lambda dy, x: aten.mish_backward(dy, x),
    }
    return formulas.get(kind)


def activation_backward(b: Bench, kind: str, bias: bool) -> Case:
    rows, columns = (64, 64) if b.small else (16384, 4096)
    hosts = normal(1, rows, columns), normal(2, rows, columns)
    dy, x = map(b.array, hosts)
    dx, total = b.xp.empty((rows, columns), np.float32), b.xp.empty(columns, np.float32)
    given = {"bias_grad": total} if bias else {}
    runs: dict[str, Run] = {FASTGRAD: lambda: fastgrad.activation_backward(dy, x, kind, out=dx, **given)}
    formula = _cupy_backward(b, kind)
    if formula is not None:
        runs[CUPY] = lambda: formula(dy, x).sum(axis=0) if bias else formula(dy, x)
    if b.torch:
        backward = _torch_backward(b, kind)
        tdy, tx = map(b.tensor, hosts)
        if backward is not None:
            runs["torch"] = lambda: backward(tdy, tx).sum(0) if bias else backward(tdy, tx)
    name = f"activation backward{' with bias gradient' if bias else ''}, {kind}, {rows} x {columns}"
    return Case(name, *costs.activation_backward(rows * columns, bias), runs, {FASTGRAD: lambda: total} if bias else {})


def cross_entropy(b: Bench) -> Case:
    rows, classes = (8, 40) if b.small else (8192, 50257)
    host, targets = normal(1, rows, classes), np.random.default_rng(2).integers(0, classes, rows)
    logits, labels, out = b.array(host), b.array(targets), b.xp.empty((rows, classes), np.float32)
    results: dict[str, Run] = {FASTGRAD: lambda: out}
    runs: dict[str, Run] = {FASTGRAD: lambda: fastgrad.softmax_cross_entropy(logits, labels, out=out)}
    if b.torch:
        t, y = b.tensor(host).requires_grad_(), b.tensor(targets)

        def run() -> None:
            t.grad = None
            b.torch.nn.functional.cross_entropy(t, y).backward()

        runs["torch"] = run
        results["torch"] = lambda: t.grad
    return Case(
        f"softmax cross-entropy with its gradient, {rows} x {classes}",
        *costs.cross_entropy(rows * classes),
        runs,
        results,
    )


def attention(b: Bench, B: int, H: int, T: int, D: int) -> Case:
    """Forward and backward, causal; torch's has the choice among its kernels for float32."""
    if b.small:
        B, H, T, D = 1, 2, 9, 8
    hosts = [normal(seed, B, H, T, D) for seed in range(1, 5)]
    dy, q, k, v = map(b.array, hosts)

    def run() -> object:
        _, saved = fastgrad.attention(q, k, v, causal=True)
        return tuple(fastgrad.attention_backward(dy, saved))

    runs: dict[str, Run] = {FASTGRAD: run}
    results: dict[str, Run] = {}
    if b.torch:
        tdy, *inputs = map(b.tensor, hosts)
        for one in inputs:
            one.requires_grad_()

        def torch_run() -> None:
            for one in inputs:
                one.grad = None
            b.torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True).backward(tdy)

        runs["torch"] = torch_run
        results["torch"] = lambda: [one.grad for one in inputs]
    forward, backward = (cost(B, H, T, T, D, causal=True) for cost in (costs.attention, costs.attention_backward))
    name = f"attention forward + backward, causal, (B, H, T, D) = ({B}, {H}, {T}, {D})"
    return Case(name, forward.bytes + backward.bytes, forward.flops + backward.flops, runs, results)


def layer_norm(b: Bench) -> Case:
    rows, columns = (8, 40) if b.small else (16384, 1024)
    hosts = [normal(1, rows, columns), normal(2, rows, columns), normal(3, columns), normal(4, columns)]
    dy, x, weight, bias = map(b.array, hosts)

    def run() -> object:
        _, saved = fastgrad.layer_norm(x, weight, bias)
        return tuple(fastgrad.layer_norm_backward(dy, saved))

    runs: dict[str, Run] = {FASTGRAD: run}
    results: dict[str, Run] = {}
    if b.torch:
        tdy, *inputs = map(b.tensor, hosts)
        for one in inputs:
            one.requires_grad_()

        def torch_run() -> None:
            for one in inputs:
                one.grad = None
            b.torch.nn.functional.layer_norm(inputs[0], (columns,), *inputs[1:]).backward(tdy)

        runs["torch"] = torch_run
        results["torch"] = lambda: [one.grad for one in inputs]
    n = rows * columns
    forward, backward = costs.layer_norm(n), costs.layer_norm_backward(n)
    name = f"layer_norm forward + backward, {rows} x {columns}"
    return Case(name, forward.bytes + backward.bytes, forward.flops + backward.flops, runs, results)


def _cupy_lstm(b: Bench, x: Any, w: Any, u: Any, bias: Any, H: int) -> Run:
    """Forward and backward of an LSTM as a loop over the steps, the way it is written by hand."""
    xp = b.xp
    T, B, _ = x.shape

    def sigmoid(a: Any) -> Any:
        return 1 / (1 + xp.exp(-a))

    def run() -> Any:
        h, c = xp.zeros((B, H), np.float32), xp.zeros((B, H), np.float32)
        saved = []
        for t in range(T):
            gates = x[t] @ w.T + h @ u.T + bias
            i, f, g, o = (
                sigmoid(gates[:, :H]), sigmoid(gates[:, H : 2 * H]), xp.tanh(gates[:, 2 * H : 3 * H]),
                sigmoid(gates[:, 3 * H :]),
            )  # fmt: skip
            before, h_before = c, h
            c = f * c + i * g
            th = xp.tanh(c)
            h = o * th
            saved.append((i, f, g, o, before, th, h_before))
        dh, dc = xp.ones((B, H), np.float32), xp.zeros((B, H), np.float32)
        dw, du, db = xp.zeros_like(w), xp.zeros_like(u), xp.zeros_like(bias)
        for t in reversed(range(T)):
            i, f, g, o, before, th, h_before = saved[t]
            do = dh * th * o * (1 - o)
            dc = dc + dh * o * (1 - th * th)
            gates = xp.concatenate([dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), do], axis=1)
            dw += gates.T @ x[t]
            du += gates.T @ h_before
            db += gates.sum(axis=0)
            dh = gates @ u + 1.0
            dc = dc * f
        return dw

    return run


def recurrent(b: Bench, cell: str, T: int, B: int, I: int, H: int) -> Case:  # noqa: E741 - the letters of the field
    if b.small:
        T, B, I, H = 3, 2, 8, 8  # noqa: E741
    gates = 4 if cell == "lstm" else 3
    bound = 1 / math.sqrt(H)
    host_x = normal(1, T, B, I)
    shapes = [(gates * H, I), (gates * H, H), (gates * H,), (gates * H,)]
    hosts = [normal(2 + k, *shape, scale=bound) for k, shape in enumerate(shapes)]
    x, (w, u, bi, bh) = b.array(host_x), map(b.array, hosts)
    dy = b.array(np.ones((T, B, H), np.float32))

    def by(way: str | None) -> Run:
        call = recurrent_ways.Call(cell, x, dy, (w, u, bi, bh), way)
        return lambda: call().dweight_ih

    runs: dict[str, Run] = {FASTGRAD: by(None)}
    results: dict[str, Run] = {}
    for way in () if b.small else (recurrent_ways.STEPWISE, recurrent_ways.PERSISTENT):
        runs[f"fastgrad {way}"] = by(way)
    if cell == "lstm" and not b.small:
        runs[CUPY] = _cupy_lstm(b, x, w, u, bi + bh, H)
    if b.torch:
        layer = getattr(b.torch.nn, cell.upper())(I, H).to(b.device)
        with b.torch.no_grad():
            for parameter, host in zip(layer.parameters(), hosts, strict=True):
                parameter.copy_(b.tensor(host))
        tx, ty = b.tensor(host_x).requires_grad_(), b.tensor(np.ones((T, B, H), np.float32))

        def torch_run() -> None:
            layer.zero_grad()
            tx.grad = None
            layer(tx)[0].backward(ty)

        runs["torch (cuDNN)"] = torch_run
        results["torch (cuDNN)"] = lambda: layer.weight_ih_l0.grad
    return Case(
        f"{cell.upper()} forward + backward, (T, B, I, H) = ({T}, {B}, {I}, {H})",
        *costs.recurrent(cell, T, B, I, H),
        runs,
        results,
    )


SEQUENCES = [
    (1024, 16, 768, 768), (128, 64, 512, 512), (64, 32, 256, 256), (256, 16, 128, 128), (100, 1, 128, 128),
    (64, 64, 1024, 1024),
]  # fmt: skip


def cases(b: Bench) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield what builds each row; rows that matter most come first, in case time runs out."""
    gpt2 = gpt2_shapes(997, 64, 32, 2) if b.small else gpt2_shapes(50257, 1024, 768, 12)
    one = [(4096,)] if b.small else [(124_439_808,)]
    small = [(1000,)] * (7 if b.small else 200)
    several = f"{len(gpt2)} tensors of GPT-2 small"
    yield "Adam one", lambda: adam(b, f"one tensor of {count(one) / 1e6:.0f} M", one, None)
    yield "clip + Adam GPT-2", lambda: adam(b, several, gpt2, 1.0)
    yield "LSTM first", lambda: recurrent(b, "lstm", *SEQUENCES[0])
    for kind in ("gelu", "relu", "silu", "tanh", "sigmoid", "gelu_tanh", "mish"):
        for bias in (False, True):
            yield f"activation {kind}", lambda kind=kind, bias=bias: activation_backward(b, kind, bias)
    for sizes in SEQUENCES[1:]:
        yield "LSTM", lambda sizes=sizes: recurrent(b, "lstm", *sizes)
    for sizes in SEQUENCES:
        yield "GRU", lambda sizes=sizes: recurrent(b, "gru", *sizes)
    for heads in ((8, 12, 1024, 64), (8, 8, 1024, 128)):
        yield "attention", lambda heads=heads: attention(b, *heads)
    yield "layer norm", lambda: layer_norm(b)
    yield "norm", lambda: norm(b, several, gpt2)
    yield "clip + Adam small", lambda: adam(b, f"{len(small)} tensors of 1,000", small, 1.0)
    yield "cross entropy", lambda: cross_entropy(b)


def measure(
    b: Bench, only: str, turns: int, seconds: float, say: Callable[[Row], None], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Return the ceilings and a row for each case, as many as the seconds allow; `keep` gets what there is so far."""
    start = time.monotonic()
    limits = ceilings(b)
    rows: list[Row] = []
    left_out: list[str] = []

    def found() -> dict[str, Any]:
        return {"ceilings": limits, "rows": [asdict(row) for row in rows], "left_out": left_out}

    for label, build in cases(b):
        if only and only.lower() not in label.lower():
            continue
        if time.monotonic() - start > seconds:
            left_out.append(label)
            continue
        case: Case | None = None
        try:
            case = build()
            row = Row(case.name, case.bytes, case.flops)
            row.milliseconds, row.failed = b.by_turns(case, turns)
            row.limit = max(case.bytes / limits["copy_GBps"] * 1e-6, case.flops / limits["product_TFLOPs"] * 1e-9)
        except Exception as error:
            row = Row(label, 0, 0, failed={"all": f"{type(error).__name__}: {error}"[:400]})
        rows.append(row)
        say(row)
        keep(found())
        case = None
        gc.collect()
        if not b.small:
            b.xp.get_default_memory_pool().free_all_blocks()
            if b.torch:
                b.torch.cuda.empty_cache()
    return found()


def line(row: Row) -> str:
    """Return a row as a line of the terminal."""
    own = row.milliseconds.get(FASTGRAD, math.nan)
    others = "  ".join(f"{name} {ms / own:.2f}x" for name, ms in row.milliseconds.items() if name != FASTGRAD)
    trouble = "".join(f"  {name} FAILED: {text}" for name, text in row.failed.items())
    return f"{row.name}: {own:.4g} ms, {row.share:.2f} of the limit  {others}{trouble}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no further row after these")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    b = Bench(arguments.rehearse)

    def keep(found: dict[str, Any]) -> None:
        if arguments.json:
            # NaN is no JSON: of a row that failed whole.
            text = json.dumps(found, indent=1).replace("NaN", "null")
            partial = arguments.json.with_suffix(".partial")
            partial.write_text(text)
            partial.replace(arguments.json)

    result = measure(
        b, arguments.only, arguments.turns, arguments.seconds, lambda row: print(line(row), flush=True), keep
    )
    print(result["ceilings"], *(f"left out: {label}" for label in result["left_out"]), sep="\n")
    keep(result)


if __name__ == "__main__":
    main()
