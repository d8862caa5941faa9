"""`profile_model`, its trace, and `fastgrad train --profile`: what is told, and that nothing else changes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import backends
import numpy as np
import pytest

import fastgrad
from fastgrad import layers
from fastgrad.profiling import costs
from fastgrad.profiling.recorder import Recorder, device_of, tree


class Twins(layers.Layer):
    """A layer of somebody's own: two branches of one input, and a generator."""

    def __init__(self) -> None:
        self.left = layers.Linear(6, 6, rng=0)
        self.right = layers.Sequential(layers.Linear(6, 6, rng=1), layers.Activation("tanh"))
        self.rng = np.random.default_rng(5)
        self.draws = 0

    def forward(self, x):
        self.draws += 1
        self.rng.random()
        return self.left.forward(x) + self.right.forward(x)

    def backward(self, dy):
        return self.left.backward(dy) + self.right.backward(dy)


def model(rng=0):
    return layers.Sequential(
        layers.Linear(6, 6, rng=rng),
        layers.BatchNorm(6),
        Twins(),
        layers.Residual(layers.Sequential(layers.Dropout(0.3, rng=3), layers.Linear(6, 6, rng=4)), "pre", 6),
        layers.Linear(6, 3, rng=2),
    )


def state(net):
    """Return everything that a pass could change, as bytes and numbers."""
    found = {name: array.tobytes() for name, array in net.state_dict().items()}
    for path, layer in tree(net):
        for name, value in vars(layer).items():
            if isinstance(value, int | float | str | tuple) and not isinstance(value, bool):
                found[f"{path}.{name}"] = repr(value) if name != "layers" else len(value)
            if isinstance(value, np.random.Generator):
                found[f"{path}.{name}"] = repr(value.bit_generator.state)
        found[f"{path} names"] = sorted(vars(layer))
    for name, parameter in net.named_parameters():
        found[f"{name} grad"] = None if parameter.grad is None else (id(parameter.grad), parameter.grad.tobytes())
    return found


X = np.random.default_rng(0).standard_normal((4, 6), dtype=np.float32)


def test_rows_are_the_tree_and_add_up():
    profile = fastgrad.profile_model(model(), X, steps=4)
    paths = [row.path for row in profile.rows]
    assert paths == [
        "", "0", "1", "2", "2.left", "2.right", "2.right.0", "2.right.1", "3", "3.layer", "3.layer.0", "3.layer.1",
        "3.norm", "4", "between",
    ]  # fmt: skip
    assert profile["2"].kind == "Twins" and [profile[p].depth for p in ("", "2", "2.right.1")] == [0, 1, 3]
    for row in profile.rows:
        below = [
            r for r in profile.rows if r.path and r.path.rpartition(".")[0] == row.path and r.kind and r is not row
        ]
        if row.path:
            assert sum(r.forward for r in below) <= row.forward * 1.000001
            assert sum(r.backward for r in below) <= row.backward * 1.000001 or not below
    top = [row for row in profile.rows if row.depth == 0]
    assert sum(row.seconds for row in top) == pytest.approx(profile.seconds)
    assert sum(row.share for row in top) == pytest.approx(1.0)
    assert profile.steps == 4 and profile.clock == "the host's clock"
    with pytest.raises(KeyError, match="'5': expected one of '', '0'"):
        profile["5"]


def test_bytes_and_flops_are_those_of_the_operations():
    net = layers.Sequential(
        layers.Embedding(11, 6, rng=0), layers.LSTM(6, 5, num_layers=2, bidirectional=True, rng=1),
        layers.LayerNorm(10), layers.Linear(10, 3, rng=2),
    )  # fmt: skip
    x = np.arange(12).reshape(4, 3) % 11
    profile = fastgrad.profile_model(net, x, steps=2)
    embedding = costs.embedding(12, 6) + costs.embedding_backward(12, 6, 11)
    lstm = sum((costs.recurrent("lstm", 4, 3, size, 5) for size in (6, 6, 10, 10)), costs.NOTHING)
    norm = costs.layer_norm(120) + costs.layer_norm_backward(120)
    linear = costs.linear(12, 10, 3) + costs.linear_backward(12, 10, 3)
    assert [profile[str(k)].cost for k in range(4)] == [embedding, lstm, norm, linear]
    assert profile[""].cost == embedding + lstm + norm + linear
    # Of a layer of somebody's own that is known which is inside.
    twins = fastgrad.profile_model(model(), X, steps=1)
    assert twins["2"].cost == twins["2.left"].cost + twins["2.right"].cost


def test_layers_of_a_transformer():
    block = layers.TransformerBlock(8, 2, 16, rng=0, dropout=0.1)
    net = layers.Sequential(layers.Checkpoint(block), layers.PReLU(1))
    before = state(net)
    x = np.random.default_rng(0).standard_normal((5, 3, 8), dtype=np.float32)
    profile = fastgrad.profile_model(net, x, steps=2)
    assert state(net) == before
    attention = profile["0.layer.self_attn"]
    projections = costs.linear(15, 8, 24) + costs.linear(15, 8, 8)
    backward = costs.linear_backward(15, 8, 24) + costs.linear_backward(15, 8, 8)
    heads = costs.attention(3, 2, 5, 5, 4) + costs.attention_backward(3, 2, 5, 5, 4)
    # Within a Checkpoint forward runs twice.
    again = costs.linear(15, 8, 24) + costs.attention(3, 2, 5, 5, 4) + costs.linear(15, 8, 8)
    assert attention.cost == projections + backward + heads + again
    assert profile["0.layer"].kind == "TransformerBlock" and profile["1"].cost is not None


def test_nothing_is_changed_and_no_hook_stays():
    net, twin = model(), model()
    for one in (net, twin):
        one.backward(one.forward(X))  # gradients, running statistics, offsets that are not the first
    net.forward(X)
    twin.forward(X)
    before = state(net)
    profile = fastgrad.profile_model(net, X)
    assert state(net) == before and profile.steps == 10
    # What the last forward kept is still there, and training goes on to the same bits.
    assert np.array_equal(net.backward(np.ones((4, 3), np.float32)), twin.backward(np.ones((4, 3), np.float32)))
    for one in (net, twin):
        one.backward(one.forward(X))
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None and np.array_equal(mine.grad, other.grad)
    for name, array in net.state_dict().items():
        assert np.array_equal(array, twin.state_dict()[name]), name


def test_nothing_is_changed_where_a_layer_raises():
    net = model()
    net.backward(net.forward(X))
    before = state(net)
    calls = itertools.count()
    plain = net[2].left.forward

    def broken(x):
        if next(calls) == 2:
            raise OverflowError("planted")
        return plain(x)

    vars(net[2].left)["forward"] = broken
    with pytest.raises(OverflowError, match="planted"):
        fastgrad.profile_model(net, X)
    assert vars(net[2].left).pop("forward") is broken  # a hook that was there before is there again
    assert state(net) == before


def test_arguments():
    net = layers.LSTM(6, 5, rng=0)
    x, h = np.ones((3, 2, 6), np.float32), np.zeros((1, 2, 5), np.float32)
    profile = fastgrad.profile_model(net, (x, (h, h)), dy=np.ones((3, 2, 5), np.float32), steps=1)
    assert profile[""].cost == costs.recurrent("lstm", 3, 2, 6, 5)
    with pytest.raises(TypeError, match=r"model: expected a layer of fastgrad\.layers, got list"):
        fastgrad.profile_model([net], x)
    with pytest.raises(ValueError, match="steps: expected 1 or more, got 0"):
        fastgrad.profile_model(net, x, steps=0)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = str(fastgrad.profile_model(model(), X, steps=1))
    lines = text.splitlines()
    assert max(map(len, lines)) <= max(width, 72)
    assert lines[1].split()[:4] == ["layer", "forward", "backward", "share"]
    assert ("rate" in lines[1]) == (width > 60)
    assert any(line.startswith("    right ") for line in lines)


# --- on a device


def test_on_a_device_events_tell_and_ranges_have_names(emulated_gpu):
    nvtx = emulated_gpu.cuda.nvtx
    nvtx.names.clear()
    net = model().to("gpu")
    x = emulated_gpu.asarray(X)
    before = {name: array.get().tobytes() for name, array in net.state_dict().items()}
    profile = fastgrad.profile_model(net, x, steps=2)
    assert profile.clock == "CUDA events" and all(row.seconds >= 0 for row in profile.rows)
    assert profile["2.left"].forward > 0 and profile["2.left"].cost == costs.linear(4, 6, 6) + costs.linear_backward(
        4, 6, 6
    )
    assert nvtx.open == [] and nvtx.names.count("2.right.1 forward") == 2 and "Sequential backward" in nvtx.names
    assert {name: array.get().tobytes() for name, array in net.state_dict().items()} == before
    tracks = {event["tid"] for event in check_trace(trace(profile)) if event["ph"] == "X"}
    assert tracks == {1, 2}


def test_nothing_waits_for_the_device_before_the_end(emulated_gpu, monkeypatch):
    net = model().to("gpu")
    x = emulated_gpu.asarray(X)
    recorder = Recorder(net, device_of(net))
    with recorder:
        net.backward(net.forward(x))  # outside of a step nothing is recorded
        assert recorder.spans == []
        monkeypatch.setattr(emulated_gpu.cuda.Event, "synchronize", lambda self: pytest.fail("waited"))
        monkeypatch.setattr(emulated_gpu.cuda, "get_elapsed_time", lambda *_: pytest.fail("asked"))
        with recorder.step():
            net.backward(net.forward(x))
    assert len(recorder.spans) == 1 + 2 * len(list(tree(net)))
    assert not any({"forward", "backward"} & set(vars(layer)) for _, layer in tree(net))


# --- the trace


def trace(profile) -> dict:
    from fastgrad.profiling.trace import trace_of

    return json.loads(json.dumps(trace_of(profile.spans)))


def check_trace(found: dict) -> list[dict]:
    """Check a trace against the Trace Event Format; return its events.

    Events of one thread may only be nested: a viewer draws others wrong, or drops them.
    """
    assert set(found) <= {"traceEvents", "displayTimeUnit", "otherData", "metadata"}
    assert found.get("displayTimeUnit", "ms") in ("ms", "ns")
    events = found["traceEvents"]
    assert isinstance(events, list) and events
    for event in events:
        assert isinstance(event["name"], str) and event["name"] and type(event["pid"]) is type(event["tid"]) is int
        assert isinstance(event.get("args", {}), dict)
        if event["ph"] == "M":
            wanted = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}
            assert wanted[event["name"]] in event["args"]
            continue
        assert event["ph"] == "X" and isinstance(event["cat"], str)
        for key in ("ts", "dur"):
            assert isinstance(event[key], int | float) and 0 <= event[key] < 1e12
    for _, group in itertools.groupby(sorted(spans_of(events), key=lambda e: (e["pid"], e["tid"], e["ts"], -e["dur"])),
                                      lambda e: (e["pid"], e["tid"])):  # fmt: skip
        stack: list[float] = []
        for event in group:
            while stack and stack[-1] <= event["ts"] + 1e-6:
                stack.pop()
            end = event["ts"] + event["dur"]
            assert not stack or end <= stack[-1] + 1e-3, event
            stack.append(end)
    return events


def spans_of(events: list[dict]) -> list[dict]:
    return [event for event in events if event["ph"] == "X"]


def test_the_trace_is_one(tmp_path):
    profile = fastgrad.profile_model(model(), X, steps=3)
    profile.save_trace(tmp_path / "trace.json")
    events = check_trace(json.loads((tmp_path / "trace.json").read_text()))
    names = [event["name"] for event in spans_of(events)]
    assert (
        names.count("step") == 3 and names.count("2.right.1 backward") == 3 and names.count("Sequential forward") == 3
    )
    linear = next(event for event in events if event["name"] == "0 backward")
    flops = costs.linear_backward(4, 6, 6).flops
    assert linear["args"] == {
        "step": 0,
        "layer": "0",
        "kind": "Linear",
        "bytes": linear["args"]["bytes"],
        "flops": flops,
    }
    assert min(event["ts"] for event in spans_of(events)) == 0


@pytest.mark.parametrize("fault", ["overlap", "negative", "no dur", "a string"])
def test_planted_faults_of_a_trace_are_caught(fault):
    found = trace(fastgrad.profile_model(model(), X, steps=1))
    event = spans_of(found["traceEvents"])[2]
    if fault == "overlap":
        event["dur"] += 1e6
    elif fault == "negative":
        event["ts"] = -1.0
    elif fault == "no dur":
        del event["dur"]
    else:
        event["ts"] = str(event["ts"])
    with pytest.raises((AssertionError, KeyError)):
        check_trace(found)


# --- fastgrad train --profile

TRAIN = [
    "--hidden",
    "8",
    "--embedding",
    "4",
    "--batch",
    "4",
    "--seq-length",
    "8",
    "--no-compare",
    "--sample-length",
    "0",
]


def train(folder, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastgrad", "train", *TRAIN, "--out", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_profiled_run_has_the_same_bits(tmp_path):
    done = train(tmp_path / "with", "--steps", "30", "--profile")
    assert done.returncode == 0, done.stderr
    assert train(tmp_path / "without", "--steps", "30").returncode == 0
    one, other = (next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in ("with", "without"))
    assert one == other
    assert "profile: a step: " in done.stdout and "the faster half of 20 steps" in done.stdout
    for name in (
        "CharacterModel",
        "  embedding Embedding",
        "  rnn LSTM",
        "  head Linear",
        "loss",
        "optimizer",
        "batch",
    ):
        assert f"\n{name} " in done.stdout, name
    assert "open it in https://ui.perfetto.dev" in done.stdout
    check_trace(json.loads((tmp_path / "with" / "trace.json").read_text()))


def test_a_run_that_is_too_short_says_so(tmp_path):
    done = train(tmp_path, "--steps", "3", "--profile")
    assert done.returncode == 0 and "profile: none, the run had no more than the 3 steps that warm up" in done.stdout
    assert not (tmp_path / "trace.json").exists()


def test_the_trainer_on_a_device(emulated_gpu):
    from fastgrad.training import Config, Corpus, Trainer
    from fastgrad.training.profile import SKIPPED, StepProfiler

    if backends.missing("emulated"):
        pytest.skip(backends.missing("emulated"))
    config = Config(hidden=8, embedding=4, batch=2, seq_length=4)
    trainer = Trainer(config, Corpus.from_text("abcdefgh " * 60), "gpu")
    profiler = StepProfiler(trainer)
    for _ in range(SKIPPED + 2):
        with profiler.step():
            trainer.train_step()
    profile = profiler.profile()
    assert profile is not None and profile.steps == 2 and profile.clock == "CUDA events"
    assert {"", "rnn", "head", "optimizer", "loss"} <= {row.path for row in profile.rows}
    # The loss holds the forward pass of the model, whose time is its own row's.
    assert sum(row.share for row in profile.rows if row.depth == 0) == pytest.approx(1.0)
    assert "forward" not in vars(trainer.model) and "step" not in vars(trainer.optimizer)
