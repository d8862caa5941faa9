"""What a call must move and compute: the one definition of bytes and flops, for `fastgrad profile` and bench/.

Bytes are the useful ones: each argument that must be read and each result that must be written, once; not the line that
a processor reads before it writes to it, not second passes beyond those named here, not what LSTM and GRU keep for
their backward pass. Flops are the multiplications and additions of matrix products, updates and sums; an exponential
has no agreed count, so activations, norms of rows and cross-entropy have 0.

`size` is that of an element in bytes. Letters: n elements, M rows, K in, N out, V classes or rows of a table, T time,
B batch, I input, H hidden.
"""

from __future__ import annotations

from typing import NamedTuple

# Work with more flops than this for each byte is limited by arithmetic, and its rate is given in GFLOP/s.
FLOPS_PER_BYTE = 8

GATES = {"lstm": 4, "gru": 3}


class Cost(NamedTuple):
    """bytes: that must be moved between the processor and memory; flops: that must be computed."""

    bytes: int
    flops: int = 0

    def __add__(self, other: object) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    @property
    def arithmetic(self) -> bool:
        """Whether the flops are what takes the time."""
        return self.flops > FLOPS_PER_BYTE * self.bytes

    def rate(self, seconds: float) -> str:
        """Return the rate of a call that took so long, in the unit of what limits it."""
        if self.arithmetic:
            return f"{self.flops / seconds * 1e-9:.1f} GFLOP/s"
        return f"{self.bytes / seconds * 1e-9:.1f} GB/s"


NOTHING = Cost(0)


def elementwise(n: int, streams: int, flops: int = 0, size: int = 4) -> Cost:
    """Arrays of n elements, so many read or written; flops of each element."""
    return Cost(streams * n * size, flops * n)


def activation(n: int, size: int = 4) -> Cost:
    """x read, y written; also of prelu and dropout."""
    return elementwise(n, 2, 0, size)


def activation_backward(n: int, bias_grad: bool = False, size: int = 4) -> Cost:
    """dy and x read, dx written; with the bias gradient one addition an element."""
    return elementwise(n, 3, int(bias_grad), size)


def prelu_backward(n: int, size: int = 4) -> Cost:
    """dy and x read, dx written; a product and a sum for the weight's gradient."""
    return elementwise(n, 3, 2, size)


def glu(n: int, size: int = 4) -> Cost:
    """gate and up read, y written; their product."""
    return elementwise(n, 3, 1, size)


def glu_backward(n: int, size: int = 4) -> Cost:
    """dy, gate and up read, dgate and dup written; three products."""
    return elementwise(n, 5, 3, size)


def layer_norm(n: int, size: int = 4) -> Cost:
    """x read, y written; what belongs to a column or a row is less than a hundredth of that."""
    return elementwise(n, 2, 0, size)


def layer_norm_backward(n: int, size: int = 4) -> Cost:
    """dy and x read, dx written."""
    return elementwise(n, 3, 0, size)


def batch_norm(n: int, size: int = 4) -> Cost:
    """x read twice, as the statistics ask for a pass of their own, y written."""
    return elementwise(n, 3, 0, size)


def batch_norm_backward(n: int, size: int = 4) -> Cost:
    """dy and x read twice, dx written."""
    return elementwise(n, 5, 0, size)


def dropout(n: int, size: int = 4) -> Cost:
    """x read, y written, in both directions."""
    return elementwise(n, 2, 0, size)


def cross_entropy(n: int, size: int = 4) -> Cost:
    """n logits read, their gradient written."""
    return elementwise(n, 2, 0, size)


def mse(n: int, size: int = 4) -> Cost:
    """Two arrays read, the gradient written."""
    return elementwise(n, 3, 4, size)


def norm(n: int, size: int = 4) -> Cost:
    """All entries read, squared and added; also of health."""
    return elementwise(n, 1, 2, size)


def clip(n: int, size: int = 4) -> Cost:
    """Read for the norm; read and written for the scaling."""
    return elementwise(n, 3, 3, size)


def adam(n: int, clipped: bool = False, size: int = 4) -> Cost:
    """p, g, m, v read, p, m, v written; clipped: g read once more for the norm."""
    return elementwise(n, 8 if clipped else 7, 15 if clipped else 12, size)


def sgd(n: int, size: int = 4) -> Cost:
    """With momentum: p, g, b read, p, b written."""
    return elementwise(n, 5, 4, size)


def rmsprop(n: int, size: int = 4) -> Cost:
    """p, g, v read, p, v written."""
    return elementwise(n, 5, 6, size)


def linear(M: int, K: int, N: int, size: int = 4) -> Cost:
    """x (M, K), weight (N, K), bias (N,) and y (M, N), each once."""
    return Cost(size * (M * K + N * K + N + M * N), 2 * M * N * K)


def linear_backward(M: int, K: int, N: int, size: int = 4) -> Cost:
    """dy (M, N), x and dx (M, K), weight and its gradient (N, K), that of the bias (N,)."""
    return Cost(size * (M * N + 2 * M * K + 2 * N * K + N), 4 * M * N * K + M * N)


def embedding(n: int, E: int, size: int = 4, index_size: int = 8) -> Cost:
    """n rows of width E read and written, and the indices read."""
    return Cost(2 * size * n * E + index_size * n)


def embedding_backward(n: int, E: int, V: int, size: int = 4, index_size: int = 8) -> Cost:
    """n rows of dy and the indices read, the table's gradient (V, E) written."""
    return Cost(size * n * E + index_size * n + size * V * E, n * E)


def recurrent_weights(cell: str, I: int, H: int) -> int:  # noqa: E741  the letters of the field
    """Return the numbers in both weights and both biases of a cell."""
    return GATES[cell] * H * (I + H + 2)


def recurrent(cell: str, T: int, B: int, I: int, H: int, size: int = 4) -> Cost:  # noqa: E741
    """Forward and backward of a sequence: x, dx, y, dy, the weights and their gradients, each once."""
    moved = T * B * (I + H) + recurrent_weights(cell, I, H)
    return Cost(2 * size * moved, 6 * GATES[cell] * T * B * H * (I + H))


def recurrent_forward(cell: str, T: int, B: int, I: int, H: int, size: int = 4) -> Cost:  # noqa: E741
    """The half of `recurrent`'s bytes and the third of its flops; backward has the rest."""
    whole = recurrent(cell, T, B, I, H, size)
    return Cost(whole.bytes // 2, whole.flops // 3)


def recurrent_backward(cell: str, T: int, B: int, I: int, H: int, size: int = 4) -> Cost:  # noqa: E741
    whole = recurrent(cell, T, B, I, H, size)
    return Cost(whole.bytes // 2, whole.flops // 3 * 2)
