"""`fastgrad train digits`: a deep network that learns, the same without remedies that does not, and what is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

from fastgrad.training import digits
from fastgrad.training.deep import DeepNetwork
from fastgrad.training.digits import Options, Outcome, Split, explanation, fit, load
from fastgrad.training.errors import Diverged
from fastgrad.training.one_thread import one_thread

SICK = {"activation": "sigmoid", "init": "old", "norm": "none", "residual": False}
SMALL = ["--depth", "2", "--width", "8", "--epochs", "2"]


@pytest.fixture(scope="module")
def split() -> Split:
    pytest.importorskip("sklearn")
    return load(1)


def fitted(options: Options, split: Split, **others) -> tuple[DeepNetwork, Outcome]:
    with one_thread():
        return fit(options, split, **others)


def test_split(split):
    assert split.images.shape == (1437, 64) and split.test_images.shape == (360, 64)
    images = np.concatenate([split.images, split.test_images])
    assert images.dtype == np.float32 and abs(images.mean()) < 1e-5 and abs(images.std() - 1) < 1e-5
    assert len(np.unique(images, axis=0)) == len(np.unique(load(2).images, axis=0)) + len(
        np.unique(load(2).test_images, axis=0)
    )
    assert set(split.test_digits.tolist()) == set(range(10)) and (load(2).test_digits != split.test_digits).any()


def test_images_are_shifted_by_a_pixel_at_most_each_for_itself(split):
    images = split.images[:200]
    shifted = digits._shifted(images, np.random.default_rng(0)).reshape(-1, 8, 8)
    edge = images.min()
    framed = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)), constant_values=edge)
    seen = set()
    for image, whole in zip(shifted, framed, strict=True):
        places = [(i, j) for i in range(3) for j in range(3) if (whole[i : i + 8, j : j + 8] == image).all()]
        assert places
        seen.add(places[0])
    assert len(seen) == 9


def test_thirty_layers_learn_the_digits(split):
    _, outcome = fitted(Options(), split)
    assert outcome.accuracies[-1] >= 0.97 and len(outcome.losses) == digits.EPOCHS
    assert len(outcome.first_gradients) == 30 and min(outcome.first_gradients) > 1e-3
    assert explanation(Options(), outcome).startswith("the network learned: before the first step a gradient of ")


def test_thirty_layers_without_remedies_do_not(split):
    options = Options(**SICK, epochs=4)
    _, outcome = fitted(options, split)
    assert outcome.accuracies[-1] < 0.25 and outcome.first_gradients[0] < 1e-20
    text = explanation(options, outcome)
    assert text.startswith("the network did not learn: before the first step a gradient of ")
    assert "it vanishes on its way back; try --activation relu --init he --norm batch --residual" in text


def outcome(first: float, last: float, accuracy: float) -> Outcome:
    return Outcome([1.0], [accuracy], [first, 1.0, last], [first, 1.0, last], 1.0)


def test_explanation_follows_from_the_figures():
    options = Options(depth=3)
    assert explanation(options, outcome(1e-9, 1e-2, 0.5)).endswith(
        "a gradient of 1.0e-02 arrives at layer 3, of 1.0e-09 at layer 1: it vanishes on its way back; try a smaller "
        "--lr, or more --epochs"
    )
    assert "it explodes on its way back; try --norm batch --max-norm 1" in explanation(
        Options(depth=3, norm="none", max_norm=0.0), outcome(1e9, 1.0, 0.1)
    )
    assert explanation(options, outcome(0.5, 1.0, 0.1)).startswith("the network did not learn")
    assert explanation(options, outcome(0.5, 1.0, 0.95)).endswith("of 5.0e-01 at layer 1: it gets through")
    assert explanation(options, outcome(1e-9, 1.0, 0.95)).startswith("the network learned")


def test_the_same_seed_gives_the_same_run(split):
    options = {"depth": 2, "width": 8, "epochs": 2}
    one, same, other = (fitted(Options(seed=seed, **options), split) for seed in (1, 1, 2))
    assert one[1].losses == same[1].losses != other[1].losses
    for name, array in one[0].state_dict().items():
        np.testing.assert_array_equal(array, same[0].state_dict()[name])


def test_minutes_end_it_and_a_signal_too(split):
    class Stop:
        received = None

    _, outcome = fitted(Options(depth=1, width=4, minutes=1e-6), split)
    assert len(outcome.losses) == 1
    stop, said = Stop(), []

    def say(line: str) -> None:
        said.append(line)
        stop.received = 2

    _, outcome = fitted(Options(depth=1, width=4, epochs=16), split, stop=stop, say=say)
    assert len(said) == 1 and len(outcome.losses) == 2 and re.match(r"epoch 2/16 \| loss \d\.\d+ \| test ", said[0])


def test_a_signal_within_an_epoch_gives_the_network_that_was_tested(split):
    class Stop:
        asked = 0

        @property
        def received(self):
            self.asked += 1
            return 2 if self.asked > 40 else None  # 22 batches and one look more make an epoch

    network, outcome = fitted(Options(depth=1, width=16, epochs=16), split, stop=Stop())
    assert len(outcome.losses) == 1
    right = network.forward(split.test_images).argmax(axis=1) == split.test_digits
    assert outcome.accuracies == [right.mean()]


def test_a_loss_that_is_no_number_ends_it(split):
    options = Options(depth=30, width=16, norm="none", init="he", max_norm=0.0, lr=1e30, epochs=3)
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(Diverged, match=r"the loss became .* at step \d+; try --norm batch --max-norm 1"),
    ):
        fitted(options, split)


def run(*args, cwd=None, env=None) -> subprocess.CompletedProcess[str]:
    """Run `python -m fastgrad` with these arguments."""
    command = [sys.executable, "-m", "fastgrad", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, encoding="utf-8", timeout=120
    )


def refused(done, *parts: str) -> None:
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("fastgrad: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_a_whole_run(split, tmp_path):
    (tmp_path / "digits").write_text("a text")
    done = run("train", "digits", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training on images of digits; the text file of that name is ./digits" in done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"test: \d+\.\d % of 360 images right, 2 epochs in 0:\d\d", lines[0])
    assert lines[1].startswith("the network ") and lines[2:] == [
        "curve: runs/digits/curve.png", "weights: runs/digits/model.safetensors"
    ]  # fmt: skip
    folder = tmp_path / "runs" / "digits"
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata()["depth"] == "2" and file.metadata()["norm"] == "batch"
        network = DeepNetwork(
            64, 8, 2, 10, activation="relu", init="he", norm="batch", residual=True, rng=np.random.default_rng(9)
        )
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    right = (network.eval().forward(split.test_images).argmax(axis=1) == split.test_digits).mean()
    assert lines[0].startswith(f"test: {100 * right:.1f} %")


def test_a_text_file_called_digits_is_still_read(tmp_path):
    (tmp_path / "digits").write_text("too short")
    refused(run("train", "./digits", cwd=tmp_path), "the text has 9 characters")


def test_options_of_the_text_are_not_options_of_the_digits(tmp_path):
    refused(run("train", "digits", "--hidden", 5, cwd=tmp_path), "--hidden")
    refused(run("train", "--depth", 5, cwd=tmp_path), "--depth")
    for arguments in (["--depth", 0], ["--norm", "group"], ["--init", "zero"], ["--lr", "nan"], ["--max-norm", "-1"]):
        refused(run("train", "digits", *arguments, cwd=tmp_path), arguments[0])
    refused(
        run("train", "digits", "--resume", cwd=tmp_path),
        "'--resume': a run on digits takes some ten seconds and can't be resumed; begin anew, with more --epochs",
    )
    refused(
        run("train", "digits", "--activation", "step", cwd=tmp_path),
        "--activation must be one of identity, relu, ",
        "got 'step'",
    )
    (tmp_path / "file").write_text("precious")
    refused(run("train", "digits", *SMALL, "--out", tmp_path / "file"), "a file is in its place")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_help_is_that_of_the_digits():
    done = run("train", "digits", "--help", env={"COLUMNS": "120"})
    assert done.returncode == 0 and "train digits" in done.stdout and "--residual" in done.stdout
    assert "--cell" not in done.stdout
    assert "train-digits" not in run("--help").stdout


def test_without_scikit_learn_the_install_command_is_named(tmp_path):
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("raise ImportError('none here')")
    done = run("train", "digits", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    refused(done, "scikit-learn, which is not installed", 'pip install "fastgrad[digits]"')
