"""The command line as a subprocess: a whole run, every kind of bad input, Ctrl-C and --resume, pipes and terminals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_train import DAMAGES, damage, words

from fastgrad import cli
from fastgrad.training import checkpoint

TINY = ["--hidden", "8", "--embedding", "5", "--seq-length", "6", "--batch", "3", "--backend", "reference"]
QUICK = [*TINY, "--no-compare", "--sample-length", "20"]


def run(*args, cwd=None, env=None) -> subprocess.CompletedProcess[str]:
    """Run `python -m fastgrad` with these arguments."""
    command = [sys.executable, "-m", "fastgrad", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, encoding="utf-8", timeout=120
    )


def refused(result, *parts: str) -> None:
    """Check for one clear line on stderr, exit status 2, and nothing on stdout."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("fastgrad: ") and result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A text file that is long enough."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(words(300), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory) -> Path:
    """The folder of a finished run of 12 steps."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    result = run("train", text, *QUICK, "--steps", 12, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


def copied(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trained(folder: Path) -> tuple[dict, dict]:
    """Return arrays and JSON of a checkpoint, without what depends on the clock and on where the files lie."""
    document = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    arrays = load_file(folder / document["arrays"]["file"])
    return arrays, {key: document[key] for key in ("step", "config", "vocabulary", "windows", "optimizer")}


def assert_same_training(one: Path, other: Path) -> None:
    (arrays, document), (expected, expected_document) = trained(one), trained(other)
    assert document == expected_document and arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_whole_run(text, tmp_path):
    result = run("train", text, *TINY, "--steps", 15, "--out", "deep/er", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"validation: \d\.\d\d bits per character on the last 5 % of the text", lines[0])
    assert lines[1] == "sample (temperature 0.8):"
    speed = [line for line in lines if line.startswith("speed: ")]
    assert len(speed) == 1 and re.fullmatch(
        r"speed: [\d,]+ characters/s with fastgrad kernels, [\d,]+ with naive NumPy \(--backend reference\): "
        r"\d+\.\dx, medians of 5 turns of 10 steps each",
        speed[0],
    )
    folder = tmp_path / "deep" / "er"
    names = sorted(path.name for path in folder.iterdir())
    assert names[1:] == ["checkpoint.json", "curve.png", "gradients.html"] and names[0].endswith(".safetensors")
    (verdict,) = [line for line in lines if line.startswith("gradients: ")]
    assert verdict.startswith("gradients: healthy in 2 looks up to step 10: no gradient vanished")
    # Off a terminal: plain lines, no control sequences.
    assert "\x1b" not in result.stderr and "step 15/15 | characters/s" in result.stderr
    for fact in ("training", "validation", "grad norm", "clipped", "left"):
        assert f" | {fact} " in result.stderr
    assert "--resume --out deep/er" in lines[-1]


def test_resume_is_the_uninterrupted_run(text, finished, tmp_path):
    half = tmp_path / "half run"
    assert run("train", text, *QUICK, "--steps", 5, "--out", half).returncode == 0
    result = run("train", "--resume", "--steps", 12, "--no-compare", "--out", half, cwd="/")
    assert result.returncode == 0, result.stderr
    assert "resumed at step 5" in result.stderr and f"--out '{half}'" in result.stdout
    assert_same_training(half, finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_the_checkpoint(text, tmp_path, number):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [sys.executable, "-m", "fastgrad", "train", str(text), *QUICK, "--minutes", "5", "--out", str(stopped)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    for line in process.stderr:
        if line.startswith("step "):
            break
    time.sleep(0.2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and output == ""
    assert "Traceback" not in errors and errors.endswith(f"go on with:\nfastgrad train --resume --out {stopped}\n")
    step = json.loads((stopped / "checkpoint.json").read_text(encoding="utf-8"))["step"]
    assert step > 1 and f"at step {step:,};" in errors
    assert len(list(stopped.iterdir())) == 2
    # Its plan is in the checkpoint: five minutes in all. Ten steps more are enough here.
    assert run("train", "--resume", "--out", stopped, "--steps", step + 10, "--no-compare").returncode == 0
    assert run("train", text, *QUICK, "--steps", step + 10, "--out", whole).returncode == 0
    assert_same_training(stopped, whole)


def test_an_interrupted_plan_goes_on(text, tmp_path, finished):
    out = copied(finished, tmp_path / "out")
    arrays, document = checkpoint.load(out)
    checkpoint.save(out, arrays, {**document, "plan": {"steps": 14, "seconds": None}}, document["step"])
    result = run("train", "--resume", "--out", out, "--no-compare")
    assert result.returncode == 0 and "step 14/14" in result.stderr


BAD_OPTIONS = [
    (["--hidden", "0"], "--hidden"),
    (["--hidden", "many"], "--hidden"),
    (["--hidden", "10000000"], "--hidden"),
    (["--lr", "nan"], "--lr"),
    (["--lr", "-1"], "--lr"),
    (["--clip", "inf"], "--clip"),
    (["--steps", "0"], "--steps"),
    (["--minutes", "0"], "--minutes"),
    (["--model", "rnn"], "--model"),
    (["--dtype", "float16"], "--dtype"),
    (["--backend", "cuda"], "--backend"),
    (["--temperature", "-0.5"], "--temperature"),
    (["--sample-length", "-1"], "--sample-length"),
    (["--seed", "-1"], "--seed"),
    (["--no-such-option"], "--no-such-option"),
    (["one.txt", "two.txt"], "two.txt"),
    (["--hidden"], "--hidden"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD_OPTIONS, ids=[" ".join(a) for a, _ in BAD_OPTIONS])
def test_bad_options(arguments, named, tmp_path):
    refused(run("train", *arguments, cwd=tmp_path), named)
    assert list(tmp_path.iterdir()) == []


BAD_FILES = {
    "missing": (None, "does not exist"),
    "directory": ("", "is a directory"),
    "empty": (b"", "is empty"),
    "binary": (b"some text\0and a zero" * 1000, "is binary (byte 9 is NUL)"),
    "latin1": ("né ".encode("latin-1") * 1000, "is not UTF-8 (byte 0xe9 at 1)"),
    "short": (b"too short to learn from\n", "the text has 24 characters, but 3 streams of windows of 6 need 20,"),
    "single": (b"aaaaaaaaaa" * 1000, "only the character 'a'"),
}
BAD_FILES["short"] = (b"too short", "the text has 9 characters, but 3 streams of windows of 6 need 20")


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files(what, tmp_path):
    raw, message = BAD_FILES[what]
    path = tmp_path / "file.txt"
    if what == "directory":
        path.mkdir()
    elif raw is not None:
        path.write_bytes(raw)
    refused(run("train", path, *QUICK, "--steps", 2, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_a_file_that_may_not_be_read(tmp_path):
    # /proc/self/mem can be opened, but not read from its start, by nobody.
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs /proc")
    refused(run("train", "/proc/self/mem", *QUICK, "--out", tmp_path / "out"), "/proc/self/mem can't be read")


def test_bad_output_folders(text, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    for out in (file, file / "below"):
        refused(run("train", text, *QUICK, "--steps", 2, "--out", out), "a file is in its place")
    assert file.read_text() == "precious"
    if os.geteuid() == 0:
        # Nothing stops root but a file system that has no files: nobody makes folders in /proc.
        locked = Path("/proc/fastgrad")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        locked = tmp_path / "locked" / "run"
    refused(run("train", text, *QUICK, "--steps", 2, "--out", locked), f"--out {locked} can't be written")
    for resume in ([], ["--resume"]):
        refused(run("train", text, *QUICK, *resume, "--out", tmp_path / ("x" * 300)), "can't be", "File name too long")


def test_an_existing_checkpoint_is_not_overwritten(text, finished, tmp_path):
    out = copied(finished, tmp_path / "out")
    before = contents(out)
    refused(run("train", text, *QUICK, "--steps", 3, "--out", out), "--resume", "--overwrite")
    refused(run("train", text, *QUICK, "--resume", "--overwrite", "--out", out), "one of the two")
    assert contents(out) == before
    assert run("train", text, *QUICK, "--steps", 3, "--out", out, "--overwrite").returncode == 0
    assert json.loads((out / "checkpoint.json").read_text(encoding="utf-8"))["step"] == 3 and len(contents(out)) == 4


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_checkpoints(what, finished, tmp_path):
    out = copied(finished, tmp_path / "out")
    damage(out, what)
    before = contents(out)
    refused(run("train", "--resume", "--steps", 20, "--out", out), str(out))
    assert contents(out) == before


def test_checkpoints_that_do_not_fit(text, finished, tmp_path):
    out = copied(finished, tmp_path / "out")
    before = contents(out)
    resume = ("train", "--resume", "--out", out)
    refused(run(*resume, "--hidden", 9, "--steps", 20), "--hidden 9 contradicts the checkpoint, which has 8")
    refused(run(*resume), "nothing is left to train", "step 12")
    refused(run(*resume, "--steps", 12), "nothing is left to train")
    other = tmp_path / "other.txt"
    other.write_text(words(300, seed=5), encoding="utf-8")
    refused(run("train", other, "--resume", "--out", out, "--steps", 20), "the text is not the one")
    refused(run("train", "--resume", "--out", tmp_path / "nowhere", "--steps", 20), "holds no checkpoint")
    assert contents(out) == before
    # The same text elsewhere is the same text, and options that agree are no contradiction.
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text.read_bytes())
    result = run("train", moved, "--resume", "--out", out, "--steps", 14, "--hidden", 8, "--no-compare")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("values", [
    {"plan": {"steps": 0, "seconds": None}}, {"plan": 3}, {"config": {}}, {"backend": "cuda"}, {"trained_seconds": "x"},
    {"trained_seconds": None}, {"text": "/nowhere/text.txt"}, {"windows": []}, {"step": 11}, {"vocabulary": "abc"},
])  # fmt: skip
def test_checkpoints_with_wrong_values(values, finished, tmp_path):
    out = copied(finished, tmp_path / "out")
    arrays, document = checkpoint.load(out)
    checkpoint.save(out, arrays, {**document, **values}, 1)
    refused(run("train", "--resume", "--steps", 20, "--out", out))


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # whether CuPy is installed here or not


def test_a_gpu_that_is_not_there(text, tmp_path):
    options = [*QUICK, "--backend", "gpu", "--steps", 2]
    refused(
        run("train", text, *options, "--out", tmp_path / "out", env=NO_GPU),
        "fastgrad: --backend gpu: no GPU can be used: CuPy ",
        ", or stay on the CPU\n",
    )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_from_a_gpu_goes_on_without(finished, tmp_path):
    out = copied(finished, tmp_path / "out")
    arrays, document = checkpoint.load(out)
    checkpoint.save(out, arrays, {**document, "backend": "gpu"}, document["step"])
    before = contents(out)
    resume = ("train", "--resume", "--out", out, "--steps", 14, "--no-compare")
    refused(
        run(*resume, env=NO_GPU),
        "checkpoint.json was written with --backend gpu, and no GPU can be used here: CuPy ",
        ", or go on with --backend cpu\n",
    )
    assert contents(out) == before
    result = run(*resume, "--backend", "cpu", env=NO_GPU)
    assert result.returncode == 0, result.stderr
    assert "backend cpu" in result.stderr and "step 14/14" in result.stderr


def test_nan_stops_with_one_line(text, tmp_path):
    result = run("train", text, *QUICK, "--steps", 50, "--lr", "1e38", "--clip", 0, "--out", tmp_path / "out")
    assert result.returncode == 1 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert re.match(r"fastgrad: the loss became (nan|inf) at step \d+; try a smaller --lr or --clip; nothing of", last)
    assert "Traceback" not in result.stderr


def test_version_and_help(tmp_path):
    import fastgrad

    assert run("--version").stdout == f"fastgrad {fastgrad.__version__}\n"
    result = run("train", "--help", env={"COLUMNS": "100"})
    assert result.returncode == 0
    for word in ("Examples", "--model", "--resume", "--overwrite", "bits per character", "--minutes", "--temperature"):
        assert word in result.stdout
    assert run().returncode == 2
    refused(run("trian"), "trian")


def test_the_help_needs_no_kernels():
    code = (
        "import sys; from fastgrad import cli; sys.argv = ['fastgrad', 'train', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print({'numba', 'scipy', 'matplotlib', 'torch', 'cupy', 'safetensors'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("at", ["fastgrad.warmup", "fastgrad.cli.app"])
def test_ctrl_c_is_told_in_one_line(at, monkeypatch, capsys):
    """Within a command, which typer would end in silence, and before there is one."""

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(at, interrupted)
    monkeypatch.setattr(sys, "argv", ["fastgrad", "warmup", "mse"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "fastgrad: stopped by Ctrl-C; files that were there before are still whole\n"


def test_a_narrow_encoding_and_a_closed_pipe(text, tmp_path):
    arguments = ["train", text, *QUICK, "--steps", 2, "--sample-length", 200, "--temperature", 5]
    result = run(*arguments, "--out", tmp_path / "one", env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0 and "\\xe9" in result.stdout
    command = [sys.executable, "-m", "fastgrad", *map(str, arguments), "--out", str(tmp_path / "two")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 1 and "Traceback" not in errors and "BrokenPipe" not in errors


def test_a_sample_does_not_drive_the_terminal(tmp_path):
    path = tmp_path / "escapes.txt"
    path.write_bytes(b"\x1b[31mred\x1b[0m " * 200)
    result = run("train", path, *QUICK, "--steps", 2, "--temperature", 5, "--out", tmp_path / "out")
    assert result.returncode == 0 and "\x1b" not in result.stdout and "·" in result.stdout


def test_one_live_display_on_a_terminal(text, tmp_path):
    pty = pytest.importorskip("pty")
    main, side = pty.openpty()
    command = [sys.executable, "-m", "fastgrad", "train", str(text), *QUICK, "--steps", "200", "--out", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=side, env=environment)
    os.close(side)
    shown = b""
    while True:
        try:
            block = os.read(main, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(main)
    assert process.wait(timeout=60) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "200/200" in plain and "characters/s" in plain and "grad norm" in plain and "\u2501" in plain
    assert "step 200/200 |" not in plain  # not the plain lines as well
    process.stdout.close()
