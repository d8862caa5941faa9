"""The machine, the versions and the number of threads: what a number must travel with. And torch, or None."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import threadpoolctl

import fastgrad
from fastgrad._machine import allowed_cores, processor

PACKAGES = ("numpy", "numba", "scipy", "torch")


@functools.cache
def torch() -> Any:
    """Return torch, a peer and no dependency: None without it."""
    return importlib.import_module("torch") if importlib.util.find_spec("torch") else None


def set_threads(n: int) -> None:
    """Let fastgrad, torch and NumPy's BLAS use n threads each, for the rest of the process.

    Raises:
        ValueError: n is more than fastgrad can use; see `fastgrad.set_num_threads`.
    """
    fastgrad.set_num_threads(n)
    threadpoolctl.threadpool_limits(n, user_api="blas")
    if torch():
        torch().set_num_threads(n)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Let them use n threads each inside a `with` block."""
    from fastgrad.threads import get_num_threads

    before, torchs = get_num_threads(), torch() and torch().get_num_threads()
    with threadpoolctl.threadpool_limits(n, user_api="blas"):
        fastgrad.set_num_threads(n)
        if torch():
            torch().set_num_threads(n)
        try:
            yield
        finally:
            fastgrad.set_num_threads(before)
            if torch():
                torch().set_num_threads(torchs)


def products() -> str:
    """Return what NumPy multiplies matrices with, and the processor whose kernels it takes."""
    found = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    described = [f"{i['internal_api']} {i['version']} ({i.get('architecture', 'unknown')} kernels)" for i in found]
    return ", ".join(dict.fromkeys(described)) or "an unknown library"


def versions() -> dict[str, str]:
    """Return the versions that times depend on, by name."""
    own = {"python": platform.python_version(), "fastgrad": fastgrad.__version__}
    return own | {name: version(name) for name in PACKAGES if importlib.util.find_spec(name)}


def describe(threads: int) -> str:
    """Return one line: processor, cores, threads, system, versions."""
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"{processor()}, {allowed_cores()} cores, {threads} threads, {platform.system()}; {packages}"
