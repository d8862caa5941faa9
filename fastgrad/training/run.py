"""The main job: `fastgrad train` from its options to its last line: clock, files, signals and output."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from fastgrad._gpu import gpu_status
from fastgrad.monitor import GradientMonitor
from fastgrad.training import checkpoint
from fastgrad.training.compare import compare
from fastgrad.training.curve import save_curve
from fastgrad.training.errors import Diverged, UserError
from fastgrad.training.model import Config
from fastgrad.training.profile import SKIPPED, StepProfiler
from fastgrad.training.progress import Goal, Progress, duration
from fastgrad.training.sample import sample
from fastgrad.training.text import BUILT_IN, Corpus, read_text
from fastgrad.training.trainer import BACKENDS, Trainer

# Steps between two looks at the gradients, which take 0.2 ms each: a thousandth of training.
LOOK_EVERY = 10

__all__ = ["DEFAULT_MINUTES", "DEFAULT_STEPS", "Options", "Stop", "prepare_folder", "train"]

# Whichever comes first where neither is given. With loading, comparison and sample around it, a default run is over in
# about 90 seconds; from some 3,500 steps on, the default model learns the default text by heart and validation rises.
DEFAULT_MINUTES, DEFAULT_STEPS = 1.25, 3500


@dataclass(frozen=True)
class Options:
    """The options of `fastgrad train` as given; None, or no entry in `model`: the default, or the checkpoint's."""

    source: str | None = None
    out: Path = Path("runs/char-lstm")
    resume: bool = False
    overwrite: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    minutes: float | None = None
    backend: str | None = None
    validate_every: int = 100
    save_every: float = 30.0
    sample_length: int = 500
    temperature: float = 0.8
    comparison: bool = True
    profile: bool = False


class Stop:
    """A context in which the first SIGINT or SIGTERM is only noted in `received`; a second one acts as ever."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()


@dataclass
class Session:
    """A trainer with the plan and the clock that go into its checkpoint."""

    trainer: Trainer
    source: str
    goal: Goal
    seconds: float
    folder: Path
    # The step of the newest checkpoint of this run, None while there is none.
    saved: int | None = None
    profiler: StepProfiler | None = None

    def save(self) -> None:
        """Write the checkpoint. Raises UserError when that fails; the former one is then still whole."""
        arrays, contents = self.trainer.capture()
        plan = {"steps": self.goal.steps, "seconds": self.goal.seconds}
        extra = {"text": self.source, "backend": self.trainer.backend, "plan": plan, "trained_seconds": self.seconds}
        try:
            checkpoint.save(self.folder, arrays, {**contents, **extra}, self.trainer.step)
        except OSError as error:
            raise UserError(
                f"{self.folder} can't be written: {error.strerror}; an earlier checkpoint in it is still whole"
            ) from None
        self.saved = self.trainer.step


def train(options: Options) -> int:
    """Run `fastgrad train`, and return its exit status.

    Raises UserError for what is wrong with the input, options or folder, Diverged when the loss is not a number.
    """
    with contextlib.ExitStack() as held:
        return _train(options, _resumed(options, held) if options.resume else _fresh(options, held))


def _train(options: Options, session: Session) -> int:
    trainer, config = session.trainer, session.trainer.config
    sizes = f"{config.model.upper()}, {config.embedding} -> {config.hidden} x {config.layers}"
    if config.model == "transformer":
        sizes = (
            f"transformer, {config.layers} blocks of {config.hidden}, {config.heads} heads, {config.seq_length} places"
        )
    size = sum(parameter.data.size for parameter in trainer.model.parameters())
    _say(
        f"text: {session.source}, {len(trainer.corpus.codes):,} characters, {len(trainer.corpus.vocabulary)} different"
    )
    _say(
        f"model: {sizes} -> {len(trainer.corpus.vocabulary)}, {size:,} parameters, {config.dtype}, "
        f"backend {trainer.backend}"
    )
    if options.resume:
        _say(f"resumed at step {trainer.step:,} after {duration(session.seconds)} of training")
    monitor = GradientMonitor(trainer.optimizer, every=LOOK_EVERY, model=trainer.model, first_step=trainer.step)
    if options.profile:
        session.profiler = StepProfiler(trainer)
    with Stop() as stop:
        try:
            _loop(session, options, stop)
        except Diverged as error:
            kept = "nothing of this run was saved" if session.saved is None else f"step {session.saved:,} is saved"
            seen = "" if monitor.healthy else f". What its gradients say: {monitor.verdict()}"
            raise Diverged(f"{error}; {kept}{seen}") from None
        finally:
            monitor.close()
            if session.profiler:
                session.profiler.close()
    again = f"fastgrad train --resume --out {shlex.quote(str(options.out))}"
    if stop.received is not None:
        name = "Ctrl-C" if stop.received == signal.SIGINT else signal.Signals(stop.received).name
        _say(f"stopped by {name} at step {trainer.step:,}; the checkpoint is in {options.out}; go on with:\n{again}")
        return 128 + stop.received
    _report(session, options, again, monitor)
    return 0


def _loop(session: Session, options: Options, stop: Stop) -> None:
    """Train until the goal or a signal, then write the checkpoint."""
    trainer, goal, before = session.trainer, session.goal, session.seconds
    start: float | None = None
    last_save = time.monotonic()
    with Progress(trainer, goal) as progress:
        while stop.received is None:
            with session.profiler.step() if session.profiler else contextlib.nullcontext():
                trainer.train_step()
            now = time.monotonic()
            # The clock starts behind the first step, which may compile for longer than training takes.
            start = now if start is None else start
            session.seconds = before + now - start
            done = goal.fraction(trainer.step, session.seconds) >= 1.0
            if (done or trainer.step % options.validate_every == 0) and stop.received is None:
                trainer.validate()
            progress.update(session.seconds, final=done)
            if done:
                break
            if now - last_save >= options.save_every:
                session.save()
                last_save = now
        session.save()


def _report(session: Session, options: Options, again: str, monitor: GradientMonitor) -> None:
    """Print and write everything that a finished run has to show."""
    trainer = session.trainer
    print(f"validation: {trainer.validations[-1][1]:.2f} bits per character on the last 5 % of the text", flush=True)
    pictures: dict[str, Callable[[Path], object]] = {
        "curve.png": lambda path: save_curve(path, trainer),
        "gradients.html": monitor.report,
    }
    for name, write in pictures.items():
        try:
            write(session.folder / name)
        except OSError as error:
            raise UserError(f"{session.folder / name} can't be written: {error.strerror}") from None
    if options.sample_length:
        text = sample(trainer, options.sample_length, options.temperature, trainer.config.seed)
        print(f"sample (temperature {options.temperature:g}):\n{_printable(text)}\n", flush=True)
    if options.comparison:
        _say(f"comparing with {'the CPU' if trainer.backend == 'gpu' else 'naive NumPy'} ...")
        print(f"speed: {compare(trainer)}", flush=True)
    print(f"gradients: {monitor.verdict()}")
    if session.profiler:
        _report_profile(session.profiler, session.folder / "trace.json")
    print(f"curve: {options.out / 'curve.png'}, layer by layer: {options.out / 'gradients.html'}")
    more = f"--steps {2 * session.goal.steps}" if session.goal.steps else f"--minutes {session.seconds / 30:.3g}"
    print(f"checkpoint: {options.out / checkpoint.JSON_NAME}, step {trainer.step:,}; train on with: {again} {more}")


def _report_profile(profiler: StepProfiler, path: Path) -> None:
    profile = profiler.profile()
    if profile is None:
        print(f"profile: none, the run had no more than the {SKIPPED} steps that warm up; give more --steps")
        return
    try:
        profile.save_trace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from None
    print(f"profile: {profile}\ntrace: {path}; open it in https://ui.perfetto.dev or chrome://tracing\n", flush=True)


def _fresh(options: Options, held: contextlib.ExitStack) -> Session:
    config = Config.of(**options.model)
    folder = options.out
    _refuse_to_replace(options)
    source = options.source if options.source is not None else BUILT_IN
    trainer = Trainer(config, Corpus.from_text(read_text(source)), options.backend or "cpu")
    prepare_folder(folder)
    held.enter_context(checkpoint.claimed(folder))
    _refuse_to_replace(options)  # a run that held the folder until now has left one
    steps, minutes = options.steps, options.minutes
    if steps is None and minutes is None:
        steps, minutes = DEFAULT_STEPS, DEFAULT_MINUTES
    goal = Goal(steps, None if minutes is None else 60.0 * minutes)
    return Session(trainer, _remembered(source), goal, 0.0, folder)


def _refuse_to_replace(options: Options) -> None:
    if not options.overwrite and checkpoint.exists(options.out):
        raise UserError(
            f"{options.out} holds a checkpoint already; go on from it with --resume, replace it with --overwrite, "
            "or choose another --out"
        )


def _resumed(options: Options, held: contextlib.ExitStack) -> Session:
    if options.overwrite:
        raise UserError("--resume goes on from a checkpoint and --overwrite replaces it; give one of the two")
    held.enter_context(checkpoint.claimed(options.out))
    arrays, contents = checkpoint.load(options.out)
    path = options.out / checkpoint.JSON_NAME
    try:
        config = Config.from_dict(contents["config"])
        source, backend = str(contents["text"]), str(contents["backend"])
        plan = Goal(contents["plan"]["steps"], contents["plan"]["seconds"])
        seconds, step = float(contents["trained_seconds"]), int(contents["step"])
        if backend not in BACKENDS or not 0.0 <= seconds < math.inf or step < 0:
            raise ValueError(f"backend {backend!r}, step {step}, trained_seconds {seconds}")
        plan.fraction(step, seconds)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, UserError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); start anew with --overwrite") from None
    for name, value in options.model.items():
        if value != getattr(config, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} {value} contradicts the checkpoint, which has {getattr(config, name)}; leave {option} out"
            )
    if options.source is not None:
        source = options.source
    goal = plan
    if options.steps is not None or options.minutes is not None:
        goal = Goal(options.steps, None if options.minutes is None else 60.0 * options.minutes)
    if goal.fraction(step, seconds) >= 1.0:
        raise UserError(
            f"nothing is left to train: the checkpoint is at step {step:,} after {seconds / 60:.2f} minutes; give a "
            "larger total with --steps or --minutes"
        )
    if options.backend is None and backend == "gpu":
        status = gpu_status()
        if status.cupy is None:
            raise UserError(
                f"{path} was written with --backend gpu, and no GPU can be used here: {status.reason}; "
                f"{status.advice}, or go on with --backend cpu"
            )
    trainer = Trainer(config, Corpus.from_text(read_text(source)), options.backend or backend)
    try:
        trainer.restore(arrays, contents)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    prepare_folder(options.out)
    return Session(trainer, _remembered(source), goal, seconds, options.out, saved=step)


def prepare_folder(folder: Path) -> None:
    """Make the folder, and raise UserError unless files can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {folder} can't be a folder: a file is in its place") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--out {folder} can't be written: {getattr(error, 'strerror', None) or error}") from None


def _remembered(source: str) -> str:
    """Return the name under which the checkpoint finds the text again from any working directory."""
    return source if source == BUILT_IN else str(Path(source).absolute())


def _printable(text: str) -> str:
    """Return `text` with control characters shown as middle dots: a sample must not drive the terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "·" for character in text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
