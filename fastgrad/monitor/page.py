"""The report: one HTML page with everything in it, pictures too, so that it opens anywhere and without a network."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastgrad.monitor.diagnosis import Diagnosis
from fastgrad.monitor.history import COLUMNS, History, Look
from fastgrad.monitor.picture import curves, heat_map
from fastgrad.training.checkpoint import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b;
       background: #fff }
h1 { font-size: 1.4rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.verdict { padding: .7rem 1rem; border-left: .35rem solid #2a8a3e; background: #f0f8f1 }
.verdict.trouble { border-color: #d62728; background: #fdf1f0 }
.kind { font-weight: 600 } .past { color: #666 }
img { width: 100%; min-width: 44rem; height: auto } li { margin: .4rem 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .7rem; text-align: right; white-space: nowrap } th { border-bottom: 1px solid #999 }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) td { background: #f6f6f6 }
td.bad { color: #b00; font-weight: 600 }
"""


def write(path: Path, history: History, diagnosis: Diagnosis) -> Path:
    """Write the page, whole or not at all, and return its path."""
    troubles = diagnosis.troubles()
    ongoing = any(trouble.ongoing for trouble in troubles)
    verdict = diagnosis.verdict()
    parts = [
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>Gradients of a training run</title><style>{STYLE}</style></head><body>",
        "<h1>Gradients of a training run</h1>",
        f"<p class='verdict{' trouble' if ongoing else ''}'>{escape(verdict[:1].upper() + verdict[1:])}</p>",
    ]
    if troubles:
        parts.append("<h2>Troubles</h2><ul>")
        for trouble in troubles:
            when = f"steps {trouble.since:,} to {trouble.until:,}"
            past = "" if trouble.ongoing else " class='past'"
            parts.append(
                f"<li{past}><span class='kind'>{escape(trouble.kind)}</span> ({when}): {escape(trouble.words)}</li>"
            )
        parts.append("</ul>")
    if history.looks:
        names, sizes = diagnosis.names, diagnosis.sizes
        parts.append("<h2>Layer by layer, step by step</h2>")
        parts.append("<p>Rows are tensors in the order of the model, its input at the top.</p>")
        parts += [_image(heat_map(history, names, sizes, column), column) for column in ("norm", "update_ratio")]
        parts.append(_image(curves(history), "norm and clip coefficient of the whole step"))
        parts.append(f"<h2>Step {history.looks[-1].step:,}</h2><div class='wide'>")
        parts.append(_table(history.looks[-1], names, sizes))
        parts.append("</div>")
    limits = ", ".join(f"{name} {getattr(diagnosis.limits, name):.4g}" for name in diagnosis.limits.__slots__)
    parts.append(f"<p class='past'>{diagnosis.looks:,} looks. Thresholds: {escape(limits)}.</p></body></html>\n")
    write_atomically(path, "\n".join(parts).encode())
    return path


def _image(figure: Figure, what: str) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    data = base64.b64encode(picture.getvalue()).decode()
    return f"<div class='wide'><img alt='{escape(what)}' src='data:image/png;base64,{data}'></div>"


def _table(look: Look, names: tuple[str, ...], sizes: np.ndarray) -> str:
    headings = ["tensor", "entries", "norm", "largest", "NaN", "Inf", "zero", "subnormal", "update / weight"]
    lines = ["<table><tr>", *(f"<th>{heading}</th>" for heading in headings), "</tr>"]
    rows = dict(zip(COLUMNS, look.values, strict=True))
    for k, name in enumerate(names):
        one = {column: float(values[k]) for column, values in rows.items()}
        if np.isnan(one["nan"]):
            lines.append(f"<tr><td>{escape(name)}</td><td>{sizes[k]:,.0f}</td><td>took no part</td></tr>")
            continue
        counts = [f"{one[kind]:,.0f}" if one[kind] else "" for kind in ("nan", "inf")]
        shares = [f"{one[kind] / sizes[k]:.1%}" if one[kind] else "" for kind in ("zero", "subnormal")]
        bad = "" if np.isfinite(one["norm"]) else " class='bad'"
        cells = [f"{sizes[k]:,.0f}", f"{one['norm']:.3g}", f"{one['max_abs']:.3g}", *counts, *shares]
        cells.append(f"{one['update_ratio']:.2g}")
        lines.append(f"<tr><td>{escape(name)}</td>" + "".join(f"<td{bad}>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])
