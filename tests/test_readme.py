"""The README's Python examples run as they stand, and what it promises of files and commands is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fastgrad
from fastgrad import Adam, layers

README = Path(__file__).resolve().parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not part of an installation")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def example(phrase: str) -> str:
    """Return the Python example that has this phrase."""
    (found,) = (block for block in blocks("python") if phrase in block)
    return found


def test_every_python_example_is_run_here():
    phrases = re.findall(r'example\("(.*?)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert {example(phrase) for phrase in phrases} == set(blocks("python"))


def test_single_kernels():
    text = example("fastgrad.lstm(")
    rng = np.random.default_rng(0)
    T, B, H = 5, 3, 4  # the inputs have H entries too: one x serves all examples
    shapes = {"x": (T, B, H), "dy": (T, B, H), "db": (H,)}
    shapes |= {"w_ih": (4 * H, H), "w_hh": (4 * H, H), "b_ih": (4 * H,), "b_hh": (4 * H,)}
    names = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    params = [rng.standard_normal(shape) for shape in ((3, 4), (7,))]
    names |= {"params": params, "list_of_grads": [10 * p for p in params], "t": 1}
    names |= {name: [np.zeros_like(p) for p in params] for name in "mv"}
    before = [p.copy() for p in params]
    exec(compile(text, "README.md", "exec"), names)
    assert names["norm"] > 1 and names["dx"].shape == (T, B, H) == names["grads"].dx.shape
    assert all((p != old).all() for p, old in zip(params, before, strict=True))


def test_layers():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3, 64), dtype=np.float32)
    names = {"x": x, "targets": rng.integers(0, 100, (5, 3))}
    exec(compile(example("layers.LSTM(64, 256, num_layers=2)"), "README.md", "exec"), names)
    assert not names["report"].skipped and names["report"].grad_norm > 0


def test_a_monitor(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = layers.Sequential(layers.Linear(6, 5), layers.Activation("relu"), layers.Linear(5, 3))

    def train(model, optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            model.backward(model.forward(np.ones((4, 6), np.float32)))
            optimizer.step()

    names = {"model": model, "optimizer": Adam(model.parameters()), "train": train}
    exec(compile(example("GradientMonitor("), "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("healthy in 2 looks up to step 10")
    assert {path.name for path in tmp_path.iterdir()} == {"gradients.csv", "gradients.html"}


def test_a_layer_of_ones_own():
    text = example("gradcheck(Scale(5)")
    lines = [line for line in text.splitlines() if line.startswith(("class", " "))]
    assert len(lines) <= 10  # as it says
    exec(compile(text, "README.md", "exec"), {"fastgrad": fastgrad, "layers": fastgrad.layers, "np": np})
    wrong = text.replace("return dy * self", "return -dy * self")
    with pytest.raises(fastgrad.testing.GradcheckError, match="x: 20 of 20 entries"):
        exec(compile(wrong, "README.md", "exec"), {"fastgrad": fastgrad, "layers": fastgrad.layers, "np": np})


def test_on_a_device(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", device)
    rng = np.random.default_rng(0)
    names = {"x": rng.standard_normal((3, 2, 64), dtype=np.float32), "targets": rng.integers(0, 100, (3, 2))}
    exec(compile(example("import cupy"), "README.md", "exec"), names)
    assert not names["report"].skipped and names["report"].grad_norm > 0
    assert type(names["logits"]) is device.ndarray and float(names["loss"]) > 0


def test_named_commands_and_files_exist():
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z-]+)\b", text)) - {"and"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for name in set(re.findall(r"`((?:bench|kernels|tests|fastgrad)/[\w/.]*)`", text)):
        assert (README.parent / name).exists(), name
