"""`fastgrad train digits`: a deep network on the 8 x 8 digits that scikit-learn carries, from options to last line."""

from __future__ import annotations

import io
import math
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastgrad import softmax_cross_entropy
from fastgrad._arrays import Array
from fastgrad.optim import Adam
from fastgrad.training.checkpoint import claimed, write_atomically
from fastgrad.training.deep import ACTIVATIONS, DeepNetwork
from fastgrad.training.errors import Diverged, UserError
from fastgrad.training.one_thread import one_thread
from fastgrad.training.progress import duration
from fastgrad.training.run import Stop, prepare_folder

__all__ = ["INSTALL", "Options", "Outcome", "Split", "explanation", "fit", "load", "train"]

INSTALL = 'pip install "fastgrad[digits]"'

BATCH, CLASSES, SIDE, TEST = 64, 10, 8, 360
EPOCHS = 40

# A network that gets less right has not learned; a gradient that has changed by more on its way is called lost.
LEARNED, LOST = 0.9, 1000.0


@dataclass(frozen=True)
class Options:
    """The options of `fastgrad train digits`; epochs None is EPOCHS, or no limit with minutes; max_norm 0 is none."""

    depth: int = 30
    width: int = 128
    activation: str = "relu"
    init: str = "he"
    norm: str = "batch"
    residual: bool = True
    lr: float = 1e-3
    max_norm: float = 1.0
    epochs: int | None = None
    minutes: float | None = None
    seed: int = 1
    out: Path = Path("runs/digits")


@dataclass(frozen=True)
class Split:
    """Images (n, 64) float32 of mean 0 and variance 1 over all pixels, and digits (n,), to train on and to test."""

    images: Array
    digits: Array
    test_images: Array
    test_digits: Array


@dataclass
class Outcome:
    """What training did: per epoch the mean loss in nats and the share of test images that are right, and the l2 norm
    of the gradient at each layer before the first step and at the end."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    first_gradients: list[float] = field(default_factory=list)
    last_gradients: list[float] = field(default_factory=list)
    seconds: float = 0.0


def load(seed: int) -> Split:
    """Return the digits, 360 of them set aside by `seed` for the test. Raises UserError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            f"the images of digits come with scikit-learn, which is not installed; install it: {INSTALL}"
        ) from None
    raw = load_digits()
    images = raw.data.astype(np.float32)
    images = (images - images.mean()) / images.std()
    digits = raw.target.astype(np.int64)
    order = np.random.default_rng([seed, 0]).permutation(len(images))
    kept, held = order[TEST:], order[:TEST]
    return Split(images[kept], digits[kept], images[held], digits[held])


def fit(options: Options, split: Split, stop: Any = None, say: Any = None) -> tuple[DeepNetwork, Outcome]:
    """Train a network, and return it in evaluation mode with what happened.

    stop: has `received`, None as long as training is to go on; within an epoch the network goes back to the end of the
    last one. say(line): is told how it goes, some eight times.
    Raises Diverged when the loss is not a number.
    """
    rng = np.random.default_rng([options.seed, 1])
    network = DeepNetwork(
        SIDE * SIDE, options.width, options.depth, CLASSES, activation=options.activation, init=options.init,
        norm=options.norm, residual=options.residual, rng=rng,
    )  # fmt: skip
    optimizer = Adam(network.parameters(), lr=options.lr, max_norm=options.max_norm or None)
    epochs = options.epochs or (EPOCHS if options.minutes is None else None)
    outcome, start, step = Outcome(), time.monotonic(), 0
    batches = len(split.images) // BATCH

    def done() -> float:
        by_epoch = 0.0 if epochs is None else step / (epochs * batches)
        by_time = 0.0 if options.minutes is None else (time.monotonic() - start) / (60 * options.minutes)
        return max(by_epoch, by_time)

    said = 0
    tested: dict[str, Array] = {}
    while (share := done()) < 1 and (stop is None or stop.received is None):
        order, total = rng.permutation(len(split.images)), 0.0
        for batch in order[: batches * BATCH].reshape(batches, BATCH):
            if stop is not None and stop.received is not None:
                if tested:
                    network.load_state_dict(tested)  # what the last figures are about
                return network.eval(), outcome
            # Half a cosine down to 0: the last epochs settle what the first have found.
            optimizer.param_groups[0]["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done())))
            optimizer.zero_grad()
            loss, dlogits = softmax_cross_entropy(
                network.forward(_shifted(split.images[batch], rng)), split.digits[batch]
            )
            if not math.isfinite(float(loss)):
                raise Diverged(f"the loss became {float(loss)} at step {step + 1:,}; {_hint(options)}")
            network.backward(dlogits)
            outcome.last_gradients = [float(value) for value in network.arriving]
            outcome.first_gradients = outcome.first_gradients or outcome.last_gradients
            optimizer.step()
            total += float(loss)
            step += 1
        right = network.eval().forward(split.test_images).argmax(axis=1) == split.test_digits
        network.train()
        tested = {name: array.copy() for name, array in network.state_dict().items()}
        outcome.losses.append(total / batches)
        outcome.accuracies.append(float(right.mean()))
        outcome.seconds = time.monotonic() - start
        if say is not None and int(8 * done()) > said:
            said = int(8 * share) + 1
            gradients = outcome.last_gradients
            say(
                f"epoch {len(outcome.losses)}{f'/{epochs}' if epochs else ''} | loss {outcome.losses[-1]:.4f} | "
                f"test {100 * outcome.accuracies[-1]:.1f} % | gradient at layer 1 {gradients[0]:.1e}, at layer "
                f"{options.depth} {gradients[-1]:.1e}"
            )
    return network.eval(), outcome


def _shifted(images: Array, rng: np.random.Generator) -> Array:
    """Return the images, each shifted by up to a pixel each way: 1,437 images alone are soon known by heart."""
    square = images.reshape(-1, SIDE, SIDE)
    framed = np.full((len(square), SIDE + 2, SIDE + 2), square.min(), images.dtype)
    framed[:, 1:-1, 1:-1] = square
    down, right = rng.integers(0, 3, (2, len(square), 1, 1))
    pixels = np.arange(SIDE)
    chosen = framed[np.arange(len(square))[:, None, None], down + pixels[:, None], right + pixels]
    return chosen.reshape(images.shape)


def explanation(options: Options, outcome: Outcome) -> str:
    """Say in words what became of the gradients, and of the network."""
    first, last = outcome.first_gradients[0], outcome.first_gradients[-1]
    arrived = (
        f"before the first step a gradient of {last:.1e} arrives at layer {options.depth}, of {first:.1e} at layer 1"
    )
    if first * LOST < last:
        way = "it vanishes on its way back"
    elif first > last * LOST:
        way = "it explodes on its way back"
    else:
        way = "it gets through"
    if outcome.accuracies[-1] >= LEARNED:
        return f"the network learned: {arrived}: {way}"
    return f"the network did not learn: {arrived}: {way}; {_hint(options)}"


def _hint(options: Options) -> str:
    """Return the remedies that are turned off, or other advice."""
    off = []
    if options.activation in ("sigmoid", "tanh"):
        off.append("--activation relu")
    if options.init == "old":
        off.append("--init he")
    if options.norm == "none":
        off.append("--norm batch")
    if not options.residual:
        off.append("--residual")
    if not options.max_norm:
        off.append("--max-norm 1")
    return f"try {' '.join(off)}" if off else "try a smaller --lr, or more --epochs"


def train(options: Options) -> int:
    """Run `fastgrad train digits`, and return its exit status.

    Raises UserError for what is wrong with the options or the folder, Diverged when the loss is not a number.
    """
    if options.activation not in ACTIVATIONS:
        raise UserError(f"--activation must be one of {', '.join(ACTIVATIONS)}, got {options.activation!r}")
    if Path("digits").is_file():
        _say("training on images of digits; the text file of that name is ./digits")
    split = load(options.seed)
    prepare_folder(options.out)
    with claimed(options.out):
        return _train(options, split)


def _train(options: Options, split: Split) -> int:
    # Wider layers have work for all cores.
    threads = one_thread() if options.width <= 256 else nullcontext()
    # A run that diverges is told of in words.
    with Stop() as stop, threads, np.errstate(over="ignore", invalid="ignore"):
        network, outcome = fit(options, split, stop, _say)
    if not outcome.losses:
        _say("stopped before the first epoch was over; nothing was written")
        return 128 + (stop.received or 0)
    epochs = len(outcome.losses)
    right = f"{100 * outcome.accuracies[-1]:.1f} % of {len(split.test_digits)} images right"
    print(f"test: {right}, {epochs:,} epoch{'' if epochs == 1 else 's'} in {duration(outcome.seconds)}")
    print(explanation(options, outcome))
    try:
        _save(options, network, outcome)
    except OSError as error:
        raise UserError(f"{options.out} can't be written: {error.strerror}") from None
    print(f"curve: {options.out / 'curve.png'}\nweights: {options.out / 'model.safetensors'}", flush=True)
    if stop.received is not None:
        _say(f"stopped by {'Ctrl-C' if stop.received == signal.SIGINT else 'a signal'} after {epochs:,} epochs")
        return 128 + stop.received
    return 0


def _save(options: Options, network: DeepNetwork, outcome: Outcome) -> None:
    """Write weights, with the options as their metadata, and the curve."""
    from safetensors.numpy import save

    arrays = {name: np.asarray(array, order="C") for name, array in network.state_dict().items()}
    metadata = {name: str(value) for name, value in asdict(options).items()}
    write_atomically(options.out / "model.safetensors", save(arrays, metadata))
    write_atomically(options.out / "curve.png", _curve(options, outcome))


def _curve(options: Options, outcome: Outcome) -> bytes:
    """Return loss and test accuracy over the epochs, and the gradient at every layer, as a PNG."""
    # The object interface never touches pyplot's global state, and Agg needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(9.0, 9.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, right_axes, layer_axes = figure.subplots(3, 1)
    epochs = np.arange(1, len(outcome.losses) + 1)
    loss_axes.plot(epochs, outcome.losses, "o-", markersize=3, color="tab:blue")
    loss_axes.set_yscale("log")
    loss_axes.set_ylabel("training loss (nats)")
    loss_axes.set_title(
        f"{options.depth} layers of {options.width}, {options.activation}, {options.init} initialisation, norm "
        f"{options.norm}, {'skip connections' if options.residual else 'no skip connections'}, Adam {options.lr:g}"
    )
    label = f"{outcome.accuracies[-1]:.1%} at the end"
    right_axes.plot(epochs, outcome.accuracies, "o-", markersize=3, color="tab:orange", label=label)
    right_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    right_axes.set_ylabel("test images right")
    right_axes.legend(loc="lower right")
    layers = np.arange(1, options.depth + 1)
    for values, name in (
        (outcome.first_gradients, "before the first step"),
        (outcome.last_gradients, "at the end"),
    ):
        layer_axes.plot(layers, [value or np.nan for value in values], label=name)
    layer_axes.set_yscale("log")
    layer_axes.set_ylabel("gradient at the layer (l2 norm)")
    layer_axes.legend(loc="best")
    for axes, name in ((loss_axes, "epoch"), (right_axes, "epoch"), (layer_axes, "layer, from the input")):
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, alpha=0.25)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
