"""The trainer: torch's losses, windows and validation, resuming bit for bit, checkpoints that survive a crash."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastgrad
from fastgrad._arrays import to_host
from fastgrad.training import Config, Corpus, Diverged, Trainer, UserError, checkpoint, read_text, run
from fastgrad.training.compare import compare
from fastgrad.training.curve import save_curve
from fastgrad.training.progress import Goal, duration
from fastgrad.training.run import Options, train
from fastgrad.training.sample import sample
from fastgrad.training.text import TrainingWindows, ValidationStreams

TINY = {"embedding": 6, "hidden": 10, "seq_length": 7, "batch": 4}


def words(count: int, seed: int = 0) -> str:
    """Return a text of words with some structure to learn."""
    rng = np.random.default_rng(seed)
    vocabulary = ["stream", "of", "the", "night", "and", "a", "gradient", "vanishes", "slowly", "over", "time", "é"]
    return " ".join(vocabulary[int(k)] for k in rng.integers(len(vocabulary), size=count))


CORPUS = Corpus.from_text(words(400))


def torch_losses(trainer: Trainer, steps: int) -> list[float]:
    """Return the losses of the same model, weights, batches, clip and Adam in PyTorch."""
    torch = pytest.importorskip("torch")
    config = trainer.config
    dtype = getattr(torch, config.dtype)
    embedding = torch.nn.Embedding(len(trainer.corpus.vocabulary), config.embedding, dtype=dtype)
    rnn = getattr(torch.nn, config.model.upper())(config.embedding, config.hidden, config.layers, dtype=dtype)
    head = torch.nn.Linear(config.hidden, len(trainer.corpus.vocabulary), dtype=dtype)
    model = torch.nn.ModuleDict({"embedding": embedding, "rnn": rnn, "head": head})
    weights = trainer.model.state_dict()
    model.load_state_dict({name: torch.from_numpy(to_host(array).copy()) for name, array in weights.items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    windows = Trainer(config, trainer.corpus).windows
    state, losses = None, []
    for _ in range(steps):
        x, targets, begins = windows.next()
        if state is None or begins:
            state = None
        elif config.model == "lstm":
            state = tuple(part.detach() for part in state)
        else:
            state = state.detach()
        y, state = rnn(embedding(torch.from_numpy(x)), state)
        loss = torch.nn.functional.cross_entropy(head(y).flatten(0, 1), torch.from_numpy(targets).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


LOSS_TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def assert_torchs_losses(backend, cell, dtype_name, steps=50, **sizes):
    corpus = CORPUS if sizes.get("hidden") else Corpus.from_text(words(20_000))
    trainer = Trainer(Config(model=cell, dtype=dtype_name, **sizes), corpus, backend)
    expected = torch_losses(trainer, steps)
    results = [trainer.train_step() for _ in range(steps)]
    losses = trainer.history["loss"]
    difference = np.abs(np.array(losses) - expected)
    assert difference.max() <= LOSS_TOLERANCE[dtype_name], f"step {difference.argmax()}: {difference.max():g}"
    assert losses[-1] < 0.8 ** (steps / 50) * losses[0]
    return results


FIFTY = {"embedding": 16, "hidden": 48, "layers": 2, "seq_length": 20, "batch": 5, "lr": 0.01, "clip": 0.5}


@pytest.mark.parametrize("dtype_name", ["float64", "float32"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fifty_steps_give_torchs_losses(trainer_backend, cell, dtype_name):
    results = assert_torchs_losses(trainer_backend, cell, dtype_name, **FIFTY)
    clipped = sum(result.clip_coefficient < 1 for result in results)
    assert 0 < clipped < 50  # both sides of the clip were seen, and more than one epoch


@pytest.mark.parametrize(("cell", "dtype_name"), [("lstm", "float32"), ("gru", "float32"), ("lstm", "float64")])
def test_steps_at_the_default_size_give_torchs_losses(cell, dtype_name):
    assert_torchs_losses("cpu", cell, dtype_name, steps=10)


def test_a_dropped_carried_state_is_noticed(monkeypatch):
    """A planted fault: a trainer that forgets its state between windows must fail the comparison with torch."""
    pytest.importorskip("torch")
    original = Trainer.train_step

    def forgetful(self):
        self.state = None
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", forgetful)
    with pytest.raises(AssertionError, match=r"step \d+: "):
        assert_torchs_losses("reference", "lstm", "float64", **TINY)


def test_windows_are_contiguous_streams():
    codes = np.arange(1000)
    windows = TrainingWindows(codes, 4, 7, np.random.default_rng(0))
    length = 999 // 4
    former, epochs, starts = None, 0, []
    for _ in range(200):
        x, targets, begins = windows.next()
        assert x.shape == targets.shape == (7, 4) and x.flags.c_contiguous and x.base is not None
        np.testing.assert_array_equal(targets, x + 1)
        np.testing.assert_array_equal(x - x[0], np.broadcast_to(np.arange(7)[:, None], (7, 4)))
        np.testing.assert_array_equal(x[0] - x[0, 0], np.arange(4) * length)
        assert begins or former is None or x[0, 0] == former + 1
        epochs += begins
        if begins:
            starts.append(x[0, 0])
            assert former + 1 + 7 > length - 1  # no whole window was left out
        former = x[-1, 0]
    assert epochs == windows.epoch > 3 and len(set(starts)) > 1 and max(starts) < 7


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("size", [40, 101, 5000])
def test_validation_predicts_each_character_once(size, batch):
    corpus = Corpus(np.arange(size), "", "")
    held_out = corpus.validation_length(batch)
    assert size // 20 - batch < held_out <= size // 20 and held_out > 0
    streams = ValidationStreams(corpus.codes, held_out, batch, 9)
    seen, former = [], None
    for x, targets in streams.windows():
        if former is not None:
            np.testing.assert_array_equal(x[0], former + 1)
        former = x[-1]
        if targets is not None:
            np.testing.assert_array_equal(targets, x + 1)
            seen.extend(targets.ravel())
    assert sorted(seen) == list(range(size - held_out, size)) and streams.count == held_out


def test_validation_is_the_mean_over_the_text(trainer_backend):
    """With one stream, `validate` is a plain walk through the text that warms up on the window before."""
    trainer = Trainer(Config(**{**TINY, "batch": 1}), CORPUS, trainer_backend)
    for _ in range(3):
        trainer.train_step()
    codes, held_out = CORPUS.codes, CORPUS.validation_length(1)
    first = len(codes) - held_out
    logits, _ = trainer.model.forward(codes[first - 1 - 7 : -1, None])
    logits = logits[7:, 0].astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(held_out), codes[first:]]
    carried = [part.copy() for part in trainer.state]
    assert trainer.validate() == pytest.approx(losses.mean() / math.log(2), rel=1e-6)
    for part, before in zip(trainer.state, carried, strict=True):
        np.testing.assert_array_equal(part, before)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_resuming_is_bit_for_bit(trainer_backend, cell, layers, tmp_path):
    config = Config(model=cell, layers=layers, **TINY)
    whole = Trainer(config, CORPUS, trainer_backend)
    half = Trainer(config, CORPUS, trainer_backend)
    epoch = len(CORPUS.codes) // (TINY["batch"] * TINY["seq_length"])
    for step in range(2 * epoch):  # on both sides of an epoch's end
        whole.train_step()
        half.train_step()
        if step in (epoch // 2, epoch + 2):
            whole.validate()
            half.validate()
            checkpoint.save(tmp_path, *half.capture(), half.step)
            arrays, contents = checkpoint.load(tmp_path)
            half = Trainer(Config.from_dict(contents["config"]), CORPUS, trainer_backend)
            half.restore(arrays, contents)
    assert whole.windows.epoch > 0 and whole.history == half.history and whole.validations == half.validations
    ours, theirs = whole.capture()[0], half.capture()[0]
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_what_a_checkpoint_holds(tmp_path):
    trainer = Trainer(Config(**TINY), CORPUS, "reference")
    trainer.train_step()
    trainer.validate()
    arrays, contents = trainer.capture()
    assert {name.split(".")[0] for name in arrays} == {"model", "optimizer", "state", "history"}
    assert arrays["state.h"].shape == arrays["state.c"].shape == (1, 4, 10)
    assert arrays["optimizer.0.exp_avg"].shape == arrays["model.embedding.weight"].shape
    assert json.loads(json.dumps(contents))["vocabulary"] == CORPUS.vocabulary
    assert contents["step"] == 1 and contents["config"]["hidden"] == 10 and contents["validations"][0][0] == 1


def spoil(name):
    def change(arrays, contents):
        if name in arrays:
            del arrays[name]
        else:
            del contents[name]

    return change


@pytest.mark.parametrize(
    "change",
    [
        spoil("model.rnn.weight_hh_l0"),
        spoil("optimizer.0.exp_avg"),
        spoil("history.loss"),
        spoil("windows"),
        spoil("optimizer"),
        spoil("validations"),
        lambda arrays, contents: arrays.update({"state.h": arrays["state.h"][:, :2]}),
        lambda arrays, contents: arrays.update({"model.head.bias": arrays["model.head.bias"][:2]}),
        lambda arrays, contents: arrays.update({"history.loss": arrays["history.loss"][:0]}),
        lambda arrays, contents: contents.update(text_sha256="0"),
        lambda arrays, contents: contents.update(windows={**contents["windows"], "position": 10**9}),
        lambda arrays, contents: contents.update(windows={**contents["windows"], "rng": {"bit_generator": "MT"}}),
    ],
)
def test_a_checkpoint_that_does_not_fit(change):
    trainer = Trainer(Config(**TINY), CORPUS, "reference")
    trainer.train_step()
    arrays, contents = trainer.capture()
    change(arrays, contents)
    with pytest.raises(UserError, match=r"does not fit together|is not the one"):
        Trainer(Config(**TINY), CORPUS, "reference").restore(arrays, contents)


CRASH = """
import os, sys
from pathlib import Path
import numpy as np
from fastgrad.training import checkpoint

folder, function, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
original = getattr(os, function)

def crash(*args, **kwargs):
    global count
    count -= 1
    if count < 0:
        os._exit(9)
    return original(*args, **kwargs)

setattr(os, function, crash)
checkpoint.save(folder, {"a": np.full(1000, 2.0)}, {"value": 2}, 2)
"""


@pytest.mark.parametrize(
    ("function", "count", "survivor"),
    [("fsync", 0, 1), ("replace", 0, 1), ("fsync", 2, 1), ("replace", 1, 1), ("fsync", 3, 2), ("unlink", 0, 2)],
)
def test_a_crash_inside_a_write_leaves_one_whole_pair(tmp_path, function, count, survivor):
    """A planted crash: the process dies at every stage of the second save; arrays and JSON always belong together."""
    checkpoint.save(tmp_path, {"a": np.full(1000, 1.0)}, {"value": 1}, 1)
    died = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), function, str(count)], check=False)
    assert died.returncode == 9
    arrays, contents = checkpoint.load(tmp_path)
    assert contents["value"] == survivor and (arrays["a"] == survivor).all()
    checkpoint.save(tmp_path, {"a": np.full(1000, 3.0)}, {"value": 3}, 3)
    assert checkpoint.load(tmp_path)[1]["value"] == 3
    assert len(list(tmp_path.iterdir())) == 2  # what the crash left behind is gone


def test_a_failing_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"a": np.ones(3)}, {"value": 1}, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, {"a": np.zeros(3)}, {"value": 2}, 2)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path)[1]["value"] == 1 and len(list(tmp_path.iterdir())) == 2


def test_two_runs_in_one_folder(tmp_path):
    """The second is refused: saving, each would delete the arrays that the other's JSON names."""
    options = Options(out=tmp_path, steps=2, model=TINY, comparison=False, sample_length=0)
    held = f"{tmp_path} is in use by another run of fastgrad; wait for its end, or choose another --out"
    with checkpoint.claimed(tmp_path):
        with pytest.raises(UserError, match=re.escape(held)):
            train(options)
        assert list(tmp_path.iterdir()) == []
    assert train(options) == 0
    more = dataclasses.replace(options, resume=True, steps=4)
    with checkpoint.claimed(tmp_path), pytest.raises(UserError, match=re.escape(held)):
        train(more)
    assert train(more) == 0


def test_a_run_that_waited_for_the_folder_does_not_replace_what_was_left_there(tmp_path, monkeypatch):
    prepare = run.prepare_folder

    def and_meanwhile(folder):
        prepare(folder)
        (folder / checkpoint.JSON_NAME).write_text("{}")

    monkeypatch.setattr(run, "prepare_folder", and_meanwhile)
    with pytest.raises(UserError, match="holds a checkpoint already"):
        train(Options(out=tmp_path, steps=2, model=TINY))


def damage(folder: Path, what: str) -> None:
    path = folder / checkpoint.JSON_NAME
    arrays = next(folder.glob("checkpoint-*.safetensors"))
    document = json.loads(path.read_text())
    if what == "truncated json":
        path.write_bytes(path.read_bytes()[:-20])
    elif what == "binary json":
        path.write_bytes(b"\xff\xfe\x00")
    elif what == "foreign json":
        path.write_text('{"model": "somebody else"}')
    elif what == "json list":
        path.write_text("[]")
    elif what == "later version":
        path.write_text(json.dumps({**document, "version": 99}))
    elif what == "no entry":
        path.write_text(json.dumps({**document, "arrays": 3}))
    elif what == "outside":
        path.write_text(json.dumps({**document, "arrays": {**document["arrays"], "file": "../x"}}))
    elif what == "flipped byte":
        raw = bytearray(arrays.read_bytes())
        raw[-5] ^= 1
        arrays.write_bytes(raw)
    elif what == "truncated arrays":
        arrays.write_bytes(arrays.read_bytes()[:-1])
    else:
        arrays.unlink()


DAMAGES = ["truncated json", "binary json", "foreign json", "json list", "later version", "no entry", "outside",
           "flipped byte", "truncated arrays", "missing arrays"]  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found(tmp_path, what):
    checkpoint.save(tmp_path, {"a": np.ones(30)}, {"value": 1}, 1)
    damage(tmp_path, what)
    with pytest.raises(UserError, match=r"is damaged|is not a checkpoint|has format version 99"):
        checkpoint.load(tmp_path)


def test_nan_stops_training(trainer_backend):
    trainer = Trainer(Config(**TINY, lr=1e38, clip=0.0), CORPUS, trainer_backend)
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) at step \d+; try a smaller --lr"):
        for _ in range(20):
            trainer.train_step()
    assert trainer.step < 20 and np.isfinite(trainer.history["loss"]).all()


def test_gradients_that_stay_nonfinite_stop_training(monkeypatch):
    trainer = Trainer(Config(**TINY), CORPUS, "reference")
    original = trainer.model.backward

    def poisoned(dy):
        original(dy)
        trainer.model.head.bias.grad[0] = np.inf

    monkeypatch.setattr(trainer.model, "backward", poisoned)
    with pytest.raises(Diverged, match="not finite in the 10 steps up to 10"):
        for _ in range(20):
            trainer.train_step()
    assert trainer.optimizer.skipped_steps == 10


def test_no_clipping():
    trainer = Trainer(Config(**TINY, clip=0.0), CORPUS, "reference")
    assert [trainer.train_step().clip_coefficient for _ in range(3)] == [1.0] * 3


def test_sample(trainer_backend):
    trainer = Trainer(Config(**TINY), CORPUS, trainer_backend)
    for _ in range(5):
        trainer.train_step()
    before = trainer.capture()[1]["windows"]
    text = sample(trainer, 40, 0.8, seed=1)
    assert len(text) == 40 and set(text) <= set(CORPUS.vocabulary)
    assert text == sample(trainer, 40, 0.8, seed=1) != sample(trainer, 40, 0.8, seed=2)
    assert sample(trainer, 40, 0.0, seed=1) == sample(trainer, 40, 0.0, seed=2)
    assert sample(trainer, 0, 1.0) == ""
    assert trainer.capture()[1]["windows"] == before


def test_sample_draws_from_the_softmax(monkeypatch):
    trainer = Trainer(Config(**TINY), CORPUS, "reference")
    logits = np.linspace(0, 3, len(CORPUS.vocabulary))
    monkeypatch.setattr(trainer.model, "forward", lambda x, state: (logits.copy(), None))
    text = sample(trainer, 20_000, 2.0)
    share = np.array([text.count(character) for character in CORPUS.vocabulary]) / len(text)
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum()
    np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / len(text)))


def test_compare_leaves_the_trainer_as_it_is():
    trainer = Trainer(Config(**TINY), CORPUS, "reference")
    trainer.train_step()
    before = trainer.capture()
    arrays = {name: array.copy() for name, array in before[0].items()}
    result = compare(trainer, turns=3, steps=2)
    assert result.backends == ("cpu", "reference") and min(result.speeds) > 0
    assert (result.turns, result.steps) == (3, 2)
    assert str(result).endswith("x, medians of 3 turns of 2 steps each")
    after = trainer.capture()
    assert after[1] == before[1]
    for name, array in after[0].items():
        np.testing.assert_array_equal(array, arrays[name])


def test_curve(tmp_path):
    trainer = Trainer(Config(**TINY), CORPUS, "reference")
    for _ in range(30):
        trainer.train_step()
    trainer.validate()
    trainer.history["grad_norm"][3] = math.inf
    save_curve(tmp_path / "curve.png", trainer)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_goal_and_duration():
    assert Goal(100, None).fraction(50, 1e9) == 0.5 and Goal(None, 60).fraction(10**9, 30) == 0.5
    assert Goal(100, 60).fraction(10, 60) == 1.0
    assert Goal(100, 60).seconds_left(50, 50, 10) == 5 and Goal(100, None).seconds_left(50, 50, 0) is None
    assert duration(75.4) == "1:15" and duration(3700) == "1:01:40" and duration(59.9) == "1:00"


def test_corpus():
    corpus = Corpus.from_text("bab\U0001f600\nc")
    assert corpus.vocabulary == "\nabc\U0001f600" and corpus.codes.tolist() == [2, 1, 2, 4, 0, 3]
    assert corpus.codes.dtype == np.int64
    with pytest.raises(UserError, match="only the character 'a'"):
        Corpus.from_text("aaaa")
    with pytest.raises(UserError, match="no character"):
        Corpus.from_text("")
    with pytest.raises(UserError, match=r"6 characters, but 4 streams of windows of 7 need 31"):
        corpus.require(4, 7)
    for batch, seq_length in [(1, 1), (1, 2), (3, 5), (32, 64)]:
        needed = max(20, math.ceil(20 * (batch * seq_length + 1) / 19))
        text = Corpus(np.arange(needed) % 3, "abc", "")
        text.require(batch, seq_length)
        windows = TrainingWindows(
            text.codes[: needed - text.validation_length(batch)], batch, seq_length, np.random.default_rng(0)
        )
        assert windows.next()[0].shape == windows.next()[0].shape == (seq_length, batch)
        with pytest.raises(UserError, match=f"need {needed:,}"):
            Corpus(text.codes[:-1], "abc", "").require(batch, seq_length)


def test_the_text_inside_python():
    text = read_text("pydoc_data.topics")
    assert 300_000 < len(text) < 1_000_000 and "assert" in text


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"hidden": 0}, "--hidden must be a whole number"),
        ({"seq_length": 10**7}, "--seq-length must"),
        ({"lr": math.inf}, "--lr must be a finite number above 0"),
        ({"lr": 0.0}, "--lr must"),
        ({"clip": -1.0}, "--clip must"),
        ({"model": "rnn"}, "--model must be lstm or gru"),
        ({"dtype": "float16"}, "--dtype must be"),
        ({"seed": -1}, "--seed must"),
    ],
)
def test_config_errors(values, match):
    with pytest.raises(UserError, match=match):
        Config(**values)


def test_the_backends_agree():
    losses = {}
    for name in ("cpu", "reference"):
        trainer = Trainer(Config(**TINY, dtype="float64"), CORPUS, name)
        losses[name] = [trainer.train_step().loss for _ in range(5)]
        assert fastgrad.get_backend() is None
    np.testing.assert_allclose(losses["cpu"], losses["reference"], rtol=1e-10)


# --- on a GPU, or the device that stands in for one

MICRO = {"embedding": 5, "hidden": 6, "seq_length": 5, "batch": 3}


@pytest.mark.parametrize("dtype_name", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "layers"), [("lstm", 2), ("gru", 1)])
def test_a_gpu_gives_the_losses_of_the_cpu(device, cell, layers, dtype_name):
    config = Config(model=cell, layers=layers, dtype=dtype_name, **MICRO)
    there, here = Trainer(config, CORPUS, "gpu"), Trainer(config, CORPUS, "cpu")
    for _ in range(5):
        there.train_step()
        here.train_step()
    tolerance = {"float32": 2e-6, "float64": 1e-13}[dtype_name]
    for name, values in here.history.items():
        np.testing.assert_allclose(there.history[name], values, rtol=tolerance, err_msg=name)
    assert there.validate() == pytest.approx(here.validate(), rel=tolerance)
    arrays = {**there.model.state_dict(), **{f"state {k}": part for k, part in enumerate(there.state)}}
    assert {type(array) for array in arrays.values()} == {device.ndarray}
    assert there.step == here.step == 5 and there.validations[0][0] == 5


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fifty_steps_on_a_gpu_give_torchs_losses(device, cell):
    results = assert_torchs_losses("gpu", cell, "float32", **FIFTY)
    assert 0 < sum(result.clip_coefficient < 1 for result in results) < 50


def test_a_step_on_a_gpu_waits_for_nothing(device, monkeypatch):
    """Losses come in one transfer, reports one by one, every READ_EVERY steps or when somebody asks."""
    if device.__name__ == "cupy":
        pytest.skip("CuPy's arrays can't be watched")
    trainer = Trainer(Config(**MICRO), CORPUS, "gpu")
    reads = []

    def watch(name):
        original = getattr(device.ndarray, name)

        def watched(self, *args):
            reads.append(name)
            return original(self, *args)

        monkeypatch.setattr(device.ndarray, name, watched)

    for name in ("get", "item", "tolist", "__float__", "__int__", "__bool__"):
        watch(name)
    for _ in range(3):
        trainer.train_step()
    assert reads == [] and trainer.step == 3
    assert len(trainer.history["loss"]) == 3 and reads == ["get"] * 4
    monkeypatch.setattr("fastgrad.training.trainer.READ_EVERY", 2)
    trainer.train_step()
    assert len(reads) == 4
    trainer.train_step()
    assert len(reads) == 7 and trainer.step == 5


@pytest.mark.parametrize(("first", "second"), [("gpu", "gpu"), ("gpu", "cpu"), ("cpu", "gpu")])
def test_checkpoints_cross_devices(device, first, second, tmp_path):
    config = Config(model="lstm", **MICRO)
    whole = Trainer(config, CORPUS, first)
    for _ in range(2):
        whole.train_step()
    checkpoint.save(tmp_path, *whole.capture(), whole.step)
    arrays, contents = checkpoint.load(tmp_path)
    assert {type(array) for array in arrays.values()} == {np.ndarray}
    other = Trainer(config, CORPUS, second)
    other.restore(arrays, contents)
    now, values = other.capture()
    assert now.keys() == arrays.keys() and json.loads(json.dumps(values)) == contents
    for name, array in arrays.items():
        np.testing.assert_array_equal(now[name], array, err_msg=name)
    for _ in range(2):
        whole.train_step()
        other.train_step()
    if first == second:
        assert whole.history == other.history
    np.testing.assert_allclose(whole.history["loss"], other.history["loss"], rtol=2e-6)


def test_a_sample_from_a_gpu(device):
    trainer = Trainer(Config(model="gru", **MICRO), CORPUS, "gpu")
    trainer.train_step()
    before = trainer.state.get()
    text = sample(trainer, 8, 0.8, seed=1)
    assert text == sample(trainer.copy("cpu"), 8, 0.8, seed=1)
    np.testing.assert_array_equal(trainer.state.get(), before)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the products in place of cuBLAS's
def test_divergence_on_a_gpu_is_found_when_it_is_read(device, monkeypatch):
    monkeypatch.setattr("fastgrad.training.trainer.READ_EVERY", 4)
    trainer = Trainer(Config(**MICRO, lr=1e38, clip=0.0), CORPUS, "gpu")
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) at step \d; try a smaller --lr"):
        for _ in range(9):
            trainer.train_step()
    assert trainer.step < 8 and np.isfinite(trainer.history["loss"]).all()


def test_gradients_that_stay_nonfinite_on_a_gpu(device, monkeypatch):
    trainer = Trainer(Config(model="gru", **MICRO), CORPUS, "gpu")
    before = {name: array.get() for name, array in trainer.model.state_dict().items()}
    original = trainer.model.backward

    def poisoned(dy):
        original(dy)
        trainer.model.head.bias.grad[0] = np.inf

    monkeypatch.setattr(trainer.model, "backward", poisoned)
    for _ in range(11):
        trainer.train_step()
    with pytest.raises(Diverged, match="not finite in the 10 steps up to 10"):
        _ = trainer.history
    for name, array in trainer.model.state_dict().items():
        np.testing.assert_array_equal(array.get(), before[name], err_msg=name)


def test_the_comparison_of_a_gpu_is_with_the_cpu(device):
    trainer = Trainer(Config(model="gru", **MICRO), CORPUS, "gpu")
    result = compare(trainer, turns=1, steps=1)
    assert result.backends == ("gpu", "cpu") and min(result.speeds) > 0
    assert " characters/s on the GPU, " in str(result) and " on the CPU (--backend cpu): " in str(result)


def test_a_whole_run_on_a_gpu_goes_on_without_it(device, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(words(200), encoding="utf-8")
    options = Options(
        source=str(text), out=tmp_path / "out", model={"model": "gru", **MICRO}, backend="gpu", steps=3,
        sample_length=5, comparison=False,
    )  # fmt: skip
    assert train(options) == 0
    shown = capsys.readouterr()
    assert "backend gpu" in shown.err and "step 3/3" in shown.err and "validation: " in shown.out
    document = checkpoint.load(options.out)[1]
    assert document["backend"] == "gpu" and document["step"] == 3
    resumed = dataclasses.replace(options, source=None, model={}, resume=True, backend="cpu", steps=5)
    assert train(resumed) == 0 and checkpoint.load(options.out)[1]["backend"] == "cpu"
    assert train(dataclasses.replace(resumed, backend="gpu", steps=6)) == 0
    assert checkpoint.load(options.out)[1]["backend"] == "gpu"
