"""The pages of a monitor and of `fastgrad profile` in Chromium: legible on a phone, nothing outside of the window."""

from __future__ import annotations

import numpy as np
import pytest

import fastgrad
from fastgrad import Adam, GradientMonitor, layers

pytest.importorskip("playwright.sync_api", reason="needs playwright")
lab_picture = pytest.importorskip("devtools.lab_picture", reason="needs the checkout")
if not lab_picture.chromium():
    pytest.skip("needs Chromium", allow_module_level=True)


def gradients(path):
    model = layers.Sequential(layers.Linear(4, 4), layers.Linear(4, 2))
    optimizer = Adam(model.parameters())
    with GradientMonitor(optimizer, every=1, model=model) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            model.backward(fastgrad.mse(model.forward(np.ones((3, 4), np.float32)), np.zeros((3, 2), np.float32))[1])
            optimizer.step()
    monitor.report(path)


def profile(path):
    from fastgrad.profiling import measure, ops, plot

    path.write_text(plot.html_page(measure.measure(ops.chosen(["relu"]), [4096], 1)), encoding="utf-8")


@pytest.mark.parametrize("write", [gradients, profile])
@pytest.mark.parametrize("width", [1280, 400])
def test_charts_stay_large_enough_to_read(write, width, tmp_path):
    path = tmp_path / "page.html"
    write(path)
    with lab_picture.browser() as chromium:
        tab = chromium.new_page(viewport={"width": width, "height": 900})
        tab.goto(path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        for chart in tab.query_selector_all("img, figure svg"):
            # Drawn for some 1,000 pixels with letters of 10: at 400 they would have 4.
            assert chart.bounding_box()["width"] >= 700
