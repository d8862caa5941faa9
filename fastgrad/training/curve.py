"""curve.png: what training did, in two panels over the same steps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from fastgrad.training.checkpoint import write_atomically
from fastgrad.training.trainer import BITS, Trainer

__all__ = ["save_curve"]

Array = np.ndarray[Any, np.dtype[Any]]

# More points than this across the picture can't be told apart.
POINTS = 2000


def save_curve(path: Path, trainer: Trainer) -> None:
    """Write loss (training and validation, bits per character) and gradient norm over the steps as a PNG to `path`."""
    # The object interface never touches pyplot's global state, and Agg needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    config = trainer.config
    steps = np.arange(1, trainer.step + 1)
    bits = np.array(trainer.history["loss"]) * BITS
    norms = np.array(trainer.history["grad_norm"])
    clipped = np.array(trainer.history["clip_coefficient"]) < 1.0
    thin = slice(None, None, max(1, len(steps) // POINTS))
    window = max(1, min(25, len(steps) // 10))

    figure = Figure(figsize=(9.0, 7.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, norm_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))

    loss_axes.plot(steps[thin], bits[thin], color="tab:blue", alpha=0.25, linewidth=0.8)
    loss_axes.plot(
        steps[thin], _running_mean(bits, window)[thin], color="tab:blue", label=f"training, mean of {window} steps"
    )
    if trainer.validations:
        at, values = zip(*trainer.validations, strict=True)
        label = f"validation, last 5 % of the text: {values[-1]:.2f} at the end"
        loss_axes.plot(at, values, "o-", color="tab:orange", markersize=3.5, label=label)
    loss_axes.set_yscale("log")
    # A log axis over less than a decade: label 1, 2, 3, 4, 6, 8 in plain numbers.
    loss_axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)))
    loss_axes.yaxis.set_major_formatter(ScalarFormatter())
    loss_axes.yaxis.set_minor_formatter(NullFormatter())
    loss_axes.set_ylabel("loss (bits per character)")
    loss_axes.set_title(
        f"character {config.cell.upper()}, {config.hidden} units x {config.layers}, {config.batch} streams x "
        f"{config.seq_length} steps, Adam {config.lr:g}"
    )

    norm_axes.plot(steps[thin], norms[thin], color="tab:green", alpha=0.3, linewidth=0.8)
    norm_axes.plot(steps[thin], _running_mean(norms, window)[thin], color="tab:green", label=f"mean of {window} steps")
    if config.clip:
        label = f"clip at {config.clip:g}: {np.mean(clipped):.0%} of the steps"
        norm_axes.axhline(config.clip, color="tab:red", linestyle="--", linewidth=1.0, label=label)
    norm_axes.set_yscale("log")
    norm_axes.set_ylabel("gradient norm before clipping")
    norm_axes.set_xlabel(f"step ({trainer.characters_per_step:,} characters each)")
    for axes in (loss_axes, norm_axes):
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(loc="upper right")
    loss_axes.set_xlim(0, max(1, trainer.step))

    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(path, picture.getvalue())


def _running_mean(values: Array, window: int) -> Array:
    """Return at each step the mean of the last `window` values, of fewer at the start; NaN and Inf count as missing."""
    finite = np.isfinite(values)
    total = np.cumsum(np.where(finite, values, 0.0))
    count = np.cumsum(finite)
    total[window:] -= total[:-window].copy()
    count[window:] -= count[:-window].copy()
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
