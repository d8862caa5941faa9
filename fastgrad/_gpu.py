"""Whether a GPU can be used here, and why not."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple


class GPUStatus(NamedTuple):
    """cupy where a device can be used, else None and the reason in a sentence with the way out."""

    cupy: Any
    reason: str | None


@functools.cache
def gpu_status() -> GPUStatus:
    """Import CuPy and look for a device; the answer is kept for the process.

    `import fastgrad` never comes here: it is asked by what was told to use a GPU.
    """
    try:
        import cupy
    except Exception as error:  # CuPy also dies of an OSError where its cache folder can't be made
        return GPUStatus(
            None,
            f"CuPy can't be imported ({type(error).__name__}: {error}); install it for your driver with "
            f'pip install "fastgrad[cuda13]" (or cuda12)',
        )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return GPUStatus(
            None,
            f"CuPy {cupy.__version__} is installed but finds no GPU ({error}); it needs an NVIDIA GPU and its driver, "
            f"see what nvidia-smi says",
        )
    if count == 0:
        return GPUStatus(None, "there is no CUDA device; CUDA_VISIBLE_DEVICES may hide it")
    return GPUStatus(cupy, None)


def require_gpu(name: str) -> Any:
    """Return cupy, for the argument `name` that asks for a GPU.

    Raises:
        RuntimeError: there is none; says why and what to do.
    """
    status = gpu_status()
    if status.cupy is None:
        raise RuntimeError(f"{name}: no GPU can be used: {status.reason}; or stay on the CPU")
    return status.cupy
