"""Scaled dot-product attention and its gradients, tile by tile: see attention_ref.py for the definition.

Flops: 4 T S D for each batch and head forward, 10 backward, half of that where causal. What is larger than the
arguments is never in memory: a thread holds the scores of QUERIES queries by KEYS keys, in its second-level cache, and
the keys and values of one head, packed for the micro-kernel of matmul_cpu.py. Online softmax (Milakov & Gimelshein,
2018): the sum of a row's exponentials and its part of y are rescaled where a later block of keys has a larger score.

    forward      S = scale q k^T,  P = exp(S - largest so far),  y += P v;        in the end y / total
    backward     P = exp(S - largest) / total,  dS = P (dy v^T - sum_d dy y),  dq += dS k,  dk += dS^T q,  dv += P^T dy

Where causal, tiles above the diagonal are left out, and on it a triangle of products takes the place of a square: what
a query does not see is not multiplied by 0, which would let a NaN through.

Threads take whole heads, forward also parts of one where there are few. Rows fall into tiles by their number, keys into
blocks by theirs, so that the bits of the results depend on no thread.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastgrad._memory import empty

from . import attention_tiles as tiles
from . import runtime
from .attention_tiles import KEYS, QUERIES
from .dropout_cpu import GROUP
from .matmul_cpu import ROWS, panel_columns, zeros
from .simd import traced

Dropped = tuple[int, float, int, int]

PARTS = 4  # tasks for each thread where there are fewer heads than that
SMALL = 2**17  # multiplications of a call below which handing work to threads costs more than it gains

# --- kernels

# Entries of the table that both kernels read: addresses, sizes, byte strides of all four axes.
(
    _Q, _Q_B, _Q_H, _Q_T, _, _K, _K_B, _K_H, _K_T, _, _V, _V_B, _V_H, _V_T, _, _Y, _Y_B, _Y_H, _Y_T, _, _LARGEST,
    _TOTAL, _LENGTHS, _H, _T, _S, _D, _CAUSAL, _SCALE, _THRESHOLD, _FACTOR, _SEED, _OFFSET, _ZEROS, _SCRATCH, _ROOM,
    _ROW_BYTES, _HEADS, _BLOCKS, _PARTS,
) = range(40)  # fmt: skip
# Further ones of the backward kernel.
(
    _DY, _DY_B, _DY_H, _DY_T, _, _DQ, _DQ_B, _DQ_H, _DQ_T, _, _DK, _DK_B, _DK_H, _DK_T, _, _DV, _DV_B, _DV_H, _DV_T, _,
) = range(40, 60)  # fmt: skip


@runtime.kernel
def _forward(dtype: np.dtype) -> Any:
    """pointers: the entries above. Block b takes every `blocks`-th part of a head, and has `room` bytes of scratch."""
    item, stride = dtype.itemsize, tiles.scores_stride(dtype)
    scored, weighted = tiles.scored(dtype), tiles.weighted(dtype)
    packed, packed_transposed = tiles.packed(dtype), tiles.packed_transposed(dtype)
    scale_rows, clear_rows = traced(tiles.scale_rows, dtype), traced(tiles.clear_rows, dtype)
    softmax, softmax_dropped = traced(tiles.softmax, dtype), traced(tiles.softmax_dropped, dtype, GROUP)
    begin, end = traced(tiles.begin_rows, dtype), traced(tiles.end_rows, dtype)
    width = panel_columns(dtype)

    def kernel(block, p):
        T, S, D = p[_T], p[_S], p[_D]
        wide = (D + width - 1) // width * width  # columns of packed rows
        long = (S + width - 1) // width * width
        row_bytes, most = p[_ROW_BYTES], min(QUERIES, T)
        keys_at = p[_SCRATCH] + block * p[_ROOM]
        values_at = keys_at + long * D * item
        queries_at = values_at + wide * S * item
        sums_at = queries_at + most * row_bytes
        scores_at = sums_at + most * row_bytes
        zeros = p[_ZEROS]
        units = (T + ROWS - 1) // ROWS
        for task in range(block, p[_HEADS] * p[_PARTS], p[_BLOCKS]):
            head, part = task // p[_PARTS], task % p[_PARTS]
            b, h = head // p[_H], head % p[_H]
            q = p[_Q] + b * p[_Q_B] + h * p[_Q_H]
            y = p[_Y] + b * p[_Y_B] + h * p[_Y_H]
            largest, total = p[_LARGEST] + head * T * item, p[_TOTAL] + head * T * item
            keys = S
            if p[_LENGTHS] != 0:  # a null pointer otherwise
                keys = max(0, min(S, runtime.peek(p[_LENGTHS], b)))
            row = units * part // p[_PARTS] * ROWS
            last = min(T, units * (part + 1) // p[_PARTS] * ROWS)
            triangular = min(T, keys) if p[_CAUSAL] != 0 else 0
            if row >= last:
                continue
            if keys == 0:
                clear_rows(y + row * p[_Y_T], p[_Y_T], last - row, D)
                clear_rows(largest + row * item, 0, 1, last - row)
                clear_rows(total + row * item, 0, 1, last - row)
                continue
            used = min(keys, last) if p[_CAUSAL] != 0 else keys
            packed_transposed(p[_K] + b * p[_K_B] + h * p[_K_H], p[_K_T], used, D, keys_at)
            packed(p[_V] + b * p[_V_B] + h * p[_V_H], p[_V_T], used, D, values_at)
            while row < last:
                rows = min(QUERIES, last - row)
                if row < triangular:
                    rows = min(rows, triangular - row)
                slanted = row < triangular
                seen = row + rows if slanted else keys
                scale_rows(q + row * p[_Q_T], p[_Q_T], queries_at, row_bytes, rows, D, p[_SCALE])
                begin(largest + row * item, total + row * item, rows)
                for key in range(0, seen, KEYS):
                    last_key = min(seen, key + KEYS)
                    scored(
                        rows, queries_at, row_bytes, keys_at, D, key, last_key, scores_at, zeros,
                        row if slanted else S + ROWS,
                    )  # fmt: skip
                    for r in range(rows):
                        count = min(last_key, row + r + 1 if slanted else last_key) - key
                        if count <= 0:
                            continue
                        at = row + r
                        if p[_THRESHOLD] < 0:
                            softmax(
                                scores_at + r * stride, count, 1 if key == 0 else 0, largest + at * item,
                                total + at * item, sums_at + r * row_bytes, D,
                            )  # fmt: skip
                        else:
                            softmax_dropped(
                                scores_at + r * stride, count, 1 if key == 0 else 0, largest + at * item,
                                total + at * item, sums_at + r * row_bytes, D,
                                ((head * T + at) * ((S + GROUP - 1) // GROUP)) + key // GROUP, p[_SEED], p[_OFFSET],
                                p[_THRESHOLD], p[_FACTOR],
                            )  # fmt: skip
                    weighted(
                        rows, scores_at, values_at, used, key, last_key, wide, sums_at, row_bytes,
                        zeros if key == 0 else 0, row if slanted else -1,
                    )  # fmt: skip
                end(sums_at, row_bytes, y + row * p[_Y_T], p[_Y_T], rows, D, largest + row * item, total + row * item)
                row += rows

    return kernel


@runtime.kernel
def _backward(dtype: np.dtype) -> Any:
    """pointers: the entries above, then dy, dq, dk and dv with their strides. Block b takes every `blocks`-th head."""
    item, stride = dtype.itemsize, tiles.scores_stride(dtype)
    scored, weighted, weighted_back = tiles.scored(dtype), tiles.weighted(dtype), tiles.weighted_back(dtype)
    packed, packed_transposed = tiles.packed(dtype), tiles.packed_transposed(dtype)
    scale_rows, clear_rows = traced(tiles.scale_rows, dtype), traced(tiles.clear_rows, dtype)
    copy_rows, dot_rows = traced(tiles.copy_rows, dtype), traced(tiles.dot_rows, dtype)
    slopes, slopes_dropped = traced(tiles.slopes, dtype), traced(tiles.slopes_dropped, dtype, GROUP)
    width = panel_columns(dtype)

    def kernel(block, p):
        T, S, D = p[_T], p[_S], p[_D]
        wide = (D + width - 1) // width * width
        long = (S + width - 1) // width * width
        row_bytes, most = p[_ROW_BYTES], min(QUERIES, T)
        keys_at = p[_SCRATCH] + block * p[_ROOM]  # (D, S) in panels
        values_at = keys_at + long * D * item  # (D, S)
        rows_of_keys_at = values_at + long * D * item  # (S, D)
        queries_at = rows_of_keys_at + wide * S * item  # rows of this block, scaled
        upstream_at = queries_at + most * row_bytes
        sums_at = upstream_at + most * row_bytes
        packed_queries_at = sums_at + most * row_bytes
        packed_upstream_at = packed_queries_at + most * wide * item
        scores_at = packed_upstream_at + most * wide * item
        slopes_at = scores_at + most * stride
        along_at = slopes_at + most * stride
        zeros = p[_ZEROS]
        for head in range(block, p[_HEADS], p[_BLOCKS]):
            b, h = head // p[_H], head % p[_H]
            q = p[_Q] + b * p[_Q_B] + h * p[_Q_H]
            k = p[_K] + b * p[_K_B] + h * p[_K_H]
            v = p[_V] + b * p[_V_B] + h * p[_V_H]
            y = p[_Y] + b * p[_Y_B] + h * p[_Y_H]
            dy = p[_DY] + b * p[_DY_B] + h * p[_DY_H]
            dq = p[_DQ] + b * p[_DQ_B] + h * p[_DQ_H]
            dk = p[_DK] + b * p[_DK_B] + h * p[_DK_H]
            dv = p[_DV] + b * p[_DV_B] + h * p[_DV_H]
            largest, total = p[_LARGEST] + head * T * item, p[_TOTAL] + head * T * item
            keys = S
            if p[_LENGTHS] != 0:
                keys = max(0, min(S, runtime.peek(p[_LENGTHS], b)))
            triangular = 0
            if p[_CAUSAL] != 0:
                keys = min(keys, T)
                triangular = keys
            clear_rows(dk, p[_DK_T], S, D)
            clear_rows(dv, p[_DV_T], S, D)
            if keys == 0:
                clear_rows(dq, p[_DQ_T], T, D)
                continue
            packed_transposed(k, p[_K_T], keys, D, keys_at)
            packed_transposed(v, p[_V_T], keys, D, values_at)
            packed(k, p[_K_T], keys, D, rows_of_keys_at)
            row = 0
            while row < T:
                rows = min(QUERIES, T - row)
                if row < triangular:
                    rows = min(rows, triangular - row)
                slanted = row < triangular
                seen = row + rows if slanted else keys
                scale_rows(q + row * p[_Q_T], p[_Q_T], queries_at, row_bytes, rows, D, p[_SCALE])
                copy_rows(dy + row * p[_DY_T], p[_DY_T], upstream_at, row_bytes, rows, D)
                dot_rows(upstream_at, row_bytes, y + row * p[_Y_T], p[_Y_T], rows, D, along_at)
                packed(queries_at, row_bytes, rows, D, packed_queries_at)
                packed(upstream_at, row_bytes, rows, D, packed_upstream_at)
                for key in range(0, seen, KEYS):
                    last_key = min(seen, key + KEYS)
                    first_row = row if slanted else S + ROWS
                    scored(rows, queries_at, row_bytes, keys_at, D, key, last_key, scores_at, zeros, first_row)
                    scored(rows, upstream_at, row_bytes, values_at, D, key, last_key, slopes_at, zeros, first_row)
                    for r in range(rows):
                        count = min(last_key, row + r + 1 if slanted else last_key) - key
                        if count <= 0:
                            continue
                        at = row + r
                        if p[_THRESHOLD] < 0:
                            slopes(
                                scores_at + r * stride, slopes_at + r * stride, count, largest + at * item,
                                total + at * item, along_at + r * item,
                            )  # fmt: skip
                        else:
                            slopes_dropped(
                                scores_at + r * stride, slopes_at + r * stride, count, largest + at * item,
                                total + at * item, along_at + r * item,
                                (head * T + at) * ((S + GROUP - 1) // GROUP) + key // GROUP, p[_SEED], p[_OFFSET],
                                p[_THRESHOLD], p[_FACTOR],
                            )  # fmt: skip
                    first_row = row if slanted else -1
                    weighted(
                        rows, slopes_at, rows_of_keys_at, keys, key, last_key, wide, sums_at, row_bytes,
                        zeros if key == 0 else 0, first_row,
                    )  # fmt: skip
                    weighted_back(
                        last_key - key, slopes_at, packed_queries_at, rows, key, D, dk + key * p[_DK_T], p[_DK_T],
                        first_row,
                    )  # fmt: skip
                    weighted_back(
                        last_key - key, scores_at, packed_upstream_at, rows, key, D, dv + key * p[_DV_T], p[_DV_T],
                        first_row,
                    )  # fmt: skip
                scale_rows(sums_at, row_bytes, dq + row * p[_DQ_T], p[_DQ_T], rows, D, p[_SCALE])
                row += rows

    return kernel


# --- launchers


@functools.lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], S: int, dtype: np.dtype, threads: int, backward: bool) -> tuple[Any, ...]:
    """Return how queries of (B, H, T, D) and S keys are gone through, worked out once.

    The last entries of a table, from H on; then blocks, bytes of scratch of all blocks, whether threads take part.
    """
    B, H, T, D = shape
    item, width, row_bytes, heads = dtype.itemsize, panel_columns(dtype), tiles.row_stride(D, dtype), B * H
    wide, long, most = -(-D // width) * width, -(-S // width) * width, min(QUERIES, T)
    room = (long * D + wide * S) * item + most * (2 * row_bytes + tiles.scores_stride(dtype))
    if backward:
        room += long * D * item + most * (row_bytes + 2 * wide * item + tiles.scores_stride(dtype) + item)
    room = -(-room // 4096) * 4096  # no two threads in one page
    parts = 1 if backward else max(1, min(-(-PARTS * threads // heads), T // QUERIES))
    blocks = min(heads * parts, threads)
    sizes, ends = (H, T, S, D), (room, row_bytes, heads, blocks, parts)
    return sizes, zeros(width, dtype), ends, blocks, blocks * room, heads * T * S * D > SMALL


def _launch(
    kernel: runtime.Kernel, q: np.ndarray, k: np.ndarray, v: np.ndarray, y: np.ndarray, largest: np.ndarray,
    total: np.ndarray, scale: float, causal: bool, lengths: np.ndarray | None, dropped: Dropped | None,
    others: tuple[Any, ...] = (),
) -> None:  # fmt: skip
    """Run one of the kernels; others : entries of backward's table."""
    plan = _plan(q.shape, k.shape[2], q.dtype, runtime.num_threads(), bool(others))
    sizes, nothing, ends, blocks, scratch, parallel = plan
    threshold, factor, seed, offset = (-1, 0.0, 0, 0) if dropped is None else dropped
    pointers = (
        q, *q.strides, k, *k.strides, v, *v.strides, y, *y.strides, largest, total, lengths, *sizes,
        causal, (scale,), threshold, (factor,), seed, offset, nothing, empty(scratch, np.uint8), *ends, *others,
    )  # fmt: skip
    runtime.run(kernel, blocks, pointers, parallel)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    causal: bool,
    lengths: np.ndarray | None,
    dropped: Dropped | None,
    y: np.ndarray,
    largest: np.ndarray,
    total: np.ndarray,
) -> None:
    """Write y (B, H, T, D), largest and total (B, H, T); features lie side by side, the other axes anywhere."""
    _launch(_forward(q.dtype), q, k, v, y, largest, total, scale, causal, lengths, dropped)


def attention_backward(
    dy: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    y: np.ndarray,
    largest: np.ndarray,
    total: np.ndarray,
    scale: float,
    causal: bool,
    lengths: np.ndarray | None,
    dropped: Dropped | None,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Write dq (B, H, T, D), dk and dv (B, H, S, D), which lie as the others may."""
    others = dy, *dy.strides, dq, *dq.strides, dk, *dk.strides, dv, *dv.strides
    _launch(_backward(q.dtype), q, k, v, y, largest, total, scale, causal, lengths, dropped, others)
