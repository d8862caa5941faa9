"""LSTM and GRU, one step or a sequence, with their gradients: contracts and checks.

Dimensions: T time, B batch, I input, H hidden.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastgrad._arrays import copy_like, zeros
from fastgrad._checks import Array, flag, float_array_like, no_gradient, saved_by, sequence_lengths, sized_array
from fastgrad._dispatch import kernels
from fastgrad._noise import clip_of, noise_of
from fastgrad._shapes import Shapes


class LSTMCellGradients(NamedTuple):
    """Gradients of `lstm_cell`; a bias that was not given has None."""

    dx: Array
    dh: Array
    dc: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


class LSTMGradients(NamedTuple):
    """Gradients of `lstm`; a bias that was not given has None."""

    dx: Array
    dh0: Array
    dc0: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


class GRUCellGradients(NamedTuple):
    """Gradients of `gru_cell`; a bias that was not given has None."""

    dx: Array
    dh: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


class GRUGradients(NamedTuple):
    """Gradients of `gru`; a bias that was not given has None."""

    dx: Array
    dh0: Array
    dweight_ih: Array
    dweight_hh: Array
    dbias_ih: Array | None
    dbias_hh: Array | None


class Saved:
    """What a forward call keeps for its backward call; the content belongs to the kernels that made it."""

    __slots__ = ("has_bias_hh", "has_bias_ih", "kernel", "op", "payload", "state", "y_shape")

    def __init__(
        self,
        op: str,
        kernel: ModuleType,
        payload: Any,
        state: Array,
        y_shape: tuple[int, ...],
        has_bias_ih: bool,
        has_bias_hh: bool,
    ) -> None:
        self.op = op
        self.kernel = kernel
        self.payload = payload
        self.state = state
        self.y_shape = y_shape
        self.has_bias_ih = has_bias_ih
        self.has_bias_hh = has_bias_hh

    def __repr__(self) -> str:
        return f"<saved by fastgrad.{self.op}: y {self.y_shape} {self.state.dtype}>"


def _saved_by(op: str, saved: Any) -> Saved:
    saved_by(Saved, saved, op)
    if saved.op != op:
        raise TypeError(f"saved: it came from fastgrad.{saved.op}, so call {saved.op}_backward; expected {op}")
    return saved


def _gradient(name: str, value: Any, saved: Saved, shape: tuple[int, ...]) -> Array | None:
    return None if value is None else float_array_like(name, value, "the forward pass", saved.state, shape)


@functools.cache
def _shapes(gates: int, axes: str, states: int) -> Shapes:
    return Shapes(axes, f"{gates}H H", f"{gates}H I", *[f"{gates}H?"] * 2, *["B H?"] * states)


class _Arguments:
    """Checked arguments of a recurrent call with `gates` gates, contiguous; a missing state is zeros."""

    __slots__ = ("bias_hh", "bias_ih", "states", "weight_hh", "weight_ih", "x")

    def __init__(
        self,
        gates: int,
        x: Any,
        axes: str,
        names: tuple[str, ...],
        states: tuple[Any, ...],
        weight_ih: Any,
        weight_hh: Any,
        bias_ih: Any,
        bias_hh: Any,
    ) -> None:
        if not _shapes(gates, axes, len(states)).fit(x, weight_hh, weight_ih, bias_ih, bias_hh, *states):
            sizes: dict[str, int] = {}
            x = sized_array("x", x, axes, sizes)
            weight_hh = sized_array("weight_hh", weight_hh, f"{gates}H H", sizes, "x", x)
            weight_ih = sized_array("weight_ih", weight_ih, f"{gates}H I", sizes, "x", x)
            bias_ih = None if bias_ih is None else sized_array("bias_ih", bias_ih, f"{gates}H", sizes, "x", x)
            bias_hh = None if bias_hh is None else sized_array("bias_hh", bias_hh, f"{gates}H", sizes, "x", x)
            named = zip(names, states, strict=True)
            states = tuple(a if a is None else sized_array(name, a, "B H", sizes, "x", x) for name, a in named)
        self.x, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = x, weight_ih, weight_hh, bias_ih, bias_hh
        for state in states:
            if state is None:
                size = x.shape[-2], weight_hh.shape[1]
                states = tuple(zeros(size, x.dtype, x) if a is None else a for a in states)
                break
        self.states = states

    def lengths(self, value: Any) -> Array | None:
        if value is None:
            return None
        return sequence_lengths(value, self.x.shape[1], self.x.shape[0], "the number of steps T", "x", self.x)


def lstm(
    x: Array,
    h0: Array | None,
    c0: Array | None,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    lengths: Array | list[int] | None = None,
    reverse: bool = False,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    input_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    training: bool = True,
    seed: int | None = None,
    offset: int = 0,
) -> tuple[Array, tuple[Array, Array], Saved]:
    """Run an LSTM layer over a sequence (Hochreiter and Schmidhuber, 1997; forget gate: Gers et al., 2000).

        i, f, o = sigmoid(W_i x_t + b_i + W_h h + b_h),   g = tanh(the same);   weight rows in the order i, f, g, o
        c' = f c + i g,   h' = o tanh(c'),   y_t = h'

    Weights and results are those of torch.nn.LSTM; `reorder_gates` brings weights from Keras and ONNX.

    Zoneout (Krueger et al., 2017) keeps entries of the state, with c~ and h~ for c' and h' above:

        c' = z_c c + (1 - z_c) c~,   h' = z_h h + (1 - z_h) h~,   h~ = o tanh(c~)

    In training z_h and z_c are 1 with the probabilities zoneout_h and zoneout_c, else 0, for each entry and step of its
    own; otherwise they are the probabilities, which gives the expectation. Variational dropout (Gal and Ghahramani,
    2016) takes x_t m_x for x_t and, in the product with W_h, h m_h for h. m_x (B, I) and m_h (B, H) are the same at
    all steps: 0 with the probabilities input_dropout and recurrent_dropout, else 1 / (1 - p), and none out of training.
    All is drawn from (seed, offset) by its place alone, so that no mask is stored: an entry of h is kept from the step
    before where `dropout(an array (T, B, H), zoneout_h, seed, 4 * offset)` is 0. c has 4 * offset + 1; m_h and m_x are
    `dropout` of ones under 4 * offset + 2 and + 3.

    Args:
        x: (T, B, I), float32 or float64.
        h0, c0: (B, H), the state before the first step; None stands for zeros.
        weight_ih: (4H, I).
        weight_hh: (4H, H).
        bias_ih, bias_hh: (4H,) or None.
        lengths: integers (B,) from 0 to T: steps of each sequence. From its length on a sequence keeps its state, y
            is 0 and x is not read. None: all T steps. With x on a GPU they may be a list or NumPy array, which is
            copied there, or lie there, where they are taken as 0 or T beyond those bounds.
        reverse: go from the last step (length - 1) to the first; y stays in the order of x.
        zoneout_h, zoneout_c: probabilities of zoneout, from 0 to below 1.
        input_dropout, recurrent_dropout: probabilities of variational dropout, from 0 to below 1.
        training: draw zoneout and dropout at random.
        seed: 0 to 2^64 - 1; needed in training where one of the four is not 0.
        offset: 0 to 2^62 - 1; take another one for each call.

    Returns:
        y (T, B, H); the state (hn, cn) after the last step of each sequence, (B, H) each; and what `lstm_backward`
        needs. The last may refer to x, the weights and y: leave them as they are until backward has been called.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of x; lengths, seed or offset
            are no integers, a flag is neither True nor False, or a seed is needed.
        ValueError: a shape does not fit, or a length, probability, seed or offset is out of range.
    """
    reverse = flag("reverse", reverse)
    a = _Arguments(4, x, "T B I", ("h0", "c0"), (h0, c0), weight_ih, weight_hh, bias_ih, bias_hh)
    noise = noise_of(
        training, seed, offset,
        zoneout_h=zoneout_h, zoneout_c=zoneout_c, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
    )  # fmt: skip
    module = kernels("lstm", a.x)
    y, hn, cn, payload = module.forward(
        a.x, *a.states, a.weight_ih, a.weight_hh, a.bias_ih, a.bias_hh, a.lengths(lengths), reverse, noise
    )
    return y, (hn, cn), Saved("lstm", module, payload, hn, y.shape, bias_ih is not None, bias_hh is not None)


def lstm_backward(
    dy: Array | None,
    dhn: Array | None,
    dcn: Array | None,
    saved: Saved,
    *,
    state_grad_clip: float | None = None,
) -> LSTMGradients:
    """Return the gradients of `lstm` with respect to all of its arrays.

    With `state_grad_clip` the gradient that flows back through time is clamped, entry by entry, at every step: what a
    step hands to the step before it, the gradient with respect to the state (h, c) that it was given, through all that
    the step does with it. So dh0 and dc0 are clamped too, and a sequence cut into pieces gives what the whole does. Not
    clamped are dy, dhn and dcn, and what a step gives to x and the weights. Where no entry reaches the bound the result
    has the same bits as without. Graves (Generating Sequences With Recurrent Neural Networks, 2013) clamps the
    gradient of the gates' sums instead, which is also that of the weights.

    Args:
        dy: gradient of y (T, B, H); entries past a length do not count.
        dhn, dcn: gradients of the final state, (B, H).
        saved: what `lstm` returned last. Gradients may be None, which stands for zeros, but not all three.
        state_grad_clip: bound of the gradient of the state, at least 0; None for no bound. NaN stays NaN, and Inf
            becomes the bound.

    Returns:
        Named tuple dx (T, B, I), dh0, dc0 (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias_ih, dbias_hh (4H,), the
        last two None where there was no bias. Summed in a fixed order: the same bits for any number of threads.

    Raises:
        TypeError: a gradient is no array or of another dtype, or all are None; saved comes from another function.
        ValueError: a shape does not fit, or state_grad_clip is negative.
    """
    saved = _saved_by("lstm", saved)
    if dy is None and dhn is None and dcn is None:
        raise no_gradient("dy, dhn, dcn")
    state = saved.state.shape
    dx, dh0, dc0, dweight_ih, dweight_hh, dbias = saved.kernel.backward(
        _gradient("dy", dy, saved, saved.y_shape),
        _gradient("dhn", dhn, saved, state),
        _gradient("dcn", dcn, saved, state),
        saved.payload,
        clip_of(state_grad_clip),
    )
    return LSTMGradients(dx, dh0, dc0, dweight_ih, dweight_hh, *_two_biases(dbias, saved))


def _two_biases(dbias: Array | None, saved: Saved) -> tuple[Array | None, Array | None]:
    # Both biases of an LSTM have the same gradient; each gets an array of its own, which the caller may change.
    if dbias is None:
        return None, None
    if saved.has_bias_ih and saved.has_bias_hh:
        return dbias, dbias.copy() if type(dbias) is np.ndarray else copy_like(dbias, dbias)
    return (dbias, None) if saved.has_bias_ih else (None, dbias)


def lstm_cell(
    x: Array,
    h: Array | None,
    c: Array | None,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
) -> tuple[Array, Array, Saved]:
    """Make one step of an LSTM; the equations are those of `lstm`.

    Args:
        x: (B, I), float32 or float64.
        h, c: (B, H), the state; None stands for zeros.
        weight_ih, weight_hh, bias_ih, bias_hh: as in `lstm`.

    Returns:
        h_next, c_next (B, H), and what `lstm_cell_backward` needs. The last may refer to x, the weights and h_next:
        leave them as they are until backward has been called.

    Raises:
        TypeError, ValueError: as in `lstm`.
    """
    a = _Arguments(4, x, "B I", ("h", "c"), (h, c), weight_ih, weight_hh, bias_ih, bias_hh)
    module = kernels("lstm", a.x)
    h_next, c_next, payload = module.forward_step(a.x, *a.states, a.weight_ih, a.weight_hh, a.bias_ih, a.bias_hh)
    saved = Saved("lstm_cell", module, payload, h_next, h_next.shape, bias_ih is not None, bias_hh is not None)
    return h_next, c_next, saved


def lstm_cell_backward(
    dh_next: Array | None, dc_next: Array | None, saved: Saved, *, state_grad_clip: float | None = None
) -> LSTMCellGradients:
    """Return the gradients of `lstm_cell` with respect to all of its arrays.

    Args:
        dh_next, dc_next: gradients of h_next and c_next, (B, H); one of them may be None, which stands for zeros.
        saved: what `lstm_cell` returned last.
        state_grad_clip: bound to which dh and dc are clamped, as by `lstm_backward` at every step; None for no bound.

    Returns:
        Named tuple dx (B, I), dh, dc (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dbias_ih, dbias_hh (4H,), the last
        two None where there was no bias.

    Raises:
        TypeError, ValueError: as in `lstm_backward`.
    """
    saved = _saved_by("lstm_cell", saved)
    if dh_next is None and dc_next is None:
        raise no_gradient("dh_next, dc_next")
    dx, dh, dc, dweight_ih, dweight_hh, dbias = saved.kernel.backward_step(
        _gradient("dh_next", dh_next, saved, saved.y_shape),
        _gradient("dc_next", dc_next, saved, saved.y_shape),
        saved.payload,
        clip_of(state_grad_clip),
    )
    return LSTMCellGradients(dx, dh, dc, dweight_ih, dweight_hh, *_two_biases(dbias, saved))


def gru(
    x: Array,
    h0: Array | None,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    lengths: Array | list[int] | None = None,
    reverse: bool = False,
    reset_after: bool = True,
    zoneout_h: float = 0.0,
    input_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    training: bool = True,
    seed: int | None = None,
    offset: int = 0,
) -> tuple[Array, Array, Saved]:
    """Run a GRU layer over a sequence (Cho et al., 2014).

        r, z = sigmoid(W_i x_t + b_i + W_h h + b_h);   weight rows in the order r, z, n
        n = tanh(W_in x_t + b_in + r (W_hn h + b_hn))     reset_after=True, the form of torch.nn.GRU and cuDNN
        n = tanh(W_in x_t + b_in + W_hn (r h) + b_hn)     reset_after=False, the paper's
        h' = (1 - z) n + z h,   y_t = h'

    Zoneout of h and variational dropout of x and of h, here too in the products with W_h, are those of `lstm`.

    Args:
        x: (T, B, I), float32 or float64.
        h0: (B, H), the state before the first step; None stands for zeros.
        weight_ih: (3H, I).
        weight_hh: (3H, H).
        bias_ih, bias_hh: (3H,) or None.
        lengths: integers (B,) from 0 to T: steps of each sequence. From its length on a sequence keeps its state, y
            is 0 and x is not read. None: all T steps. With x on a GPU they may be a list or NumPy array, which is
            copied there, or lie there, where they are taken as 0 or T beyond those bounds.
        reverse: go from the last step (length - 1) to the first; y stays in the order of x.
        reset_after: which of the two forms.
        zoneout_h, input_dropout, recurrent_dropout, training, seed, offset: as in `lstm`.

    Returns:
        y (T, B, H); hn (B, H), the state after the last step of each sequence; and what `gru_backward` needs. The last
        may refer to x, the weights and y: leave them as they are until backward has been called.

    Raises:
        TypeError: an argument is no array, not float32 or float64, or not of the dtype of x; lengths, seed or offset
            are no integers, a flag is neither True nor False, or a seed is needed.
        ValueError: a shape does not fit, or a length, probability, seed or offset is out of range.
    """
    a = _Arguments(3, x, "T B I", ("h0",), (h0,), weight_ih, weight_hh, bias_ih, bias_hh)
    noise = noise_of(
        training, seed, offset,
        zoneout_h=zoneout_h, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
    )  # fmt: skip
    module = kernels("gru", a.x)
    y, hn, payload = module.forward(
        a.x,
        *a.states,
        a.weight_ih,
        a.weight_hh,
        a.bias_ih,
        a.bias_hh,
        a.lengths(lengths),
        flag("reverse", reverse),
        flag("reset_after", reset_after),
        noise,
    )
    return y, hn, Saved("gru", module, payload, hn, y.shape, bias_ih is not None, bias_hh is not None)


def gru_backward(
    dy: Array | None, dhn: Array | None, saved: Saved, *, state_grad_clip: float | None = None
) -> GRUGradients:
    """Return the gradients of `gru` with respect to all of its arrays.

    Args:
        dy: gradient of y (T, B, H); entries past a length do not count.
        dhn: gradient of the final state, (B, H).
        saved: what `gru` returned last. Either gradient may be None, which stands for zeros, but not both.
        state_grad_clip: bound to which every step clamps the gradient of the state that it hands to the step before,
            as in `lstm_backward`; None for no bound.

    Returns:
        Named tuple dx (T, B, I), dh0 (B, H), dweight_ih (3H, I), dweight_hh (3H, H), dbias_ih, dbias_hh (3H,), the last
        two None where there was no bias. Summed in a fixed order: the same bits for any number of threads.

    Raises:
        TypeError: a gradient is no array or of another dtype, or all are None; saved comes from another function.
        ValueError: a shape does not fit, or state_grad_clip is negative.
    """
    saved = _saved_by("gru", saved)
    if dy is None and dhn is None:
        raise no_gradient("dy, dhn")
    return GRUGradients(
        *saved.kernel.backward(
            _gradient("dy", dy, saved, saved.y_shape),
            _gradient("dhn", dhn, saved, saved.state.shape),
            saved.payload,
            clip_of(state_grad_clip),
        )
    )


def gru_cell(
    x: Array,
    h: Array | None,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    *,
    reset_after: bool = True,
) -> tuple[Array, Saved]:
    """Make one step of a GRU; the equations are those of `gru`.

    Args:
        x: (B, I), float32 or float64.
        h: (B, H), the state; None stands for zeros.
        weight_ih, weight_hh, bias_ih, bias_hh, reset_after: as in `gru`.

    Returns:
        h_next (B, H), and what `gru_cell_backward` needs. The last may refer to x, the weights and h_next: leave them
        as they are until backward has been called.

    Raises:
        TypeError, ValueError: as in `gru`.
    """
    a = _Arguments(3, x, "B I", ("h",), (h,), weight_ih, weight_hh, bias_ih, bias_hh)
    module = kernels("gru", a.x)
    h_next, payload = module.forward_step(
        a.x, *a.states, a.weight_ih, a.weight_hh, a.bias_ih, a.bias_hh, flag("reset_after", reset_after)
    )
    saved = Saved("gru_cell", module, payload, h_next, h_next.shape, bias_ih is not None, bias_hh is not None)
    return h_next, saved


def gru_cell_backward(dh_next: Array, saved: Saved, *, state_grad_clip: float | None = None) -> GRUCellGradients:
    """Return the gradients of `gru_cell` with respect to all of its arrays.

    Args:
        dh_next: gradient of h_next, (B, H).
        saved: what `gru_cell` returned last.
        state_grad_clip: bound to which dh is clamped, as by `gru_backward` at every step; None for no bound.

    Returns:
        Named tuple dx (B, I), dh (B, H), dweight_ih (3H, I), dweight_hh (3H, H), dbias_ih, dbias_hh (3H,), the last two
        None where there was no bias.

    Raises:
        TypeError, ValueError: as in `gru_backward`.
    """
    saved = _saved_by("gru_cell", saved)
    gradient = float_array_like("dh_next", dh_next, "the forward pass", saved.state, saved.y_shape)
    return GRUCellGradients(*saved.kernel.backward_step(gradient, saved.payload, clip_of(state_grad_clip)))
