"""The roofline of a profile, as a PNG and as a page of HTML that needs nothing else."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from fastgrad.profiling import show
from fastgrad.profiling.gpu_bench import GPU_COLD
from fastgrad.profiling.measure import Profile, Row
from fastgrad.training.checkpoint import write_atomically

MARKERS = "osD^vP*X<>"


def save(profile: Profile, folder: Path) -> list[Path]:
    """Write roofline.png and profile.html into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    png, page = folder / "roofline.png", folder / "profile.html"
    write_atomically(png, drawn(profile, "png"))
    write_atomically(page, html_page(profile).encode())
    return [png, page]


def drawn(profile: Profile, form: str) -> bytes:
    """Return the picture in a format of matplotlib.

    On the left, what moves bytes: GB/s over the bytes of a call, below the same bytes moved without arithmetic; small
    ones fit a cache and may be faster than memory. On the right, the roofline (Williams, Waterman & Patterson, 2009) of
    whatever has flops to count: GFLOP/s over flops for each byte.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    devices = ["cpu", *(["gpu"] if profile.gpu else [])]
    # The object interface never touches pyplot's global state, and Agg needs no display.
    figure = Figure(figsize=(13.0, 5.6 * len(devices)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(devices), 2, squeeze=False)
    styles = {op: (f"C{k % 10}", MARKERS[k // 10 % len(MARKERS)]) for k, op in enumerate(profile.ops)}
    for device, (moved, roofline) in zip(devices, panels, strict=True):
        # With a warm L2 small arrays come from there, and the limit that is drawn is that of memory.
        name = f"cpu {profile.threads}" if device == "cpu" else GPU_COLD
        title = f"CPU, {show.count(profile.threads, 'thread')}" if device == "cpu" else f"{profile.gpu}, cold L2"
        _draw_moved(moved, profile, device, name, styles, title)
        _draw_roofline(roofline, profile, device, name, styles, title)
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(5, len(handles)),
        fontsize=9,
        frameon=False,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format=form)
    return picture.getvalue()


def _points(profile: Profile, op: str, name: str) -> list[Row]:
    return [row for row in show.rows_of(profile, op) if name in row.seconds]


def _draw_moved(axes: Any, profile: Profile, device: str, name: str, styles: dict[str, Any], title: str) -> None:
    lows, highs = [], []
    for op, (color, marker) in styles.items():
        rows = [row for row in _points(profile, op, name) if not row.cost.arithmetic]
        if rows:
            axes.plot(
                [row.cost.bytes for row in rows], [row.cost.bytes / row.seconds[name] * 1e-9 for row in rows],
                color=color, marker=marker, markersize=5, linewidth=1.3, label=op,
            )  # fmt: skip
            limited = [row for row in rows if device in row.limits]
            lows += [row.cost.bytes for row in limited]
            highs += [row.cost.bytes / row.limits[device] * 1e-9 for row in limited]
    axes.scatter(lows, highs, marker="_", s=120, color="0.35", label="limit: the same bytes without arithmetic")
    bandwidth = profile.ceilings[device].bandwidth * 1e-9
    axes.axhline(bandwidth, color="0.35", linestyle="--", linewidth=1.0)
    axes.annotate(
        f"memory {bandwidth:.3g} GB/s", (0.01, bandwidth), xycoords=("axes fraction", "data"), ha="left", va="bottom",
        fontsize=8, color="0.35",
    )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="bytes of a call", ylabel="GB/s", title=f"{title}: what moves bytes"
    )  # fmt: skip
    _finish(axes)


def _draw_roofline(axes: Any, profile: Profile, device: str, name: str, styles: dict[str, Any], title: str) -> None:
    ceiling = profile.ceilings[device]
    shown = [row for op in styles for row in _points(profile, op, name) if row.cost.flops]
    intensities = [row.cost.flops / row.cost.bytes for row in shown]
    ridge = ceiling.product / ceiling.bandwidth
    low, high = min([*intensities, ridge / 4]) / 2, max([*intensities, ridge * 4]) * 2
    axes.plot(
        [low, ridge, high], [low * ceiling.bandwidth * 1e-9, ceiling.product * 1e-9, ceiling.product * 1e-9],
        color="0.35", linestyle="--", linewidth=1.0,
    )  # fmt: skip
    axes.annotate(
        f"product {ceiling.product * 1e-9:.3g} GFLOP/s", (0.99, ceiling.product * 1e-9),
        xycoords=("axes fraction", "data"), ha="right", va="bottom",
        fontsize=8, color="0.35",
    )  # fmt: skip
    for op, (color, marker) in styles.items():
        rows = [row for row in shown if row.op == op]
        if rows:
            # Larger calls have larger marks: those of one operation may lie above each other.
            sizes = [20 + 25 * k for k in range(len(rows))]
            axes.scatter(
                [row.cost.flops / row.cost.bytes for row in rows],
                [row.cost.flops / row.seconds[name] * 1e-9 for row in rows],
                s=sizes, color=color, marker=marker, alpha=0.85, label=op,
            )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), xlabel="flops for each byte", ylabel="GFLOP/s",
        title=f"{title}: roofline of what has flops to count",
    )  # fmt: skip
    _finish(axes)


def _finish(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    unit = "B" if axes.get_xlabel().startswith("bytes") else ""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{show.plain(value)}{unit}"))
    low, high = axes.get_xlim()
    if high < 100 * low:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(True, which="major", alpha=0.3)
    axes.grid(True, which="minor", alpha=0.1)


STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.dim { color: var(--dim); }
figure { margin: 0; background: white; border-radius: 6px; padding: .5rem; overflow-x: auto; }
figure svg { width: 100%; min-width: 56rem; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .15rem .7rem; text-align: right; }
thead th { border-bottom: 1px solid var(--line); position: sticky; top: 0; background: Canvas; }
th.op { text-align: left; padding-top: .7rem; }
td.text, th.text { text-align: left; }
"""


def html_page(profile: Profile) -> str:
    """Return a page with the picture, which is part of it, and the whole tables."""
    svg = drawn(profile, "svg").decode()
    svg = svg[svg.index("<svg") :]  # without what only a file of its own begins with
    parts = [
        "<!doctype html>", '<html lang="en">', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">', "<title>fastgrad profile</title>",
        f"<style>{STYLE}</style>", "<h1>fastgrad profile</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in show.heading(profile).splitlines()),
        f"<figure>{svg}</figure>", "<h2>CPU</h2>", _table(profile, show.columns(profile, True)),
    ]  # fmt: skip
    if profile.gpu is not None:
        parts += [
            f"<h2>{html.escape(profile.gpu)}, rates with a cold L2</h2>",
            _table(profile, show.gpu_columns(profile, True)),
        ]  # fmt: skip
    parts += [f'<p class="dim">{html.escape(line)}</p>' for line in show.footnotes(profile)]
    return "\n".join(parts) + "\n</html>\n"


def _table(profile: Profile, found: dict[str, Any]) -> str:
    def cell(tag: str, name: str, value: str) -> str:
        left = ' class="text"' if name == "shape" else ""
        return f"<{tag}{left}>{html.escape(value)}</{tag}>"

    lines = [
        "<div class=scroll><table><thead><tr>",
        *(cell("th", name, name) for name in found),
        "</tr></thead><tbody>",
    ]
    for op in profile.ops:
        lines.append(f'<tr><th class="op" colspan="{len(found)}">{html.escape(op)}</th></tr>')
        for row in show.rows_of(profile, op):
            lines += ["<tr>", *(cell("td", name, make(row)) for name, make in found.items()), "</tr>"]
    return "".join([*lines, "</tbody></table></div>"])
