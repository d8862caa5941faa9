"""The page: one HTML file with the sentences and the charts, which works without a network.

Plotly's script is part of the file. Charts are given to it as JSON: what is drawn is what the tables hold.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastgrad.lab.result import Chart, Result
from fastgrad.training.errors import UserError

__all__ = ["INSTALL", "page", "plotly_script"]

INSTALL = 'pip install "fastgrad[lab]"'

# Okabe & Ito's colours, which people with any colour vision tell apart, and what goes with them beyond eight.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b5ea7", "#8c6d46", "#6b7280", "#111827",
)  # fmt: skip

# Blue is a gradient that dies, red one that bursts; white in the middle is as it should be.
DIVERGING = [[0.0, "#1b4f9c"], [0.5, "#ffffff"], [1.0, "#b3251e"]]

GRID, LINE, INK = "#e5e7eb", "#9ca3af", "#1f2937"
FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
FONT = {"family": FAMILY, "size": 13, "color": INK}


def plotly_script() -> str:
    """Return plotly.js. Raises UserError with the command that installs it where plotly is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError(f"the page needs plotly, which is not installed; install it: {INSTALL}") from None
    return str(get_plotlyjs())


def page(results: Sequence[Result], heading: str, note: str, script: str) -> str:
    """Return the page of some results.

    heading: what was run, in a line; note: what is missing, or nothing; script: plotly.js.
    """
    template = (Path(__file__).with_name("page.html")).read_text(encoding="utf-8")
    figures = {f"{result.name}-{chart.name}": _figure(chart) for result in results for chart in result.charts}
    parts = {
        "heading": html.escape(heading),
        "note": f'<p class="note">{html.escape(note)}</p>' if note else "",
        "links": "\n".join(f'<a href="#{result.name}">{html.escape(result.title)}</a>' for result in results),
        "sections": "\n".join(_section(result) for result in results),
        # "</" would end the script element.
        "figures": json.dumps(figures, ensure_ascii=False, allow_nan=False).replace("</", "<\\/"),
        "script": script,
    }
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text, 1)
    return template


def _section(result: Result) -> str:
    charts = "\n".join(
        f'<figure class="{chart.kind}"><figcaption>{html.escape(chart.title)}</figcaption>'
        f'<div class="chart" id="{result.name}-{chart.name}"></div>{_remark(chart)}</figure>'
        for chart in result.charts
    )
    files = ", ".join(
        f'<a href="{result.name}-{table.name}.csv">{result.name}-{table.name}.csv</a>' for table in result.tables
    )
    return f"""<section id="{result.name}">
<h2>{html.escape(result.title)}</h2>
<p class="finding">{html.escape(" ".join(result.sentences))}</p>
<div class="charts">
{charts}
</div>
<details><summary>How it was measured, and the figures</summary>
<p>{html.escape(result.method)}</p>
<p>Figures: {files}</p>
</details>
</section>"""


def _remark(chart: Chart) -> str:
    """Say what the colours of a map mean, and why a curve ends where a logarithmic axis can't show a figure."""
    if chart.kind == "map":
        return '<p class="remark">Blue dies on its way back, red bursts, white keeps its size; −∞ is an exact 0.</p>'
    if not chart.log_y:
        return ""
    values = chart.selected().column(chart.y)
    parts = []
    if any(value == 0 for value in values):
        parts.append("where a curve ends, the figure is exactly 0")
    if any(not math.isfinite(value) for value in values):
        parts.append("where a curve breaks off, the figure is infinite or not a number")
    text = "; ".join(parts)
    return f'<p class="remark">{text[0].upper()}{text[1:]}.</p>' if text else ""


def _figure(chart: Chart) -> dict[str, Any]:
    """Return data and layout of a chart in plotly's terms."""
    layout: dict[str, Any] = {
        "font": FONT,
        "margin": {"l": 64, "r": 12, "t": 8, "b": 56},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "bordercolor": LINE, "font": {**FONT, "size": 13}, "align": "left"},
        "xaxis": _axis(chart.x_title),
        "yaxis": _axis(chart.y_title, chart.selected().column(chart.y) if chart.log_y else None),
        # The page has its own: plotly's covers the axis on a narrow screen.
        "showlegend": False,
        "dragmode": "zoom",
    }
    if chart.percent:
        layout["yaxis"] |= {"tickformat": ".0%", "range": [0, 1.04]}
    draw = {"lines": _lines, "bars": _bars, "map": _map}[chart.kind]
    return {"data": draw(chart, layout), "layout": layout}


def _axis(title: str, logarithmic: Sequence[float] | None = None) -> dict[str, Any]:
    """Return an axis; of one that is logarithmic the values are given."""
    axis: dict[str, Any] = {
        "title": {"text": title, "standoff": 10, "font": {**FONT, "size": 13}},
        "gridcolor": GRID,
        "linecolor": LINE,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": LINE,
        "automargin": True,
    }
    if logarithmic is not None:
        shown = [value for value in logarithmic if value > 0 and math.isfinite(value)]
        decades = math.log10(max(shown) / min(shown)) if shown else 0.0
        # Plotly writes powers of ten a quarter larger than other numbers.
        axis |= {"type": "log", "exponentformat": "power", "tickfont": {**FONT, "size": 11}}
        if decades > 1:
            axis["dtick"] = max(1, math.ceil(decades / 6))
    return axis


def _lines(chart: Chart, layout: dict[str, Any]) -> list[dict[str, Any]]:
    figure = ".1%" if chart.percent else ".3~g" if not chart.log_y else ".2e"
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(xs) <= 60 else "lines",
            "name": name,
            "x": xs,
            # JSON has no NaN, and a logarithmic axis no 0.
            "y": [y if math.isfinite(y) and (y > 0 or not chart.log_y) else None for y in ys],
            "line": {"color": COLOURS[position % len(COLOURS)], "width": 2},
            "marker": {"size": 4},
            "hovertemplate": f"<b>{html.escape(name)}</b><br>{chart.x_title} %{{x:,}}: %{{y:{figure}}}<extra></extra>",
        }
        for position, (name, (xs, ys)) in enumerate(chart.groups().items())
    ]


def _bars(chart: Chart, layout: dict[str, Any]) -> list[dict[str, Any]]:
    """One bar for each row; where every curve has a bar of its own, the bars are named and lie on their side."""
    figure = ".1%" if chart.percent else ".3~g"
    groups = chart.groups()
    if chart.x == chart.curves:
        layout |= {"xaxis": layout["yaxis"], "yaxis": {**layout["xaxis"], "autorange": "reversed"}}
        layout["yaxis"] |= {"ticks": "", "gridcolor": "white"}
        names = list(groups)
        values = [groups[name][1][0] for name in names]
        colours = [COLOURS[position % len(COLOURS)] for position in range(len(names))]
        return [
            {
                "type": "bar",
                "orientation": "h",
                "x": values,
                "y": names,
                "marker": {"color": colours},
                "text": [f"{100 * value:.1f} %" if chart.percent else f"{value:.3g}" for value in values],
                "textposition": "auto",
                "cliponaxis": False,
                "hovertemplate": f"<b>%{{y}}</b><br>{chart.y_title} %{{x:{figure}}}<extra></extra>",
            }
        ]
    layout["xaxis"]["type"] = "category"
    layout |= {"barmode": "group", "bargap": 0.2}
    return [
        {
            "type": "bar",
            "name": name,
            "x": [f"{x:,}" if isinstance(x, int) else x for x in xs],
            "y": ys,
            "marker": {"color": COLOURS[position % len(COLOURS)]},
            "hovertemplate": f"<b>{html.escape(name)}</b><br>{chart.x_title} %{{x}}: %{{y:{figure}}}<extra></extra>",
        }
        for position, (name, (xs, ys)) in enumerate(groups.items())
    ]


def _map(chart: Chart, layout: dict[str, Any]) -> list[dict[str, Any]]:
    groups = chart.groups()
    names = list(groups)
    columns = next(iter(groups.values()))[0]
    values = [groups[name][1] for name in names]
    limit = chart.limit
    layout["yaxis"] |= {"autorange": "reversed", "ticks": "", "title": {"text": ""}}
    layout["xaxis"] |= {"ticks": "", "side": "bottom"}
    return [
        {
            "type": "heatmap",
            "x": columns,
            "y": names,
            # JSON has no infinity.
            "z": [[max(-limit, min(limit, value)) for value in row] for row in values],
            "zmin": -limit,
            "zmax": limit,
            "colorscale": DIVERGING,
            "showscale": False,
            "xgap": 3,
            "ygap": 3,
            "text": [[_exponent(value) for value in row] for row in values],
            "texttemplate": "%{text}",
            # Of a size that plotly does not shrink to the smallest cell.
            "textfont": {"size": 12},
            "hovertemplate": f"<b>%{{x}}, %{{y}}</b><br>{chart.y_title} %{{text}}<extra></extra>",
        }
    ]


def _exponent(value: float) -> str:
    """Return -16.3 as "−16", 2.2 as "+2", and what is log10(0) as "−∞"."""
    if math.isinf(value):
        return "−∞" if value < 0 else "+∞"
    whole = round(value)
    return f"{whole:+d}".replace("-", "−") if whole else "0"
