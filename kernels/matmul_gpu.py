"""Matrix products on a device, by cuBLAS: see cublas.py."""

from __future__ import annotations

from typing import Any

from . import cuda

Array = Any


def matmul(
    a: Array, b: Array, out: Array, *, transpose_a: bool = False, transpose_b: bool = False, accumulate: bool = False
) -> None:
    """Write op(a) op(b) into `out`, or add it to what is there; op(x) is x, or its transpose.

    May be called while a stream is being captured, if a product was made on that stream by that thread before.

    Args:
        a: (M, K), or (K, M) with transpose_a. As b and out a matrix of one float dtype on one device whose rows are
            contiguous; rows may lie apart, as in a[:, :n].
        b: (K, N), or (N, K) with transpose_b.
        out: (M, N), no part of a or b. Not read unless accumulate.
    """
    m, k = a.shape[::-1] if transpose_a else a.shape
    inner, n = b.shape[::-1] if transpose_b else b.shape
    if inner != k or out.shape != (m, n):
        raise ValueError(f"shapes do not fit: ({m}, {k}) by ({inner}, {n}) into {out.shape}")
    for name, array in (("a", a), ("b", b), ("out", out)):
        if array.dtype != out.dtype:
            raise TypeError(f"{name}: expected {out.dtype}, got {array.dtype}")
        if array.size and not _rows(array):
            raise ValueError(f"{name}: the rows of {array.shape} with strides {array.strides} are not contiguous")
    if m == 0 or n == 0:
        return
    device = cuda.device_of(out)
    with device.here():
        if device.capturing():
            cuda.captured.append((a, b, out))
        if k == 0:
            if not accumulate:
                out[...] = 0
            return
        device.matmul(a, b, out, transpose_a, transpose_b, accumulate)


def _rows(array: Array) -> bool:
    rows, columns = array.shape
    down, across = array.strides
    return (columns == 1 or across == array.itemsize) and (
        rows == 1 or (down >= columns * array.itemsize and down % array.itemsize == 0)
    )
