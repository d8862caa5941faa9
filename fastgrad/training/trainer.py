"""The trainer: truncated backpropagation through time, global-norm clipping and Adam.

    per step: a window of T characters of B streams, the state of a recurrent model carried over from the window before
    (no gradient flows back into it: Williams & Peng, 1990; a transformer sees the window alone), one backward pass, one
    Adam step with the clip coefficient inside it.

A Trainer has no clock, no files and no output; `fastgrad.training.run` has those. Its whole state goes through
`capture` and `restore`, so that a restored trainer goes on bit for bit.

On a GPU the text, the model and the optimizer's state stay there, and a step only launches: losses and norms are read
READ_EVERY steps at a time, or when somebody asks for `history`. The host runs ahead of the device by so many at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastgrad
from fastgrad import _gpu
from fastgrad._arrays import Array, device_module, is_array, to_host
from fastgrad.optim import Adam, StepReport
from fastgrad.training.errors import Diverged, UserError
from fastgrad.training.model import Config, character_model
from fastgrad.training.text import Corpus, TrainingWindows, ValidationStreams

__all__ = ["BACKENDS", "BITS", "StepResult", "Trainer"]

BACKENDS = ("cpu", "gpu", "reference")

# Bits in a nat: losses are in nats, reports in bits per character.
BITS = 1.0 / math.log(2.0)

# So many steps in a row whose gradients were not finite, and training is over.
HOPELESS = 10

# On a GPU, steps whose results are read together. A run that has diverged goes on for so many at most.
READ_EVERY = 32

HISTORY = ("loss", "grad_norm", "clip_coefficient")


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: mean cross-entropy in nats before the update; report: of the optimizer.

    On a GPU the loss is a 0-d array there, and whoever reads a number waits for the step.
    """

    loss: Any
    report: StepReport

    @property
    def grad_norm(self) -> float:
        """The norm of the gradients before clipping."""
        return self.report.grad_norm

    @property
    def clip_coefficient(self) -> float:
        """The factor that the gradients were taken with, 0 in a step that was skipped."""
        return self.report.clip_coefficient


class Trainer:
    """A model, its optimizer and its place in the text.

    config: sizes and values; corpus: the text; backend: the kernels, "cpu", "gpu" or "reference".
    Raises UserError when the text is too short for the configuration, and where there is no GPU for backend "gpu".
    """

    def __init__(self, config: Config, corpus: Corpus, backend: str = "cpu") -> None:
        corpus.require(config.batch, config.seq_length)
        self.config, self.corpus, self.backend = config, corpus, backend
        self.place = _placer(backend)
        # The arrays of a GPU choose their kernels by themselves.
        self.kernels = None if backend == "gpu" else backend
        self.model = character_model(config, len(corpus.vocabulary), np.random.default_rng([config.seed, 0]))
        self.model.to("gpu" if backend == "gpu" else "cpu")
        # A run of skipped steps is told by the trainer itself, in its own words.
        self.optimizer = Adam(self.model.parameters(), lr=config.lr, max_norm=config.clip or None, max_skips=None)
        held_out = corpus.validation_length(config.batch)
        split = len(corpus.codes) - held_out
        rng = np.random.default_rng([config.seed, 1])
        self.windows = TrainingWindows(corpus.codes[:split], config.batch, config.seq_length, rng, self.place)
        self.validation = ValidationStreams(corpus.codes, held_out, config.batch, self.model.window, self.place)
        self.state: Any = None
        self._history: dict[str, list[float]] = {name: [] for name in HISTORY}
        # Results of steps that lie on a device still.
        self._unread: list[StepResult] = []
        # (step, bits per character)
        self.validations: list[tuple[int, float]] = []

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return len(self._history["loss"]) + len(self._unread)

    @property
    def history(self) -> dict[str, list[float]]:
        """Loss in nats, gradient norm and clip coefficient of each step; waits for a GPU.

        Raises Diverged when a step on a GPU turns out to have had a loss that is not finite.
        """
        self._read()
        return self._history

    @property
    def characters_per_step(self) -> int:
        """The characters that one step learns from."""
        return self.config.batch * self.config.seq_length

    def train_step(self) -> StepResult:
        """Learn from the next window. Raises Diverged when the loss is not finite, before any parameter changes.

        On a GPU that is raised up to READ_EVERY steps later; what they have changed is worth nothing.
        """
        with fastgrad.backend(self.kernels):
            x, targets, epoch_begins = self.windows.next()
            state = None if epoch_begins else self.state
            self.optimizer.zero_grad()
            loss, dlogits, state = self.model.loss(x, targets, state)
            if device_module(loss) is None:
                loss = float(loss)
                _check_loss(loss, self.step + 1)
            self.model.backward(dlogits)
            report = self.optimizer.step()
        self.state = state if self.model.carries else None
        result = StepResult(loss, report)
        self._unread.append(result)
        if device_module(loss) is None or len(self._unread) >= READ_EVERY:
            self._read()
        return result

    def _read(self) -> None:
        """Take the results of the last steps into the history, up to the first that ends training."""
        unread, self._unread = self._unread, []
        for loss, result in zip(_floats([result.loss for result in unread]), unread, strict=True):
            _check_loss(loss, len(self._history["loss"]) + 1)
            for name, value in zip(HISTORY, (loss, result.grad_norm, result.clip_coefficient), strict=True):
                self._history[name].append(value)
            last = self._history["grad_norm"][-HOPELESS:]
            if len(last) == HOPELESS and not any(map(math.isfinite, last)):
                raise Diverged(
                    f"the gradients were not finite in the {HOPELESS} steps up to {len(self._history['loss'])}; "
                    "try a smaller --lr"
                )

    def validate(self) -> float:
        """Return the bits per character on the last 5 % of the text, and add them to `validations`."""
        self._read()
        losses, sizes, state = [], [], None
        with fastgrad.backend(self.kernels):
            for x, targets in self.validation.windows():
                if targets is None:
                    state = self.model.read(x, state)
                else:
                    loss, _, state = self.model.loss(x, targets, state)
                    losses.append(loss)
                    sizes.append(targets.size)
        total = sum(loss * size for loss, size in zip(_floats(losses), sizes, strict=True))
        bits = total / self.validation.count * BITS
        if not math.isfinite(bits):
            raise Diverged(f"the validation loss became {bits} at step {self.step}; try a smaller --lr or --clip")
        self.validations.append((self.step, bits))
        return bits

    def capture(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the JSON values that `restore` needs, on any backend.

        The arrays are NumPy's: the trainer's own, or copies of what lies on a GPU.
        """
        arrays = {f"model.{name}": to_host(array) for name, array in self.model.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for index, entry in optimizer["state"].items():
            for key, value in entry.items():
                if is_array(value):
                    arrays[f"optimizer.{index}.{key}"] = to_host(value)
                else:
                    scalars.setdefault(str(index), {})[key] = value
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        for name, part in zip(("h", "c"), parts, strict=False):
            if part is not None:
                arrays[f"state.{name}"] = to_host(part)
        for name, values in self.history.items():
            arrays[f"history.{name}"] = np.array(values, dtype=np.float64)
        return arrays, {
            "step": self.step,
            "config": self.config.as_dict(),
            "vocabulary": self.corpus.vocabulary,
            "text_sha256": self.corpus.sha256,
            "windows": self.windows.state(),
            "optimizer": {**optimizer, "state": scalars},
            "validations": [[step, bits] for step, bits in self.validations],
        }

    def restore(self, arrays: Mapping[str, Array], contents: Mapping[str, Any]) -> None:
        """Go on from what `capture` returned, bit for bit; arrays are copied.

        Raises UserError when they don't fit together or not this trainer's configuration and text.
        """
        if contents.get("text_sha256") != self.corpus.sha256:
            raise UserError("the text is not the one that the checkpoint was trained on; resume with the same FILE")
        try:
            if contents["vocabulary"] != self.corpus.vocabulary:
                raise ValueError("its vocabulary is not that of its text")
            self.model.load_state_dict(_below("model.", arrays))
            optimizer = dict(contents["optimizer"])
            state = {int(index): dict(entry) for index, entry in optimizer["state"].items()}
            for name, array in _below("optimizer.", arrays).items():
                index, key = name.split(".", 1)
                state[int(index)][key] = array
            self.optimizer.load_state_dict({**optimizer, "state": state})
            self.windows.restore(contents["windows"])
            parts = [self.place(np.array(arrays[f"state.{k}"])) for k in ("h", "c") if f"state.{k}" in arrays]
            shape = (self.config.layers, self.config.batch, self.config.hidden)
            if any(part.shape != shape or part.dtype != self.config.dtype for part in parts):
                raise ValueError(f"the carried state must have shape {shape}")
            expected = 0 if not contents["step"] else {"lstm": 2, "gru": 1, "transformer": 0}[self.config.model]
            if len(parts) != expected:
                raise ValueError(f"the carried state has {len(parts)} arrays instead of {expected}")
            self.state = None if not parts else tuple(parts) if len(parts) == 2 else parts[0]
            self._unread = []
            self._history = {name: [float(value) for value in arrays[f"history.{name}"]] for name in HISTORY}
            if {len(values) for values in self._history.values()} != {contents["step"]}:
                raise ValueError(f"the history does not have {contents['step']} entries")
            self.validations = [(int(step), float(bits)) for step, bits in contents["validations"]]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = error.args[0] if error.args else error
            raise UserError(f"the checkpoint does not fit together ({type(error).__name__}: {what})") from None

    def copy(self, backend: str) -> Trainer:
        """Return a trainer in the same state on the kernels of `backend`, sharing nothing but the text."""
        other = Trainer(self.config, self.corpus, backend)
        other.restore(*self.capture())
        return other


def _placer(backend: str) -> Callable[[Array], Array]:
    """Return what takes an array to where the backend computes."""
    if backend == "gpu":
        try:
            _gpu.require_gpu("--backend gpu")
        except RuntimeError as error:
            raise UserError(str(error)) from None
    return _gpu.mover("gpu" if backend == "gpu" else "cpu")


def _floats(values: Sequence[Any]) -> list[float]:
    """Return numbers or 0-d arrays as floats; those of a GPU come in one transfer, which waits for it."""
    module = device_module(values[0]) if values else None
    if module is not None and all(type(value) is module.ndarray for value in values):
        return to_host(module.stack(values)).tolist()
    return [float(value) for value in values]


def _check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(f"the loss became {loss} at step {step}; try a smaller --lr or --clip")


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
