"""Chromium on the laboratory's page: for its tests, and for the picture in the README.

    fastgrad lab
    python -m devtools.lab_picture runs/lab/lab.html docs/lab.png     four of its charts as one PNG

Needs the Python package playwright (the extra `test`) and a Chromium of the system, which playwright drives.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CHARTS", "browser", "chromium", "picture"]

# Headless, in a container without a sandbox of its own, and without what Chromium asks the network for by itself.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

CHARTS = ("depth-map-100", "remedies-accuracy", "memory-reach", "stacks-losses-1")


def chromium() -> str | None:
    """Return the path of a Chromium, or None."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


@contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium and close it at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield instance
        finally:
            instance.close()


def picture(instance: Any, page: Path, out: Path, charts: Sequence[str] = CHARTS, width: int = 1100) -> None:
    """Write some charts of a page, opened in a browser, as a PNG, two in a row."""
    tab = instance.new_page(viewport={"width": width, "height": 900})
    tab.goto(page.resolve().as_uri())
    tab.evaluate(
        """charts => {
            const grid = document.createElement("div");
            grid.className = "charts";
            grid.style = "background: white; padding: 20px";
            grid.append(...charts.map(id => document.getElementById(id).closest("figure")));
            document.body.replaceChildren(grid);
            return Promise.all(charts.map(id => Plotly.Plots.resize(id)));
        }""",
        list(charts),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    tab.locator(".charts").screenshot(path=out)
    tab.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="lab.html of a full run")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("charts", nargs="*", default=CHARTS, help=f"ids of charts; without: {', '.join(CHARTS)}")
    arguments = parser.parse_args()
    with browser() as instance:
        picture(instance, arguments.page, arguments.out, arguments.charts)


if __name__ == "__main__":
    main()
