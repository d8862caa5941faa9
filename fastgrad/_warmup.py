"""Compile ahead: `warmup` and its report.

On an empty cache 168 kernels of float32 took 20.5 s in one process and 11.4 s in two (two cores of a Zen 5 server).
Numba compiles under a global lock, so only processes help: each costs 0.7 s for its start, and leaves its kernels in
the cache, from where this process loads them in half a millisecond each.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad import _machine
from fastgrad._checks import FLOATS
from fastgrad.activations import KINDS

if TYPE_CHECKING:
    from fastgrad.kernels.runtime import Build, Factory

# What each function runs: kernel modules, `<stem>_cpu`. Those that take longest to compile come first.
STEMS: dict[str, tuple[str, ...]] = {
    "gru": ("gru", "gru_cell", "gru_units", "cell", "matmul", "linear", "rows", "between_steps", "dropout"),
    "lstm": ("lstm", "lstm_cell", "lstm_units", "cell", "matmul", "linear", "rows", "between_steps", "dropout"),
    "layer_norm_lstm": ("layer_norm_lstm", "layer_norm", "matmul", "linear", "rows", "between_steps", "dropout"),
    "attention": ("attention",),
    "linear": ("linear", "matmul", "rows"),
    "activation": ("activation", "rows"),
    "prelu": ("prelu", "rows"),
    "swiglu": ("glu",),
    "geglu": ("glu",),
    "embedding": ("embedding",),
    "layer_norm": ("layer_norm", "rows"),
    "batch_norm": ("batch_norm",),
    "dropout": ("dropout",),
    "activation_dropout": ("activation_dropout", "rows"),
    "softmax_cross_entropy": ("cross_entropy",),
    "binary_cross_entropy_with_logits": ("binary_cross_entropy",),
    "mse": ("mse",),
    "health": ("health", "norm"),
    "global_norm": ("norm",),
    "clip_by_global_norm": ("norm", "clip"),
    "clip_by_norm": ("norm", "clip", "units"),
    "adaptive_clip": ("units",),
    "clip_by_value": ("clip",),
    "apply_masks": ("mask",),
    "adam_step": ("adam", "norm", "health"),
    "sgd_step": ("sgd", "norm", "health"),
    "rmsprop_step": ("rmsprop", "norm", "health"),
}
_GLU_KINDS = {"swiglu": "silu", "geglu": "gelu"}
# With a dropout; the others are compiled when first called: all of them would double what `warmup` has to do.
_DROPPED_KINDS = ["relu", "gelu", "silu"]
_OTHER_NAMES = {
    "Adam": "adam_step",
    "AdamW": "adam_step",
    "SGD": "sgd_step",
    "RMSprop": "rmsprop_step",
    "LSTM": "lstm",
    "GRU": "gru",
    "LayerNormLSTM": "layer_norm_lstm",
    "Linear": "linear",
    "GradientNorm": "health",
    "Embedding": "embedding",
    "LayerNorm": "layer_norm",
    "BatchNorm": "batch_norm",
    "Dropout": "dropout",
    "MultiHeadAttention": "attention",
    "PReLU": "prelu",
}

# Kernels for each process: with 4 a second one just pays. Nine light kernels took 1.06 s in one process, 0.99 s in two;
# the eleven of lstm and gru 5.6 and 3.7.
SMALLEST_SHARE = 4
MOST_PROCESSES = 8  # of some 200 MB each
LONGEST_WAIT = 30.0  # seconds for the last answer of a helping process; the longest seen was 1.5
ANSWER = "fastgrad:"  # begins each line that a helping process writes to this one

Job = tuple["Factory", tuple[Hashable, ...]]


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What `warmup` did for one kernel.

    name: of the kernel, with what it was specialised for.
    source: "compiled", "loaded" (from the cache) or "ready" (this process had it already).
    seconds: of compiling or loading it, in the process that compiled it.
    """

    name: str
    source: str
    seconds: float


@dataclass(frozen=True)
class WarmupReport:
    """What `warmup` did; print it.

    kernels: one entry for each kernel.
    seconds: of the whole call.
    processes: how many compiled, this one included.
    cache: folder that compiled kernels are loaded from, None if there is none.
    kept: whether what was compiled is put there for the next process.
    trouble: why a cache folder was passed over or can't be written.
    """

    kernels: tuple[KernelReport, ...]
    seconds: float
    processes: int
    cache: Path | None
    kept: bool
    trouble: tuple[str, ...]

    def count(self, source: str) -> int:
        """Return how many kernels were "compiled", "loaded" or "ready"."""
        return sum(kernel.source == source for kernel in self.kernels)

    def __str__(self) -> str:
        counts = (
            f"{self.count('compiled')} compiled, {self.count('loaded')} loaded from the cache, "
            f"{self.count('ready')} ready before"
        )
        where = f"in {self.processes} processes" if self.processes > 1 else "in this process"
        lines = [f"{len(self.kernels)} kernels: {counts}; {self.seconds:.2f} s {where}"]
        missing = "" if self.kept else ", read only: each process compiles anew what it lacks"
        lines.append(f"cache: {self.cache}{missing}" if self.cache else "cache: none, each process compiles anew")
        lines += [f"cache: {trouble}" for trouble in self.trouble]
        lines += ["", f"{'seconds':>8}  {'':8}  kernel"]
        lines += [f"{kernel.seconds:8.3f}  {kernel.source:8}  {kernel.name}" for kernel in self.kernels]
        return "\n".join(lines)


def known_names() -> list[str]:
    """Return what `warmup` takes, without the endings _backward and _cell."""
    return [*STEMS, *KINDS, *_OTHER_NAMES]


def _plain(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"names: expected strings such as 'lstm', got {type(name).__qualname__}")
    plain = _OTHER_NAMES.get(name) or name.removesuffix("_backward").removesuffix("_cell")
    if plain not in STEMS and plain not in KINDS:
        raise ValueError(f"names: expected some of {', '.join(known_names())}; got {name!r}")
    return plain


def _keys(factory: Factory, kinds: Sequence[str], dtype: np.dtype[Any]) -> Iterator[tuple[Hashable, ...]]:
    for kind in kinds if "kind" in factory.parameters else ("",):
        values: list[Sequence[Hashable]] = []
        for name, type_ in factory.parameters.items():
            if name in factory.values:
                values.append(factory.values[name])
            elif name == "dtype":
                values.append((dtype,))
            elif name == "kind":
                values.append((kind,))
            elif name == "params":
                values.append((len(KINDS[kind]),))
            elif type_ == "bool":
                values.append((False, True))
            else:
                raise NotImplementedError(f"{factory.name}: say which values it is for, @runtime.kernel({name}=...)")
        yield from itertools.product(*values)


def plan(names: Sequence[str], dtype: np.dtype[Any]) -> dict[str, Job]:
    """Return the kernels that functions run, by name: every variant in this dtype."""
    from fastgrad.kernels import runtime

    jobs: dict[str, Job] = {}
    for name in dict.fromkeys(map(_plain, names or STEMS)):
        for stem in STEMS.get(name, STEMS["activation"]):
            importlib.import_module(f"fastgrad.kernels.{stem}_cpu")
            kinds = [_GLU_KINDS[name]] if stem == "glu" else [name] if name in KINDS else list(KINDS)
            kinds = _DROPPED_KINDS if stem == "activation_dropout" else kinds
            for factory in [f for f in runtime.factories.values() if f.name.startswith(f"{stem}_cpu.")]:
                for key in _keys(factory, kinds, dtype):
                    jobs.setdefault(factory.kernel_name(key), (factory, key))
    return jobs


def warmup(*names: str, dtype: str | type | np.dtype[Any] = "float32", processes: int | None = None) -> WarmupReport:
    """Compile kernels ahead, or load them from the cache, so that the first training step compiles nothing.

    Covers forward and backward, the forms for small and for large arrays, and every variant of an optimizer. Where many
    kernels are not in the cache, further processes help to fill it. Call it in the process that trains: after a fork,
    not before. Of the activations with a dropout it compiles relu, gelu and silu.

    Args:
        names: public functions ("lstm", "adam_step", ...), kinds of activation ("gelu", ...), layers and optimizers
            ("Linear", "Adam", ...). Without any: all of them.
        dtype: float32 or float64.
        processes: at most so many, this one included; 1 starts none. None: as many as there are processors, as far as
            there is work for them.

    Returns:
        A report: for each kernel whether it was compiled or loaded and in how many seconds, and where the cache lies.
        `print` shows it as a table. Where no cache can be written, all is compiled here, and the report says why.
        What compiling costs shows with FASTGRAD_CACHE_DIR set to an empty folder and processes=1.

    Raises:
        TypeError: a name is no string, the dtype is not float32 or float64, processes is no integer.
        ValueError: a name is not known, processes is less than 1.
    """
    dtype = _dtype(dtype)
    if processes is not None and (not isinstance(processes, int) or isinstance(processes, bool)):
        raise TypeError(f"processes: expected an integer or None, got {type(processes).__qualname__}")
    if processes is not None and processes < 1:
        raise ValueError(f"processes: expected 1 or more, got {processes}")
    plain = [_plain(name) for name in names]
    from fastgrad.kernels import lists, runtime, shapes  # noqa: F401  what the first and last compile is to be prepared

    start = time.perf_counter()
    state = runtime.cache_state()
    jobs = plan(plain, dtype)
    missing = deque(name for name, (f, key) in jobs.items() if key not in f.kernels and not f.is_cached(key))
    helpers = _helpers(len(missing), processes) if state.written else 0
    done: dict[str, KernelReport] = {}
    with _help(helpers, [str(state.written), dtype.name, *plain], missing, done) as team:
        before = len(runtime.builds)
        runtime.prepare()
        runners = [_report(build) for build in runtime.builds[before:]]
        if missing:
            _start_compiler()
        while (name := _next(missing)) is not None:
            done[name] = _make(name, jobs)
    for name in jobs:
        made = _make(name, jobs)  # loads what a helper compiled
        done.setdefault(name, made)
    reports = (*runners, *(done[name] for name in jobs))
    folder = state.written or next(iter(state.folders), None)
    seconds = time.perf_counter() - start
    processes = 1 + sum(helper.helped for helper in team)
    return WarmupReport(reports, seconds, processes, folder, state.written is not None, state.trouble)


def _dtype(dtype: Any) -> np.dtype[Any]:
    with contextlib.suppress(TypeError):
        if dtype is not None and np.dtype(dtype) in FLOATS:  # NumPy takes None for float64
            return np.dtype(dtype)
    raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")


def _report(build: Build) -> KernelReport:
    return KernelReport(build.name, "compiled" if build.compiled else "loaded", build.seconds)


def _make(name: str, jobs: dict[str, Job]) -> KernelReport:
    """Compile or load a kernel."""
    from fastgrad.kernels import runtime

    factory, key = jobs[name]
    before = len(runtime.builds)
    if key not in factory.kernels:
        factory.get(*key)
    build = next((b for b in runtime.builds[before:] if b.name == name), None)
    return KernelReport(name, "ready", 0.0) if build is None else _report(build)


def _start_compiler() -> None:
    """Import Numba, which is not to count as the first kernel's time."""
    importlib.import_module("fastgrad.kernels.compiler")


def _next(pending: deque[str]) -> str | None:
    try:
        return pending.popleft()
    except IndexError:
        return None


# --- further processes


def _helpers(missing: int, processes: int | None) -> int:
    """Return how many further processes are worth their start, and can be started."""
    wanted = min(_machine.usable_cores(), MOST_PROCESSES) if processes is None else processes
    # Inside an application sys.executable is that application, not a Python to give work to.
    python = Path(sys.executable or "").name.lower().startswith(("python", "pypy")) and not hasattr(sys, "frozen")
    return max(0, min(wanted, missing // SMALLEST_SHARE) - 1) if python else 0


class _Helper:
    """A process that takes names off `pending` and compiles them into the cache, and the thread that talks to it.

    What goes wrong with it costs its help: what is not `done` is left to the caller.
    """

    def __init__(self, arguments: list[str], pending: deque[str], done: dict[str, KernelReport]):
        self.pending, self.done = pending, done
        self.busy = False  # has a kernel, or is about to find that there is none left
        self.helped = False
        # The program's own file is not run again, as multiprocessing would: it may lack `if __name__ == "__main__"`.
        path = [entry for entry in sys.path if isinstance(entry, str)]
        code = f"import sys; sys.path[:] = {path!r}; from fastgrad._warmup import serve; serve(*{arguments!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.thread = threading.Thread(target=self._feed, daemon=True)
        self.thread.start()

    def _feed(self) -> None:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin and stdout
        with contextlib.suppress(OSError, ValueError), stdin, stdout:
            answer = _answer(stdout)  # it is ready
            self.busy = True
            while answer is not None and (name := _next(self.pending)) is not None:
                stdin.write(f"{name}\n")
                stdin.flush()
                answer = _answer(stdout)
                if answer is not None:
                    self.done[name] = KernelReport(name, *json.loads(answer))
                    self.helped = True
        self.busy = False

    def finish(self) -> None:
        """Wait for its last kernel; one that is still starting is not waited for."""
        if self.busy:
            self.thread.join(LONGEST_WAIT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def _help(
    count: int, arguments: list[str], pending: deque[str], done: dict[str, KernelReport]
) -> Iterator[list[_Helper]]:
    """Let `count` processes help until the block ends."""
    team: list[_Helper] = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                team.append(_Helper(arguments, pending, done))
        yield team
        for helper in team:
            helper.finish()
    finally:
        for helper in team:
            helper.end()


def _answer(lines: Iterable[str]) -> str | None:
    """Return the next line that a helper meant for us, or None if it has gone."""
    return next((line.removeprefix(ANSWER) for line in lines if line.startswith(ANSWER)), None)


def serve(folder: str, dtype: str, *names: str) -> None:
    """Be a helping process: compile the kernels named on stdin into the cache, and say so on stdout."""
    from fastgrad.kernels import runtime

    if str(runtime.cache_state().written) != folder:
        return  # Numba was configured from inside the other process: what is compiled here would not be found there
    jobs = plan(names, np.dtype(dtype))
    runtime.prepare(parallel=False)
    _start_compiler()
    print(ANSWER, flush=True)
    for line in sys.stdin:
        made = _make(line.strip(), jobs)
        print(ANSWER + json.dumps([made.source, made.seconds]), flush=True)
