"""Whether the CPU kernels keep subnormal numbers or take them for zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

POLICIES = ("keep", "flush")

_chosen: ContextVar[str | None] = ContextVar("fastgrad_subnormals", default=None)
_default = "keep"


def _checked_policy(policy: str) -> str:
    if policy not in POLICIES:
        raise ValueError(f"policy: expected one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
    if policy == "flush":
        from fastgrad.kernels import fpcontrol

        if not fpcontrol.FLUSH:
            raise NotImplementedError(
                f"policy: 'flush' is available on x86-64 and aarch64 processors, and this is {fpcontrol.architecture()}"
            )
    return policy


@contextmanager
def subnormals(policy: str) -> Iterator[None]:
    """Keep subnormal numbers, or take them for zero, inside a `with` block, in this thread or task only.

    Args:
        policy: "keep" or "flush", as in `set_subnormals`.

    Raises:
        ValueError: the policy is not known.
        NotImplementedError: flushing is asked for on a processor other than x86-64 and aarch64.
    """
    token = _chosen.set(_checked_policy(policy))
    try:
        yield
    finally:
        _chosen.reset(token)


def set_subnormals(policy: str) -> None:
    """Set what the CPU kernels make of subnormal numbers, for the whole process outside of every `subnormals` block.

    Numbers below the smallest normal one, 1.2e-38 in float32 and 2.2e-308 in float64, have fewer digits the smaller
    they are, and many processors take many times as long over them. Vanishing gradients are made of them.

    Args:
        policy: "keep", the default, computes with them as with any other number (gradual underflow of IEEE 754), also
            where another library has told the processor to flush. "flush" makes arithmetic take subnormal inputs for
            zero and return zero for subnormal results, each with its sign.

    The policy holds inside the CPU kernels, in all of their threads; the register of the processor that it needs is put
    back before a call returns, so that NumPy and other libraries compute as before. What follows from that:

    - A number that an operation leaves as it is keeps its bits: x > 0 in relu, dy where a derivative is 1 throughout,
      what lies within the bounds of clip_by_value.
    - Scalars such as learning rates and clipping coefficients are computed outside of the kernels, where nothing is
      flushed. One that is subnormal in the dtype of the arrays counts as zero in a kernel that flushes.
    - Norms and bias gradients are put together outside of the kernels too, from sums over blocks to which subnormal
      entries have added nothing. The counts of `health` are those of the bits in memory, always.
    - The backend "reference" is plain NumPy and ignores the policy.

    Raises:
        ValueError: the policy is not known.
        NotImplementedError: flushing is asked for on a processor other than x86-64 and aarch64.
    """
    global _default
    _default = _checked_policy(policy)


def get_subnormals() -> str:
    """Return the policy chosen by `subnormals` or `set_subnormals`, "keep" or "flush"."""
    return _chosen.get() or _default
