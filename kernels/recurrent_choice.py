"""How far "auto" takes the persistent kernels of an LSTM or GRU: by measurement where there is one.

What is compared with a limit is the work of a block of the persistent kernel in a step: most * gates * units * H fused
multiply-adds, see Plan in recurrent_gpu.py. Why this, and a limit for each hidden size:

    One limit. At one H both ways multiply the same numbers. The persistent step takes a barrier and then the work of
    its largest group, at the rate of one multiprocessor; the step of cuBLAS takes two launches and then a product,
    which fills the device better the larger it is. So as the batch grows the persistent way falls behind once, and
    stays behind.
    Not in sequences. How many groups share the batch jumps with H (on an H200 from 2 to 1 between H = 528 and 532), and
    with it the batch at which both take as long, by a factor of 2. The work of a block has that jump in itself: what
    is left may be interpolated between two sizes that were measured.
    Not one number for all H. What is left is what work does not say: the rate of cuBLAS with few rows, W_hh read anew
    in each step (16 H^2 bytes of an LSTM), threads without a vector of h where H is no power of two. It changes slowly
    with H: a straight line between two sizes does for it, and beyond the first and the last one it stays as it is.

A process makes its choice for a device when it first needs one, and keeps it: the two ways differ in the last digits.
So a new measurement counts for processes that begin after it, and is made only when somebody asks (`fastgrad tune`):

    measured    by this user, in the folder `recurrent` beside the compiled kernels
    packaged    kernels/recurrent_<device>.json: measured elsewhere on a device of the same name
    estimated   one limit for all sizes

A measurement of other kernels than these, or of a device with other multiprocessors, is stale and not used. One that
can't be read is warned of, and is not used either.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import cuda

SCHEMA = 1
FOLDER = "recurrent"  # beside the compiled kernels
CELLS = {4: "lstm", 3: "gru"}  # by the number of gates

# FMAs of a block in a step: 4 us of an H200, at H = 1024 a batch of 32. An estimate, which no measurement confirms, of
# where cuBLAS's larger tiles catch up. Stepwise a step is two launches at least, 4 us in a graph and some 10 without:
# below the limit the persistent kernel has no more than that to do, and above it a product of this size takes cuBLAS
# as long, on multiprocessors that it fills better.
ESTIMATE = 1 << 20

# What both ways through the steps are made of.
_SOURCES = ("gru", "gru_persistent", "lstm", "lstm_persistent")
_LAUNCHERS = ("cublas.py", "gru_gpu.py", "lstm_gpu.py", "matmul_gpu.py", "recurrent_gpu.py")


@dataclass(frozen=True)
class Choice:
    """Up to which work the persistent kernels are taken on a device.

    Attributes:
        origin: "measured", "packaged" or "estimated".
        limits: by the number of gates: hidden sizes, ascending, and the limit of each.
        measurement: what was measured when and with what, as in the file.
        path: of the file.
        passed_over: why measurements that are there are not used, a sentence for each.
    """

    origin: str
    limits: dict[int, tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=dict)
    measurement: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    passed_over: tuple[str, ...] = ()

    def limit(self, gates: int, hidden: int) -> float:
        """Return the largest work of a block in a step, in FMAs, that goes the persistent way."""
        sizes, limits = self.limits.get(gates, ((), ()))
        return float(np.interp(hidden, sizes, limits)) if sizes else float(ESTIMATE)


class Stale(Exception):
    """A measurement that says nothing of what would run now; the text says why."""


_choices: dict[cuda.Device, Choice] = {}
_lock = threading.Lock()


def choice(device: cuda.Device) -> Choice:
    """Return the choice for a device, which stays the same for as long as the process lives."""
    found = _choices.get(device)
    if found is None:
        with _lock:
            found = _choices.get(device)
            if found is None:
                found = _choices[device] = _chosen(device)
    return found


def _chosen(device: cuda.Device) -> Choice:
    passed_over: list[str] = []
    for origin, look in (("measured", _own), ("packaged", _packaged)):
        try:
            there = look(device)
            if there is None:
                continue
            path, raw = there
            document = json.loads(raw)
            limits = usable(document, device)
        except Stale as stale:
            passed_over.append(f"{path}: {stale}")
        except Exception as error:  # whatever lies there is no reason to end a training
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            passed_over.append(f"the measurement of LSTM and GRU on {device.name} can't be read ({why})")
            warnings.warn(f"{passed_over[-1]}; `fastgrad tune` measures anew", stacklevel=2)
        else:
            return Choice(origin, limits, document, path, tuple(passed_over))
    return Choice("estimated", passed_over=tuple(passed_over))


def usable(document: Any, device: cuda.Device) -> dict[int, tuple[tuple[int, ...], tuple[float, ...]]]:
    """Return the limits of a measurement.

    Raises:
        Stale: it is of other kernels, or of another device.
        ValueError, KeyError, TypeError: it is no measurement.
    """
    if document["schema"] != SCHEMA:
        raise Stale("written by another version of fastgrad")
    measured, now = document["device"], described(device)
    if measured != now:
        raise Stale(f"measured on {measured}, this is {now}")
    if document["sources"] != sources_key():
        raise Stale(f"measured on {document['date']} with other kernels than these")
    return {gates: _table(document["limits"][cell]) for gates, cell in CELLS.items()}


def _table(pairs: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    sizes = tuple(int(size) for size, _ in pairs)
    limits = tuple(float(limit) for _, limit in pairs)
    if any(b <= a for a, b in zip((0, *sizes), sizes, strict=False)):
        raise ValueError(f"expected hidden sizes in ascending order, got {sizes}")
    if not all(0 <= limit < float("inf") for limit in limits):
        raise ValueError(f"expected limits that are 0 or more, got {limits}")
    return sizes, limits


def _own(device: cuda.Device) -> tuple[Path, bytes] | None:
    from .cache import read_beside

    return read_beside(FOLDER, f"{file_stem(device.name)}.json")


def _packaged(device: cuda.Device) -> tuple[Path, bytes] | None:
    path = packaged_path(device.name)
    return (path, path.read_bytes()) if path.exists() else None


def packaged_path(name: str) -> Path:
    """Return where the package has what was measured on a device of this name."""
    return cuda.FOLDER / f"recurrent_{file_stem(name)}.json"


def file_stem(name: str) -> str:
    """Return the name of a device as it stands in names of files: nvidia-h200."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def described(device: cuda.Device) -> dict[str, Any]:
    """Return what a measurement must share with a device: a slice of one (MIG) has its name and fewer of these."""
    return {"name": device.name, "multiprocessors": device.multiprocessors}


@functools.cache
def sources_key() -> str:
    """Return a hash of what both ways are made of, comments and docstrings aside."""
    parts = [cuda.source_key(name) for name in _SOURCES]
    parts += [_bare((cuda.FOLDER / name).read_text()) for name in _LAUNCHERS]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _bare(text: str) -> str:
    """Return Python without comments, docstrings and empty lines: what they change was not measured."""
    text = re.sub(r'"""(?:.|\n)*?"""|#[^\n]*', "", text)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
