"""Whether a GPU can be used here, and why not; the way of arrays to it and back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from fastgrad import _machine
from fastgrad._arrays import Array, to_host

DEVICES = ("cpu", "gpu")


class GPUStatus(NamedTuple):
    """cupy where a device can be used, else None, the reason, and what to do about it: half a sentence each.

    broken: whether something that is installed does not work; a GPU or CuPy that is merely absent is no such thing
    """

    cupy: Any
    reason: str | None = None
    advice: str = ""
    broken: bool = False


@functools.cache
def gpu_status() -> GPUStatus:
    """Import CuPy and look for a device; the answer is kept for the process.

    `import fastgrad` never comes here: it is asked by what was told to use a GPU.
    """
    install = 'install it for your driver with pip install "fastgrad[cuda13]" (or cuda12)'
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return GPUStatus(None, "CuPy is not installed", install)
        return GPUStatus(None, f"CuPy can't be imported ({_described(error)})", install, True)
    except OSError as error:  # of its cache folder, which it makes when it is imported
        reason = f"CuPy can't be imported ({_described(error)})"
        return GPUStatus(None, reason, "set CUPY_CACHE_DIR to a folder that can be written", True)
    except Exception as error:
        return GPUStatus(None, f"CuPy can't be imported ({_described(error)})", install, True)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return GPUStatus(
            None,
            f"CuPy {cupy.__version__} is installed but finds no GPU ({' '.join(str(error).split())})",
            "it needs an NVIDIA GPU and its driver, see what nvidia-smi says",
            # CUDA says the same of no driver and of one that is too old.
            _machine.nvidia_driver() is not None,
        )
    if count == 0:
        return GPUStatus(None, "there is no CUDA device", "CUDA_VISIBLE_DEVICES may hide it")
    if nvrtc_version(cupy) is None:
        return GPUStatus(
            None,
            f"CuPy {cupy.__version__} finds a GPU, but not NVRTC, which compiles the kernels",
            'pip install "fastgrad[cuda13]" (or cuda12) brings it',
            True,
        )
    return GPUStatus(cupy)


def nvrtc_version(cupy: Any) -> tuple[int, int] | None:
    """Return the version of NVIDIA's run-time compiler, which needs no GPU; None where it is missing."""
    try:
        return cupy.cuda.nvrtc.getVersion()
    except Exception:  # each version of CuPy has another way to look for the library, and to fail
        return None


def _described(error: BaseException) -> str:
    # CuPy wraps what went wrong in a page of advice on installing it.
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"


def require_gpu(name: str) -> Any:
    """Return cupy, for the argument `name` that asks for a GPU.

    Raises:
        RuntimeError: there is none; says why and what to do.
    """
    status = gpu_status()
    if status.cupy is None:
        raise RuntimeError(f"{name}: no GPU can be used: {status.reason}; {status.advice}, or stay on the CPU")
    return status.cupy


def mover(device: str) -> Callable[[Array], Array]:
    """Return the function that takes an array to a device; one that lies there already is returned itself.

    Args:
        device: "cpu" or "gpu". A GPU is the one that is current in CuPy; arrays get there C-contiguous.

    Raises:
        ValueError: another name.
        RuntimeError: there is no GPU; says why and what to do.
    """
    if device not in DEVICES:
        raise ValueError(f"device: expected 'cpu' or 'gpu', got {device!r}")
    if device == "cpu":
        return to_host
    xp = require_gpu("device")
    return lambda array: array if type(array) is xp.ndarray else xp.array(array, order="C")
