"""The trainer with --model transformer: torch's losses, its context, resuming bit for bit, and the command."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_train import CORPUS, LOSS_TOLERANCE, words

import fastgrad
from fastgrad.training import Config, Corpus, Trainer, UserError, checkpoint
from fastgrad.training.run import Options, train
from fastgrad.training.sample import sample

TINY = {"model": "transformer", "hidden": 12, "layers": 2, "heads": 3, "seq_length": 7, "batch": 4}


def torch_losses(torch, trainer, steps):
    """Return the losses of the same model, weights, batches, clip and Adam in PyTorch."""
    config, V = trainer.config, len(trainer.corpus.vocabulary)
    dtype = getattr(torch, config.dtype)
    model = torch.nn.ModuleDict({
        "embedding": torch.nn.Embedding(V, config.hidden),
        "position": torch.nn.Embedding(config.seq_length, config.hidden),
        "blocks": torch.nn.Sequential(*(
            torch.nn.TransformerEncoderLayer(
                config.hidden, config.heads, 4 * config.hidden, 0.0, "gelu", norm_first=True
            )
            for _ in range(config.layers)
        )),
        "norm": torch.nn.LayerNorm(config.hidden),
        "head": torch.nn.Linear(config.hidden, V),
    }).to(dtype)  # fmt: skip
    model.load_state_dict({name: torch.tensor(array) for name, array in trainer.model.state_dict().items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    windows = Trainer(config, trainer.corpus).windows
    mask = torch.nn.Transformer.generate_square_subsequent_mask(config.seq_length, dtype=dtype)
    losses = []
    for _ in range(steps):
        x, targets, _ = windows.next()
        y = model["embedding"](torch.from_numpy(x)) + model["position"].weight[:, None]
        for block in model["blocks"]:
            y = block(y, src_mask=mask, is_causal=True)
        logits = model["head"](model["norm"](y))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype_name", ["float64", "float32"])
def test_fifty_steps_give_torchs_losses(trainer_backend, dtype_name):
    torch = pytest.importorskip("torch")
    config = Config(**{**TINY, "seq_length": 20, "hidden": 24}, dtype=dtype_name, lr=5e-3, clip=0.9)
    trainer = Trainer(config, CORPUS, trainer_backend)
    expected = torch_losses(torch, trainer, 50)
    results = [trainer.train_step() for _ in range(50)]
    losses = trainer.history["loss"]
    assert np.abs(np.array(losses) - expected).max() <= 10 * LOSS_TOLERANCE[dtype_name]
    assert losses[-1] < 0.8 * losses[0]
    assert 0 < sum(result.clip_coefficient < 1 for result in results) < 50


def test_resuming_is_bit_for_bit(trainer_backend, tmp_path):
    config = Config(**TINY)
    whole, half = (Trainer(config, CORPUS, trainer_backend) for _ in range(2))
    epoch = len(CORPUS.codes) // (TINY["batch"] * TINY["seq_length"])
    for step in range(epoch + 5):
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
    assert ours.keys() == theirs.keys() and not any(name.startswith("state.") for name in ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_a_gpu_gives_the_losses_of_the_cpu(device):
    config = Config(**{**TINY, "dtype": "float64"})
    there, here = Trainer(config, CORPUS, "gpu"), Trainer(config, CORPUS, "cpu")
    for _ in range(3):
        there.train_step()
        here.train_step()
    for name, values in here.history.items():
        np.testing.assert_allclose(there.history[name], values, rtol=1e-11, err_msg=name)
    assert there.validate() == pytest.approx(here.validate(), rel=1e-11)
    assert {type(array) for array in there.model.state_dict().values()} == {device.ndarray}
    assert len(sample(there, 9, 0.8)) == 9


def test_one_character_after_another_sees_what_a_window_sees():
    model = Trainer(Config(**TINY, dtype="float64"), CORPUS).model
    codes = CORPUS.codes[:30, None]
    whole, _ = model.forward(codes[:7])
    state, found = None, []
    for code in codes:
        logits, state = model.forward(code[None], state)
        found.append(logits[0, 0])
    np.testing.assert_allclose(found[:7], whole[:, 0], rtol=1e-10, atol=1e-12)
    last, _ = model.forward(codes[-7:])  # of more characters than places, the last count
    np.testing.assert_allclose(found[-1], last[-1, 0], rtol=1e-10, atol=1e-12)


def test_every_character_of_validation_is_predicted_once_from_half_a_window_or_more():
    trainer = Trainer(Config(**{**TINY, "seq_length": 8, "dtype": "float64"}), CORPUS)
    for _ in range(5):
        trainer.train_step()
    codes, batch = CORPUS.codes, TINY["batch"]
    held_out = CORPUS.validation_length(batch)
    length, losses = held_out // batch, []
    for stream in range(batch):
        first = len(codes) - held_out + stream * length
        for at in range(first, first + length):
            window = (at - first) // 4 * 4
            begin = first - 1 + window - (8 - min(4, length - window))
            logits = trainer.model.forward(codes[begin:at, None])[0][-1, 0]
            losses.append(np.log(np.exp(logits).sum()) - logits[codes[at]])
    assert trainer.validate() == pytest.approx(np.mean(losses) / math.log(2), rel=1e-10)
    assert trainer.state is None


def test_the_backends_agree_and_samples_repeat():
    texts = []
    losses = {}
    for name in ("cpu", "reference"):
        trainer = Trainer(Config(**TINY, dtype="float64"), CORPUS, name)
        losses[name] = [trainer.train_step().loss for _ in range(5)]
        texts.append(sample(trainer, 40, 0.8, seed=3))
        assert fastgrad.get_backend() is None
    np.testing.assert_allclose(losses["cpu"], losses["reference"], rtol=1e-10)
    assert texts[0] == texts[1] and len(texts[0]) == 40


def test_defaults_are_those_of_the_model():
    assert Config.of() == Config()
    config = Config.of(model="transformer", layers=3)
    assert (config.model, config.layers, config.hidden) == ("transformer", 3, 128)
    assert Config.from_dict(config.as_dict()) == config


@pytest.mark.parametrize(("values", "match"), [
    ({"model": "transformer", "hidden": 10}, "--hidden must divide into 4 heads, got 10"),
    ({"model": "transformer", "heads": 0}, "--heads must be a whole number"),
    ({"model": "transformer", "embedding": 5}, "--embedding means nothing to --model transformer"),
    ({"model": "gru", "heads": 2}, "--heads means nothing to --model gru"),
    ({"model": "rnn"}, "--model must be lstm or gru or transformer, got 'rnn'"),
])  # fmt: skip
def test_config_errors(values, match):
    with pytest.raises(UserError, match=match):
        Config.of(**values)


def test_the_command_runs_resumes_and_compares(tmp_path, capfd):
    (tmp_path / "text").write_text(words(400))
    model = {name: value for name, value in TINY.items() if name != "batch"}
    options = {"out": tmp_path / "out", "sample_length": 20, "validate_every": 2}
    assert train(Options(source=str(tmp_path / "text"), model=model, steps=3, **options)) == 0
    assert train(Options(resume=True, steps=5, **options)) == 0
    captured = capfd.readouterr()
    assert "model: transformer, 2 blocks of 12, 3 heads, 7 places" in captured.err
    assert captured.out.count("bits per character") == 2 and "naive NumPy" in captured.out
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000


def test_it_learns():
    """Words with structure: far below the bits of letter frequencies in two hundred steps."""
    corpus = Corpus.from_text(words(4000))
    trainer = Trainer(Config(**{**TINY, "hidden": 24, "seq_length": 24, "batch": 8}, lr=5e-3), corpus)
    counts = np.bincount(corpus.codes) / len(corpus.codes)
    frequencies = -np.sum(counts * np.log2(counts))
    for _ in range(200):
        trainer.train_step()
    assert trainer.validate() < 0.6 * frequencies
