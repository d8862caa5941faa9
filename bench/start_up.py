"""What starting costs: importing, the first training step, and compiling each kernel, as a markdown table.

    python bench/start_up.py            totals, and the compile time of each operation
    python bench/start_up.py --kernels  of each kernel

Every figure comes from a process of its own; where there are several of them, it is the median, and behind it the
least. "cold" is with an empty compile cache, "warm" with a filled one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import machine

REPEATS = 11

TIMED = """
import time
{before}
start = time.perf_counter()
{code}
print(time.perf_counter() - start)
"""
FIRST_STEP = """
import numpy as np
from fastgrad import Adam, layers, softmax_cross_entropy
embedding, rnn, head = layers.Embedding(96, 64), layers.LSTM(64, 256), layers.Linear(256, 96)
model = layers.Sequential(embedding, rnn, head)
optimizer = Adam(model.parameters(), lr=3e-3, max_norm=1.0)
codes = np.random.default_rng(0).integers(0, 96, (65, 32))
logits = model.forward(codes[:-1])
loss, dlogits = softmax_cross_entropy(logits.reshape(-1, 96), codes[1:].reshape(-1))
model.backward(dlogits.reshape(logits.shape))
optimizer.step()
"""
COMPILE = """
import json, fastgrad
report = fastgrad.warmup(dtype={dtype!r}, processes=1)
print(json.dumps([(kernel.name, kernel.source, kernel.seconds) for kernel in report.kernels]))
"""


def run(code: str, cache: str) -> str:
    """Run code in a process of its own with this compile cache; return the last line that it prints."""
    environment = os.environ | {"FASTGRAD_CACHE_DIR": cache}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def seconds(code: str, cache: str, before: str = "", repeats: int = REPEATS) -> str:
    """Return the median seconds of code in processes of its own, and the least."""
    found = [float(run(TIMED.format(before=before, code=code), cache)) for _ in range(repeats)]
    return f"{statistics.median(found):.3f} ({min(found):.3f})" if repeats > 1 else f"{found[0]:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", action="store_true", help="print every kernel, not only operations")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    arguments = parser.parse_args()
    print(machine.describe(machine.cores()), end="\n\n")
    print("| start-up | seconds |\n|---|---:|")
    with tempfile.TemporaryDirectory() as empty:
        print(f"| import numpy | {seconds('import numpy', empty)} |")
        print(f"| import fastgrad, NumPy imported | {seconds('import fastgrad', empty, 'import numpy')} |")
        if machine.torch:
            print(f"| import torch, NumPy imported | {seconds('import torch', empty, 'import numpy')} |")
        cold = seconds(FIRST_STEP, empty, "import fastgrad", repeats=1)
        print(f"| first training step of an LSTM, cold | {cold} |")
        print(f"| first training step of an LSTM, warm | {seconds(FIRST_STEP, empty, 'import fastgrad')} |")
    with tempfile.TemporaryDirectory() as empty:
        code = COMPILE.format(dtype=arguments.dtype)
        compiled, loaded = (json.loads(run(code, empty)) for _ in range(2))
    print(f"| all {len(compiled)} kernels, cold, one process | {sum(k[2] for k in compiled):.1f} |")
    print(f"| all {len(loaded)} kernels, warm | {sum(k[2] for k in loaded):.2f} |")
    groups: dict[str, list[tuple[float, float]]] = {}
    for (name, source, cold), (_, again, warm) in zip(compiled, loaded, strict=True):
        assert (source, again) == ("compiled", "loaded"), (name, source, again)
        key = name if arguments.kernels else name.partition(".")[0]
        groups.setdefault(key, []).append((cold, warm))
    print("\n| kernels | number | cold, s | slowest, s | warm, s |\n|---|---:|---:|---:|---:|")
    for key, times in groups.items():
        colds, warms = zip(*times, strict=True)
        print(f"| {key} | {len(times)} | {sum(colds):.2f} | {max(colds):.2f} | {sum(warms):.3f} |")


if __name__ == "__main__":
    main()
