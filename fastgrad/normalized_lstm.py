"""LSTM with layer normalisation: contracts and checks.

Dimensions: T time, B batch, I input, H hidden.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastgrad._arrays import Array, zeros
from fastgrad._checks import flag, no_gradient, number, sized_array
from fastgrad._dispatch import kernels
from fastgrad._noise import clip_of, noise_of
from fastgrad.kernels.layer_norm_lstm import Weights
from fastgrad.recurrent import Saved, _Arguments, _gradient, _saved_by

__all__ = ["LayerNormLSTMGradients", "layer_norm_lstm", "layer_norm_lstm_backward"]


class LayerNormLSTMGradients(NamedTuple):
    """Gradients of `layer_norm_lstm`; a bias that was not given has None."""

    dx: Array
    dh0: Array
    dc0: Array
    dweight_ih: Array
    dweight_hh: Array
    dgain_ih: Array
    dgain_hh: Array
    dgain_c: Array
    dbias_ih: Array | None
    dbias_hh: Array | None
    dbias_c: Array | None


def layer_norm_lstm(
    x: Array,
    h0: Array | None,
    c0: Array | None,
    weight_ih: Array,
    weight_hh: Array,
    gain_ih: Array,
    gain_hh: Array,
    gain_c: Array,
    bias_ih: Array | None = None,
    bias_hh: Array | None = None,
    bias_c: Array | None = None,
    *,
    eps: float = 1e-5,
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
    """Run an LSTM layer with layer normalisation over a sequence (Ba, Kiros and Hinton, Layer Normalization, 2016).

        sums = LN(W_i x_t; gain_ih, bias_ih) + LN(W_h h; gain_hh, bias_hh)
        i, f, o = sigmoid(sums),   g = tanh(sums);   weight rows in the order i, f, g, o
        c' = f c + i g,   h' = o tanh(LN(c'; gain_c, bias_c)),   y_t = h'
        LN(a; gain, bias) = gain (a - mean) / sqrt(var + eps) + bias

    mean and var (of divisor N) go over the 4H numbers of a product, and over the H of c'. The state that is carried on
    is c' itself, as in the paper. Statistics are summed in float64, as by `layer_norm`.

    Args:
        x: (T, B, I), float32 or float64.
        h0, c0: (B, H), the state before the first step; None stands for zeros.
        weight_ih: (4H, I).
        weight_hh: (4H, H).
        gain_ih, gain_hh: (4H,).
        gain_c: (H,).
        bias_ih, bias_hh: (4H,) or None, which stands for zeros.
        bias_c: (H,) or None.
        eps: added to the variances, more than 0: the products of a state of zeros have none.
        lengths, reverse: as in `lstm`.
        zoneout_h, zoneout_c, input_dropout, recurrent_dropout, training, seed, offset: as in `lstm`; zoneout mixes c'
            and h' with the state before.

    Returns:
        y (T, B, H); the state (hn, cn) after the last step of each sequence, (B, H) each; and what
        `layer_norm_lstm_backward` needs. The last may refer to x, the weights and y: leave them as they are until
        backward has been called.

    Raises:
        TypeError, ValueError: as in `lstm`; eps is not more than 0.
    """
    a = _Arguments(4, x, "T B I", ("h0", "c0"), (h0, c0), weight_ih, weight_hh, bias_ih, bias_hh)
    eps, reverse = number("eps", eps, 0.0, open_low=True), flag("reverse", reverse)
    noise = noise_of(
        training, seed, offset,
        zoneout_h=zoneout_h, zoneout_c=zoneout_c, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
    )  # fmt: skip

    hidden = a.weight_hh.shape[1]

    def vector(name: str, value: Any, letters: str) -> Array:
        if value is None and name.startswith("bias"):
            return zeros((hidden * (4 if letters == "4H" else 1),), a.x.dtype, a.x)
        return sized_array(name, value, letters, {"H": hidden}, "x", a.x)

    weights = Weights(
        a.weight_ih, a.weight_hh, vector("gain_ih", gain_ih, "4H"), vector("gain_hh", gain_hh, "4H"),
        vector("gain_c", gain_c, "H"), vector("bias_ih", bias_ih, "4H"), vector("bias_hh", bias_hh, "4H"),
        vector("bias_c", bias_c, "H"),
    )  # fmt: skip
    module = kernels("layer_norm_lstm", a.x)
    y, hn, cn, payload = module.forward(a.x, *a.states, weights, eps, a.lengths(lengths), reverse, noise)
    saved = Saved("layer_norm_lstm", module, (payload, bias_c is not None), hn, y.shape, bias_ih is not None,
                  bias_hh is not None)  # fmt: skip
    return y, (hn, cn), saved


def layer_norm_lstm_backward(
    dy: Array | None,
    dhn: Array | None,
    dcn: Array | None,
    saved: Saved,
    *,
    state_grad_clip: float | None = None,
) -> LayerNormLSTMGradients:
    """Return the gradients of `layer_norm_lstm` with respect to all of its arrays, through the statistics.

    Args:
        dy: gradient of y (T, B, H); entries past a length do not count.
        dhn, dcn: gradients of the final state, (B, H).
        saved: what `layer_norm_lstm` returned last. Gradients may be None, which stands for zeros, but not all three.
        state_grad_clip: bound to which every step clamps the gradient of the state that it hands to the step before,
            as in `lstm_backward`; None for no bound.

    Returns:
        Named tuple dx (T, B, I), dh0, dc0 (B, H), dweight_ih (4H, I), dweight_hh (4H, H), dgain_ih, dgain_hh (4H,),
        dgain_c (H,), dbias_ih, dbias_hh (4H,), dbias_c (H,), the last three None where there was no bias. Summed in a
        fixed order: the same bits for any number of threads.

    Raises:
        TypeError, ValueError: as in `lstm_backward`.
    """
    saved = _saved_by("layer_norm_lstm", saved)
    if dy is None and dhn is None and dcn is None:
        raise no_gradient("dy, dhn, dcn")
    state = saved.state.shape
    payload, has_bias_c = saved.payload
    dx, dh0, dc0, d = saved.kernel.backward(
        _gradient("dy", dy, saved, saved.y_shape),
        _gradient("dhn", dhn, saved, state),
        _gradient("dcn", dcn, saved, state),
        payload,
        clip_of(state_grad_clip),
    )
    given = zip((saved.has_bias_ih, saved.has_bias_hh, has_bias_c), d[5:], strict=True)
    return LayerNormLSTMGradients(dx, dh0, dc0, *d[:5], *(gradient if has else None for has, gradient in given))
