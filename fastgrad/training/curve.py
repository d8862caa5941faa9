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


def save_curve(path: Path, trainer: Trainer) -> None:
    """Write loss (training and validation, bits per character) and gradient norm over the steps as a PNG to `path`."""
    # The object interface never touches pyplot's global state, and Agg needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    config = trainer.config
    name = "transformer" if config.model == "transformer" else config.model.upper()
    steps = np.arange(1, trainer.step + 1)
    bits = np.array(trainer.history["loss"]) * BITS
    norms = np.array(trainer.history["grad_norm"])
    norms[~np.isfinite(norms)] = np.nan
    clipped = np.array(trainer.history["clip_coefficient"]) < 1.0
    window = max(1, min(25, len(steps) // 10))
    # A mean over the steps before would lag behind the validation: it is drawn at the middle of its window.
    middle = steps - (np.minimum(steps, window) - 1) / 2

    figure = Figure(figsize=(9.0, 7.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, norm_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))

    loss_axes.plot(steps, bits, color="tab:blue", alpha=0.25, linewidth=0.8)
    loss_axes.plot(middle, _running_mean(bits, window), color="tab:blue", label=f"training, mean of {window} steps")
    if trainer.validations:
        at, values = zip(*trainer.validations, strict=True)
        label = f"validation, last 5 % of the text: {values[-1]:.2f} at the end"
        loss_axes.plot(at, values, "o-", color="tab:orange", markersize=3.5, label=label)
    loss_axes.set_ylabel("loss (bits per character)")
    loss_axes.set_title(
        f"character {name}, {config.hidden} units x {config.layers}, {config.batch} streams x "
        f"{config.seq_length} steps, Adam {config.lr:g}"
    )
    loss_axes.set_xlim(0, max(1, trainer.step))

    norm_axes.plot(steps, norms, color="tab:green", alpha=0.3, linewidth=0.8)
    norm_axes.plot(middle, _running_mean(norms, window), color="tab:green", label=f"mean of {window} steps")
    if config.clip:
        label = f"clip at {config.clip:g}: {np.mean(clipped):.1%} of the steps"
        norm_axes.axhline(config.clip, color="tab:red", linestyle="--", linewidth=1.0, label=label)
    norm_axes.set_ylabel("gradient norm before clipping")
    norm_axes.set_xlabel(f"step ({trainer.characters_per_step:,} characters each)")

    for axes in (loss_axes, norm_axes):
        axes.set_yscale("log")
        # Both cover about a decade: a few plain numbers tell more than powers of ten.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(loc="upper right")

    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(path, picture.getvalue())


def _running_mean(values: Array, window: int) -> Array:
    """Return at each step the mean of the last `window` values, of fewer at the start; NaN counts as missing."""
    total, count = np.cumsum(np.nan_to_num(values)), np.cumsum(~np.isnan(values))
    total[window:] -= total[:-window].copy()
    count[window:] -= count[:-window].copy()
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
