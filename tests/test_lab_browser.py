"""The laboratory's page in Chromium: it draws what the CSV files hold, answers to the mouse, and asks no network."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")
lab_picture = pytest.importorskip("devtools.lab_picture", reason="needs the checkout")
if not lab_picture.chromium():
    pytest.skip("needs Chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Return the folder of a quick run of everything."""
    folder = tmp_path_factory.mktemp("lab")
    command = [sys.executable, "-m", "fastgrad", "lab", "--quick", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=1800)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def chromium():
    with lab_picture.browser() as instance:
        yield instance


@pytest.fixture(params=[1280, 400])
def tab(request, chromium, out):
    """Return the page, with the script errors and requests that it made, in a window of this width."""
    tab = chromium.new_page(viewport={"width": request.param, "height": 900})
    tab.errors, tab.requests = [], []
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("console", lambda said: tab.errors.append(said.text) if said.type in ("error", "warning") else None)
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto((out / "lab.html").as_uri())
    yield tab
    tab.close()


def rows(out, name: str) -> list[dict[str, str]]:
    with open(out / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def drawn(tab, chart: str) -> list[dict]:
    return tab.evaluate("id => document.getElementById(id).data.map(({name, x, y}) => ({name, x, y}))", chart)


def test_charts_hold_the_figures_of_the_csv_files(tab, out):
    curves = {}
    for row in rows(out, "explosion-steps.csv"):
        curves.setdefault(row["run"], []).append(float(row["loss"]))
    assert {curve["name"]: curve["y"] for curve in drawn(tab, "explosion-loss")} == curves and len(curves) == 2
    (bars,) = drawn(tab, "remedies-accuracy")
    expected = {row["remedy"]: float(row["test_accuracy"]) for row in rows(out, "remedies-accuracy.csv")}
    assert dict(zip(bars["y"], bars["x"], strict=True)) == expected
    layers = [row for row in rows(out, "depth-layers.csv") if row["activation"] == "sigmoid" and row["depth"] == "50"]
    he = [float(row["gradient_norm"]) for row in layers if row["initialisation"] == "He normal"]
    (curve,) = [curve for curve in drawn(tab, "depth-layers-sigmoid") if curve["name"] == "He normal"]
    assert curve["y"] == he and curve["x"] == list(range(1, 51))


def test_a_point_under_the_mouse_says_its_figure(tab, out):
    chart = tab.locator("#stacks-losses-0")
    chart.scroll_into_view_if_needed()
    name, at = "with skip connections", 3
    x, y = tab.evaluate(
        """at => {
            const chart = document.getElementById("stacks-losses-0"), {xaxis, yaxis} = chart._fullLayout;
            const box = chart.getBoundingClientRect(), {x, y} = chart.data[0];
            return [box.left + xaxis._offset + xaxis.d2p(x[at]), box.top + yaxis._offset + yaxis.d2p(y[at])];
        }""",
        at,
    )
    tab.mouse.move(x - 3, y - 3)
    tab.mouse.move(x, y)
    label = chart.locator(".hovertext")
    label.wait_for(timeout=5000)
    table = [row for row in rows(out, "stacks-losses.csv") if row["network"] == "200-layer network"]
    row = [row for row in table if row["variant"] == name][at]
    text = label.text_content()
    assert name in text and f"step {row['step']}: {float(row['loss']):.3g}" in text.replace("\xa0", " ")


def test_names_below_a_chart_hide_and_bring_back_its_curves(tab):
    figure = tab.locator("figure", has=tab.locator("#explosion-norm"))
    lines = figure.locator(".scatterlayer .trace")
    button = figure.get_by_role("button", name="without clipping")
    assert lines.count() == 2 and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert lines.count() == 1 and button.get_attribute("aria-pressed") == "false"
    button.click()
    assert lines.count() == 2


def test_page_draws_everything_without_errors_network_or_a_sideways_scroll(tab):
    charts = tab.evaluate("Object.keys(figures)")
    assert len(charts) > 15 and tab.locator(".chart .main-svg").count() >= len(charts)
    assert tab.locator("section").count() == 5 and tab.locator(".finding").count() == 5
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_picture(chromium, out, tmp_path):
    path = tmp_path / "docs" / "lab.png"
    lab_picture.picture(chromium, out / "lab.html", path, ["remedies-accuracy", "memory-reach"])
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
