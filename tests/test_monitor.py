"""The monitor: what it tells of runs that go wrong, and of those that go well; its history, files, pictures, page."""

from __future__ import annotations

import csv
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import fastgrad
from fastgrad import SGD, Adam, GradientMonitor, layers
from fastgrad._health import Health
from fastgrad._step_report import StepReport
from fastgrad.monitor import Trouble
from fastgrad.monitor.history import COLUMNS, History, Look
from fastgrad.training import Config, Corpus, Trainer, read_text
from fastgrad.training.text import BUILT_IN

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 16)).astype(np.float32)
TARGETS = (X @ RNG.standard_normal((16, 4))).argmax(axis=1)


def network(depth: int, kind: str, width: int = 16) -> layers.Sequential:
    hidden = [part for k in range(depth) for part in (layers.Linear(16, width, rng=k), layers.Activation(kind))]
    return layers.Sequential(*hidden, layers.Linear(width, 4, rng=99))


def train(model, optimizer, steps: int, poison=None) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        _, dy = fastgrad.softmax_cross_entropy(model.forward(X), TARGETS)
        model.backward(dy)
        if poison is not None:
            poison(step, optimizer)
        optimizer.step()


def watched(model, optimizer, steps: int, poison=None, **options) -> GradientMonitor:
    with GradientMonitor(optimizer, model=model, **options) as monitor:
        train(model, optimizer, steps, poison)
    return monitor


def told(monitor: GradientMonitor, kind: str) -> Trouble:
    (trouble,) = [trouble for trouble in monitor.troubles() if trouble.kind == kind]
    return trouble


# --- diagnosis


def test_forty_layers_of_sigmoids():
    model = network(40, "sigmoid")
    monitor = watched(model, Adam(model.parameters(), lr=1e-3), 8)
    trouble = told(monitor, "vanishing")
    assert (trouble.layer, trouble.tensor, trouble.since, trouble.ongoing) == ("0", "0.weight", 0, True)
    assert trouble.words.startswith("The gradient of 0.weight has vanished since step 0: its root mean square is ")
    assert re.search(
        r"is \de-\d\d of that of 80\.bias, the largest\. The same holds for \d\d further layers", str(trouble)
    )
    assert "relu" in trouble.words
    assert monitor.verdict().startswith("The gradient of 0.weight has vanished since step 0") and not monitor.healthy
    assert [t.kind for t in monitor.troubles()] == ["vanishing"]


def test_a_plain_net_of_few_layers_is_healthy():
    for kind in ("relu", "gelu", "sigmoid"):
        model = network(2, kind)
        monitor = watched(model, Adam(model.parameters(), lr=1e-3, max_norm=10.0), 30)
        assert monitor.healthy, (kind, monitor.troubles())
        assert re.match(r"healthy in 30 looks up to step 29: no gradient vanished, .* of its norm", monitor.verdict())


SMALL = {"hidden": 48, "embedding": 16, "seq_length": 24, "batch": 8}


@pytest.fixture(scope="module")
def corpus():
    return Corpus.from_text(read_text(BUILT_IN)[:200_000])


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer"])
def test_a_character_model_raises_no_false_alarm(corpus, cell):
    trainer = Trainer(Config(model=cell, **SMALL), corpus)
    monitor = GradientMonitor(trainer.optimizer, model=trainer.model)
    for _ in range(200):
        trainer.train_step()
    assert monitor.healthy, monitor.troubles()
    assert monitor.verdict().startswith("healthy in 200 looks up to step 199")


@pytest.mark.parametrize("every", [1, 10])
def test_a_learning_rate_a_hundred_times_too_high(corpus, every):
    trainer = Trainer(Config(lr=100 * Config().lr, **SMALL), corpus)
    monitor = GradientMonitor(trainer.optimizer, model=trainer.model, every=every)
    for _ in range(40):
        trainer.train_step()
    trouble = told(monitor, "updates")
    assert trouble.since == 0 and trouble.layer in ("rnn", "head") and trouble.tensor.startswith(trouble.layer)
    assert trouble.words.startswith("The learning rate is too high: ") and "its own norm" in trouble.words
    factor = int(re.search(r"A lr ([\d,]+) times smaller would be usual", trouble.words)[1].replace(",", ""))
    assert 20 <= factor <= 500
    assert "learning rate is too high" in monitor.verdict() and trouble.tensor in monitor.verdict()


def test_plain_descent_that_explodes():
    model = network(2, "relu")
    monitor = watched(model, SGD(model.parameters(), lr=30.0, max_skips=None), 30)
    kinds = {trouble.kind for trouble in monitor.troubles()}
    assert "updates" in kinds and kinds & {"exploding", "nonfinite", "dead"}
    assert monitor.verdict().startswith("The learning rate is too high")


def test_weights_that_begin_at_zero_are_no_trouble():
    model = network(2, "gelu")
    for parameter in model.parameters():
        if parameter.name.endswith("bias"):
            parameter.data[...] = 0
    assert watched(model, Adam(model.parameters(), lr=3e-3), 30).healthy


def test_an_exploding_gradient():
    model = network(2, "gelu")

    def burst(step, optimizer):
        if step == 20:
            model[2].weight.grad *= 1000

    monitor = watched(model, Adam(model.parameters(), lr=1e-3), 30, burst)
    trouble = told(monitor, "exploding")
    assert (trouble.tensor, trouble.layer, trouble.since, trouble.ongoing) == ("2.weight", "2", 20, False)
    assert "has exploded in step 20" in trouble.words and "last seen in step 20" in trouble.words
    assert monitor.verdict().startswith("calm at the end, after trouble: The gradient of 2.weight has exploded")


def test_nan_and_its_first_tensor():
    model = network(3, "gelu")

    def poison(step, optimizer):
        if step == 7:
            for name in ("2.weight", "0.bias"):  # backward comes to 2 before it comes to 0
                dict(model.named_parameters())[name].grad.flat[3] = np.nan

    # Skipped steps are looked at whatever `every` says.
    monitor = watched(model, Adam(model.parameters()), 12, poison, every=5)
    trouble = told(monitor, "nonfinite")
    assert (trouble.tensor, trouble.since, trouble.ongoing) == ("2.weight", 7, False)
    assert "The gradient of 2.weight has NaN in step 7 and in 1 further tensors" in trouble.words
    assert monitor.history.steps().tolist() == [0, 5, 7, 10]


def test_dead_units():
    model = layers.Sequential(
        layers.Linear(16, 16, rng=0), layers.Dropout(0.1, rng=0), layers.Activation("relu"), layers.Linear(16, 4, rng=1)
    )
    model[0].bias.data[:10] = -100
    monitor = watched(model, SGD(model.parameters(), lr=1e-3), 25)
    trouble = told(monitor, "dead")
    assert (trouble.layer, trouble.since) == ("0", 0)
    assert re.match(
        r"Units of a relu are dead: .* at least 50% of the units of 0, and up to (62|69|75)%", trouble.words
    )
    model[0].bias.data[:10] = 0
    assert watched(model, SGD(model.parameters(), lr=1e-3), 25).healthy


@pytest.mark.parametrize(("cell", "gates"), [("lstm", "input, forget and output"), ("gru", "reset and update")])
def test_saturated_gates(corpus, cell, gates):
    trainer = Trainer(Config(model=cell, **SMALL), corpus)
    for name, parameter in trainer.model.named_parameters():
        if name == "rnn.bias_ih_l0":
            parameter.data[...] = 30
    monitor = GradientMonitor(trainer.optimizer, model=trainer.model)
    for _ in range(25):
        trainer.train_step()
    trouble = told(monitor, "saturated")
    assert trouble.layer == "rnn" and trouble.since == 0
    assert f"100% of the values of the {gates} gates of rnn lie below 0.01 or above 0.99" in trouble.words
    monitor.close()
    assert trainer.model.rnn.gates_watcher is None and trainer.optimizer.watchers == []


@pytest.mark.parametrize("make", [type("OwnLSTM", (layers.LSTM,), {}), type("OwnGRU", (layers.GRU,), {})])
def test_saturated_gates_of_a_derived_class(make):
    rnn = make(3, 4)
    for name, parameter in rnn.named_parameters():
        if name.startswith("bias_ih"):
            parameter.data[...] = 30
    optimizer = SGD(rnn.parameters(), lr=1e-3)
    monitor = GradientMonitor(optimizer, model=rnn)
    for _ in range(25):
        optimizer.zero_grad()
        y, _ = rnn.forward(X[:24].reshape(8, 16, 3))
        rnn.backward(y)
        optimizer.step()
    assert make.__name__ in told(monitor, "saturated").words


def test_a_clip_rate_that_stays_at_one():
    model = network(1, "gelu")
    monitor = watched(model, Adam(model.parameters(), max_norm=1e-3), 30, clipped=20)
    trouble = told(monitor, "clipping")
    assert trouble.since == 0 and trouble.layer == "" and "Every step since step 0 was clipped, to 0.0" in trouble.words
    assert watched(model, Adam(model.parameters(), max_norm=1e-3), 19, clipped=20).healthy


def test_one_tensor_may_have_no_gradient_where_its_layer_has_one():
    model = layers.Sequential(layers.Linear(16, 16, rng=0), layers.BatchNorm(16), layers.Linear(16, 4, rng=1))
    monitor = watched(model, Adam(model.parameters()), 12)
    assert monitor.healthy, monitor.troubles()  # the bias in front of BatchNorm has rounding errors for a gradient


# --- reports of steps


@pytest.mark.parametrize("make", [Adam, fastgrad.RMSprop, lambda p, **o: SGD(p, momentum=0.9, **o)])
def test_nothing_is_changed_by_being_watched(make):
    runs = []
    for health in (True, False):
        model = network(2, "gelu")
        optimizer = make(model.parameters(), lr=1e-2, max_norm=0.5, health=health)
        reports = []
        optimizer.watchers.append(lambda report, grads, reports=reports: reports.append(report))
        train(model, optimizer, 5)
        runs.append((reports, [p.data for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]  # norms and coefficients, bit for bit
    assert all(report.health is None for report in runs[1][0])
    for mine, other in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_array_equal(mine, other)


# --- history and files


def look(step: int, n: int = 2) -> Look:
    return Look(step, float(step), 1.0, False, np.full((len(COLUMNS), n), float(step)))


def test_the_history_stays_small_and_covers_the_run():
    history = History(10)
    for step in range(1000):
        history.add(look(step))
        assert len(history.looks) <= 10
    steps = history.steps()
    assert steps[0] == 0 and steps[-1] >= 880 and len(set(np.diff(steps))) == 1 and len(steps) >= 5
    assert history.column("norm").shape == (len(steps), 2) and history.numbers("grad_norm").tolist() == steps.tolist()


def test_files(tmp_path):
    model = network(2, "gelu")
    optimizer = Adam(model.parameters(), max_norm=0.1)
    rows = {}
    monitors = {kind: GradientMonitor(optimizer, every=2, path=tmp_path / f"run.{kind}") for kind in ("csv", "parquet")}
    train(model, optimizer, 150)
    for monitor in monitors.values():
        monitor.close()
    with (tmp_path / "run.csv").open() as file:
        rows["csv"] = list(csv.DictReader(file))
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "run.parquet")
    assert parquet.num_rows == len(rows["csv"]) == 75 * len(model.parameters())
    last = monitors["csv"].history.looks[-1]
    for k, (written, kept) in enumerate(zip(rows["csv"][-6:], parquet.to_pylist()[-6:], strict=True)):
        for name, value in kept.items():
            assert type(value)(written[name]) == value or name == "skipped", name
        assert kept["step"] == 148 and kept["tensor"] == monitors["csv"].names[k]
        assert [kept[name] for name in COLUMNS] == last.values[:, k].tolist()
        assert kept["clip_coefficient"] == last.clip_coefficient < 1 and kept["skipped"] is False


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"path: x.parquet needs pyarrow, pip install 'fastgrad\[monitor\]'"):
        GradientMonitor(Adam([np.zeros(3)]), path=tmp_path / "x.parquet")


def test_tensors_that_take_no_part(tmp_path):
    params = [np.ones(3), np.ones(4), np.ones(5)]
    optimizer = SGD(params, lr=0.1)
    with GradientMonitor(optimizer, path=tmp_path / "x.csv") as monitor:
        optimizer.step([np.ones(3), None, np.ones(5)])
        optimizer.step([np.ones(3), np.ones(4), np.ones(5)])
        optimizer.step([None, None, None])
    np.testing.assert_array_equal(np.isnan(monitor.history.column("nan")), [[0, 1, 0], [0, 0, 0], [1, 1, 1]])
    with (tmp_path / "x.csv").open() as file:
        assert [row["tensor"] for row in csv.DictReader(file)] == [f"params[{k}]" for k in (0, 2, 0, 1, 2)]
    monitor.plot(tmp_path / "x.png")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = network(1, "gelu")
    watched(model, Adam(model.parameters()), 6, tensorboard=tmp_path, histograms=3)
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    assert [event.step for event in events.Scalars("step/grad_norm")] == list(range(6))
    assert len(events.Scalars("update_ratio/0.weight")) == 6 and "nan/0.weight" not in events.Tags()["scalars"]
    histograms = events.Histograms("gradient/2.weight")
    assert [event.step for event in histograms] == [0, 3]
    assert histograms[0].histogram_value.num == 64 == sum(histograms[0].histogram_value.bucket)


# --- pictures


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything(tmp_path):
    model = network(40, "sigmoid")
    monitor = watched(model, Adam(model.parameters()), 8)
    path = monitor.report(tmp_path / "page.html")
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert len(page.links) == 3 and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert monitor.verdict() in page.text and str(told(monitor, "vanishing")) in page.text
    for name in monitor.names:
        assert name in page.text


@pytest.mark.parametrize("column", ["norm", "update_ratio", "max_abs", "zero", "subnormal"])
def test_heat_maps(tmp_path, column):
    params = [np.ones(3), np.ones(4), np.ones(5), np.ones(2)]
    optimizer = SGD(params, lr=0.1)
    with GradientMonitor(optimizer) as monitor:
        for bad in (1.0, np.nan, 1e-310, 3.0):
            optimizer.step([np.array([bad, 0.0, 1e-9]), None, np.zeros(5), np.full(2, 1e300)])
    figure = monitor.plot(tmp_path / "x.svg", column)
    assert (tmp_path / "x.svg").stat().st_size > 1000
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(monitor.names)
    assert axes.get_ylim() == (4.0, 0.0)  # the input at the top
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "took no part" in texts and (column in ("zero", "subnormal")) == ("NaN or infinite" not in texts)


def test_nothing_seen_yet(tmp_path):
    monitor = GradientMonitor(Adam([np.zeros(3)]))
    assert monitor.verdict() == "nothing was looked at yet." and monitor.healthy and monitor.troubles() == []
    assert "nothing was looked at yet" in monitor.report(tmp_path / "page.html").read_text().lower()
    with pytest.raises(ValueError, match="nothing to draw"):
        monitor.plot()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"every": 0}, ValueError, "every: expected 1 or more, got 0"),
        ({"keep": 1.5}, TypeError, "keep: expected an integer, got float"),
        ({"path": "x.json"}, ValueError, r"path: expected a name that ends in .csv or .parquet, got 'x.json'"),
        ({"vanish": 1}, TypeError, "vanish"),
    ],
)
def test_errors(options, error, match):
    with pytest.raises(error, match=match):
        GradientMonitor(Adam([np.zeros(3)]), **options)


def test_wrong_optimizers_and_columns():
    with pytest.raises(TypeError, match="optimizer: expected one of fastgrad's, got list"):
        GradientMonitor([])
    with pytest.raises(ValueError, match="health=False"):
        GradientMonitor(Adam([np.zeros(3)], health=False))
    optimizer = Adam([np.zeros(3)])
    monitor = GradientMonitor(optimizer)
    optimizer.step([np.ones(3)])
    with pytest.raises(ValueError, match=r"column: expected one of 'norm'.*, got 'noise'"):
        monitor.plot(column="noise")


def test_a_look_at_a_report_of_ones_own():
    optimizer = Adam([np.zeros(3), np.zeros(2)])
    monitor = GradientMonitor(optimizer)
    found = np.array([[1.0, math.inf], [1, 1], [0, 0], [0, 1], [0, 0], [0, 0], [0.1, 0]])
    monitor.look(StepReport(math.inf, 0.0, True, Health(("params[0]", "params[1]"), [3, 2], found)))
    assert "The gradient of params[1] has an infinite entry in step 0;" in told(monitor, "nonfinite").words


# --- on a device


def test_nothing_on_a_device_is_read_before_somebody_asks(emulated_gpu, monkeypatch):
    import emulated

    model = layers.Sequential(layers.LSTM(4, 8, rng=0), layers.Linear(8, 3, rng=1)).to("gpu")
    optimizer = Adam(model.parameters(), lr=1e-2, max_norm=1.0)
    monitor = GradientMonitor(optimizer, model=model)
    x, dy = (emulated_gpu.asarray(RNG.standard_normal((3, 2, n)).astype(np.float32)) for n in (4, 3))
    reads = []
    original = emulated.ndarray.get
    monkeypatch.setattr(emulated.ndarray, "get", lambda self: reads.append(self.size) or original(self))

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            model.forward(x)
            model.backward(dy)
            optimizer.step()

    steps(5)
    assert reads == []
    assert monitor.verdict().startswith("healthy in 5 looks up to step 4")
    # Of each step the report, by one copy, and the gates of the last step of the LSTM.
    assert len(reads) == 10 and reads.count(2 * 4 * 8) == 5
    monkeypatch.setattr("fastgrad.monitor.monitor.READ_TOGETHER", 3)
    del reads[:]
    steps(4)
    assert len(reads) == 6 and [len(look.values[0]) for look in monitor.history.looks] == [6] * 9
    assert (monitor.history.column("update_ratio") > 0).all()
