"""Pictures of a run: layer x step as a heat map, and the whole step as curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad.monitor.history import COLUMNS, History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is drawn of a column, and whether its colours are powers of ten.
DRAWN = {
    "norm": ("root mean square of the gradient", True),
    "max_abs": ("largest entry of the gradient", True),
    "update_ratio": ("norm of the update / norm of the weights", True),
    "zero": ("share of zero entries", False),
    "subnormal": ("share of subnormal entries", False),
}
MOST_LABELS = 48
NOT_FINITE, ZERO, ABSENT = "#d62728", "#000000", "#dddddd"


def _figure(width: float, height: float) -> Any:
    # The object interface never touches pyplot's global state, and Agg needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def cells(history: History, sizes: np.ndarray, column: str) -> np.ndarray:
    """Return what is drawn of a column, (looks, n): NaN where a tensor took no part, Inf where it is not finite."""
    values = history.column(column)
    present = ~np.isnan(history.column("nan"))
    if column == "norm":
        values = values / np.sqrt(sizes)
    elif column in ("zero", "subnormal"):
        values = values / sizes
    if DRAWN[column][1]:
        values = np.where(np.isfinite(history.column("norm")), values, np.inf)
    return np.where(present, values, np.nan)


def heat_map(history: History, names: tuple[str, ...], sizes: np.ndarray, column: str) -> Figure:
    """Return the heat map of a column; see `GradientMonitor.plot`."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    if column not in DRAWN:
        raise ValueError(f"column: expected one of {', '.join(map(repr, DRAWN))}, got {column!r}")
    if not history.looks:
        raise ValueError("nothing to draw: no step was looked at yet")
    what, powers = DRAWN[column]
    values = cells(history, sizes, column).T
    usual = values[np.isfinite(values) & (values > 0)]
    low, high = (usual.min(), usual.max()) if usual.size else (1e-1, 1.0)
    figure = _figure(10.0, min(16.0, 2.2 + 0.19 * max(6, min(len(names), MOST_LABELS))))
    axes = figure.subplots()
    colours = colormaps["viridis"].with_extremes(bad=ABSENT, under=ZERO, over=NOT_FINITE)
    if powers:
        with np.errstate(divide="ignore"):
            shown = np.log10(values)  # of 0 and Inf they are what lies under and over all colours
        bottom, top = np.floor(np.log10(low)), np.ceil(np.log10(high) + 1e-9)
        shown = np.where(np.isinf(shown), np.where(shown > 0, top + 1, bottom - 1), shown)
    else:
        bottom, top, shown = 0.0, 1.0, values
    steps = history.steps()
    edges = _edges(steps)
    mesh = axes.pcolormesh(
        edges,
        np.arange(len(names) + 1),
        np.ma.masked_invalid(shown),
        norm=Normalize(bottom, top),
        cmap=colours,
        rasterized=True,
    )
    axes.set_ylim(len(names), 0)
    each = -(-len(names) // MOST_LABELS)
    axes.set_yticks(np.arange(0, len(names), each) + 0.5, [_short(name) for name in names[::each]], fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set_xlabel("step")
    axes.set_title(what)
    bar = figure.colorbar(mesh, ax=axes, extend="neither", pad=0.01)
    if powers:
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        bar.ax.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:.0f}}}$")
    keys = [
        Patch(color=colour, label=label)
        for colour, label, there in (
            (ZERO, "exactly 0", powers and bool((values == 0).any())),
            (NOT_FINITE, "NaN or infinite", bool(np.isinf(values).any())),
            (ABSENT, "took no part", bool(np.isnan(values).any())),
        )
        if there
    ]
    if keys:
        figure.legend(handles=keys, loc="outside lower right", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"…{name[-33:]}"


def _edges(steps: np.ndarray) -> np.ndarray:
    """Return the edges of cells around these steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    first, last = steps[0] - (middles[0] - steps[0]), steps[-1] + (steps[-1] - middles[-1])
    return np.concatenate([[first], middles, [last]])


def curves(history: History) -> Figure:
    """Return the global norm before clipping and the clip coefficient over the steps."""
    figure = _figure(10.0, 3.4)
    axes = figure.subplots()
    steps, norms = history.steps(), history.numbers("grad_norm")
    coefficients, skipped = history.numbers("clip_coefficient"), history.numbers("skipped") > 0
    axes.plot(steps, np.where(np.isfinite(norms), norms, np.nan), color="tab:blue", linewidth=1.0)
    axes.set_ylabel("norm before clipping", color="tab:blue")
    if (norms[np.isfinite(norms)] > 0).any():
        axes.set_yscale("log")
    axes.set_xlabel("step")
    for k, step in enumerate(steps[skipped]):
        axes.axvline(step, color=NOT_FINITE, linewidth=0.8, label="skipped" if k == 0 else None)
    other = axes.twinx()
    other.plot(steps, np.where(skipped, np.nan, coefficients), color="tab:orange", linewidth=1.0, alpha=0.8)
    other.set_ylim(-0.02, 1.05)
    other.set_ylabel("clip coefficient", color="tab:orange")
    if skipped.any():
        axes.legend(loc="upper right", fontsize=8)
    axes.set_title("the whole step")
    axes.grid(True, alpha=0.25)
    return figure


assert set(DRAWN) <= set(COLUMNS)
