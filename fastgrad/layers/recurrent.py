"""LSTM and GRU as layers.

Dimension letters: T time, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad import init
from fastgrad._arrays import Array, array_module, kept_for_graphs
from fastgrad._checks import flag, no_gradient, number
from fastgrad._noise import clip_of, probability
from fastgrad.layers.base import Layer, Parameter, Rng, describe, positive, uniform, wrong_shape
from fastgrad.normalized_lstm import layer_norm_lstm, layer_norm_lstm_backward
from fastgrad.recurrent import gru, gru_backward, lstm, lstm_backward


class _Recurrent(Layer):
    """Layers and directions of a recurrent cell: L x D runs of one kernel each.

    Parameters of layer k are weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}, and those of the reverse
    direction have `_reverse` appended; all from U(-a, a), a = 1 / sqrt(hidden_size).

    zoneout_h, zoneout_c (LSTM), input_dropout, recurrent_dropout: see `fastgrad.lstm`; each layer and direction has
    masks of its own, the input of a layer being the output of the one below. Attributes of these names may be changed
    at any time. state_grad_clip: bound of the gradient that goes back through time, see `fastgrad.lstm_backward`.

    Attributes:
        seed, offset: of the random numbers. Where there are any, the seed is drawn from `rng`, else it is None; offset
            counts the forward passes in training: put both back to repeat a run.
    """

    _gates: int  # rows of the weights in units of H
    _states: int  # arrays in a state: 2 for (h, c), 1 for h
    _probabilities: tuple[str, ...]  # names of the arguments that are probabilities, of which attributes are made
    _counters = ("offset",)
    # What a monitor puts here is called at the end of each forward pass, with what all runs have saved.
    gates_watcher: Callable[[list[Any]], None] | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        batch_first: bool,
        probabilities: tuple[float, ...],
        state_grad_clip: float | None,
        rng: Rng,
        dtype: Any,
        device: str,
    ) -> None:
        positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        rng = np.random.default_rng(rng)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bidirectional, self.batch_first = flag("bidirectional", bidirectional), flag("batch_first", batch_first)
        self.dtype = init.float_dtype(dtype)
        for name, p in zip(self._probabilities, probabilities, strict=True):
            setattr(self, name, probability(name, p))
        self.state_grad_clip = clip_of(state_grad_clip)
        self.dstate0: Any = None
        self._directions = 2 if bidirectional else 1
        self._runs: list[list[Parameter]] = []
        bound, rows = 1.0 / math.sqrt(hidden_size), self._gates * hidden_size
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * self._directions
            for suffix in ["", "_reverse"][: self._directions]:
                run = self._initial(rows, size, bound, rng)
                for name, parameter in run.items():
                    setattr(self, f"{name}_l{layer}{suffix}", parameter)
                self._runs.append(list(run.values()))
        random = any(self._noise().values())
        self.seed, self.offset = int(rng.integers(1 << 63)) if random else None, 0
        self.to(device)

    def _initial(self, rows: int, size: int, bound: float, rng: np.random.Generator) -> dict[str, Parameter]:
        """Return the parameters of a layer and direction, in the order in which its function takes them."""
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, size), "weight_hh": (rows, self.hidden_size)}
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        return {name: Parameter(uniform(shape, bound, rng, self.dtype)) for name, shape in shapes.items()}

    def _noise(self) -> dict[str, float]:
        """Return the probabilities."""
        return {name: getattr(self, name) for name in self._probabilities}

    def forward(self, x: Array, state: Any = None, lengths: Any = None) -> Any:
        """Return (y, state): y (T, B, D * H) of the last layer, and the state behind the last step.

        x (T, B, I), or (B, T, I) with batch_first, y likewise. It must not be overwritten before backward.
        state is (h, c) for an LSTM and h for a GRU, each (L * D, B, H) with batch_first as well; None means zeros.
        lengths (B,) are integers in 0..T: what lies behind the length of a sequence is not read, its y is zero, and its
        state is that of its last step, as with torch's packed sequences.
        """
        self._check_kind("x", x, self._runs[0][0])
        if x.ndim != 3 or x.shape[-1] != self.input_size:
            axes = "batch, time" if self.batch_first else "time, batch"
            wrong_shape("x", f"({axes}, {self.input_size})", x)
        if self.batch_first:
            x = x.swapaxes(0, 1)
        initial = self._split_state("state", state, x.shape[1])
        last: list[tuple[Array, ...]] = []
        saved: list[Any] = []
        options: dict[str, Any] = {**self._noise(), "training": self.training, "seed": self.seed, "lengths": lengths}
        for _ in range(self.num_layers):
            outputs = []
            for direction in range(self._directions):
                index = len(saved)
                parameters = [parameter.data for parameter in self._runs[index]]
                starts = [None if part is None else part[index] for part in initial]
                options |= {"reverse": direction == 1, "offset": self.offset * len(self._runs) + index}
                y, ends, kept = self._run(x, starts, parameters, options)
                outputs.append(y)
                last.append(ends)
                saved.append(kept)
            x = outputs[0] if len(outputs) == 1 else kept_for_graphs(array_module(x).concatenate(outputs, axis=-1))
        if self.training:
            self.offset += 1
        y = x.swapaxes(0, 1) if self.batch_first else x
        self._keep(y, (saved, x.shape[1]))
        if self.gates_watcher is not None:
            self.gates_watcher(saved)
        return y, self._join_state(last)

    def backward(self, dy: Array | None, dstate: Any = None) -> Array:
        """Return dx of x's shape; adds to the parameters' gradients and keeps the initial state's as `dstate0`.

        dy has y's shape, or is None when only the state has a gradient. dstate, the gradient of the returned state, and
        `dstate0` have the state's form; None, whole or for one of (h, c), means zeros, but not for all of them.
        """
        if dy is None and (dstate is None or (isinstance(dstate, tuple | list) and all(d is None for d in dstate))):
            raise no_gradient("dy, dstate")
        saved, batch = self._take(dy)
        dlast = self._split_state("dstate", dstate, batch)
        if dy is not None and self.batch_first:
            dy = dy.swapaxes(0, 1)
        hidden = self.hidden_size
        dfirst: list[tuple[Array, ...]] = [()] * len(saved)
        for layer in reversed(range(self.num_layers)):
            dx = None
            for direction in range(self._directions):
                index = layer * self._directions + direction
                part = dy
                if dy is not None and self._directions == 2:
                    part = dy[..., direction * hidden : (direction + 1) * hidden]
                dends = [None if array is None else array[index] for array in dlast]
                dinput, dfirst[index], gradients = self._run_backward(part, dends, saved[index])
                for parameter, gradient in zip(self._runs[index], gradients, strict=True):
                    parameter.accumulate(gradient)
                if dx is None:
                    dx = dinput
                else:
                    dx += dinput
            dy = dx
        self.dstate0 = self._join_state(dfirst)
        assert dy is not None
        return dy.swapaxes(0, 1) if self.batch_first else dy

    def _split_state(self, name: str, state: Any, batch: int) -> tuple[Array | None, ...]:
        """Return the arrays of a state in torch's form, each checked, or None for zeros."""
        if state is None:
            return (None,) * self._states
        shape = (self.num_layers * self._directions, batch, self.hidden_size)
        if self._states == 1:
            parts, names = (state,), [name]
        elif isinstance(state, tuple | list) and len(state) == 2:
            parts, names = tuple(state), [f"{name}[0] (h)", f"{name}[1] (c)"]
        else:
            raise TypeError(f"{name}: expected a pair (h, c) of arrays of shape {shape} or None, got {describe(state)}")
        for part, what in zip(parts, names, strict=True):
            if part is not None and getattr(part, "shape", None) != shape:
                wrong_shape(what, f"{shape} (layers x directions, batch, hidden)", part)
            if part is not None:
                self._check_kind(what, part, self._runs[0][0])
        return parts

    def _join_state(self, runs: list[tuple[Array, ...]]) -> Any:
        """Return the states of all runs in torch's form."""
        parts = tuple(
            runs[0][part][None]
            if len(runs) == 1
            else kept_for_graphs(array_module(runs[0][part]).stack([run[part] for run in runs]))
            for part in range(self._states)
        )
        return parts[0] if self._states == 1 else parts

    def _run(self, x: Array, starts: Any, parameters: Any, options: Any) -> Any:
        raise NotImplementedError

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        raise NotImplementedError


class LSTM(_Recurrent):
    """A long short-term memory of `num_layers` layers, in one or both directions; gates in the order i, f, g, o.

    forward(x, state=None, lengths=None) -> y, (h, c);  backward(dy, dstate=None) -> dx, keeps dstate0 = (dh0, dc0).
    Hochreiter & Schmidhuber, Long Short-Term Memory, 1997; Gers, Schmidhuber & Cummins, Learning to Forget, 2000.
    """

    _gates, _states = 4, 2
    _probabilities = ("zoneout_h", "zoneout_c", "input_dropout", "recurrent_dropout")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        *,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        state_grad_clip: float | None = None,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        probabilities = zoneout_h, zoneout_c, input_dropout, recurrent_dropout
        super().__init__(
            input_size, hidden_size, num_layers, bidirectional, batch_first,
            probabilities, state_grad_clip, rng, dtype, device,
        )  # fmt: skip

    def _run(self, x: Array, starts: Any, parameters: Any, options: Any) -> Any:
        return lstm(x, *starts, *parameters, **options)

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        dx, dh0, dc0, *gradients = lstm_backward(dy, dends[0], dends[1], saved, state_grad_clip=self.state_grad_clip)
        return dx, (dh0, dc0), gradients


class LayerNormLSTM(LSTM):
    """An LSTM with layer normalisation of W_ih x, W_hh h and c, see `fastgrad.layer_norm_lstm`; otherwise as `LSTM`.

    A class of its own, since it has other parameters than torch's LSTM, whose state_dict `LSTM` reads: weight_ih and
    weight_hh, gain_ih, gain_hh (4H,) and gain_c (H,), bias_ih, bias_hh (4H,) and bias_c (H,), with the endings _l{k}
    and _l{k}_reverse. Gains start from `gain`, biases from 0. Cooijmans et al. (Recurrent
    Batch Normalization, 2017) start theirs from 0.1: with tanh of numbers of variance 1 gradients vanish sooner.

    Args:
        gain: what the gains start from.
        eps: added to the variances.

    Ba, Kiros & Hinton, Layer Normalization, 2016.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        *,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        state_grad_clip: float | None = None,
        gain: float = 1.0,
        eps: float = 1e-5,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        self._gain = number("gain", gain)
        self.eps = number("eps", eps, 0.0, open_low=True)
        super().__init__(
            input_size, hidden_size, num_layers, bidirectional, batch_first,
            zoneout_h=zoneout_h, zoneout_c=zoneout_c, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
            state_grad_clip=state_grad_clip, rng=rng, dtype=dtype, device=device,
        )  # fmt: skip

    def _initial(self, rows: int, size: int, bound: float, rng: np.random.Generator) -> dict[str, Parameter]:
        weights = {
            name: Parameter(uniform(shape, bound, rng, self.dtype))
            for name, shape in (("weight_ih", (rows, size)), ("weight_hh", (rows, self.hidden_size)))
        }
        sizes = {"ih": rows, "hh": rows, "c": self.hidden_size}
        gains = {f"gain_{of}": Parameter(np.full(n, self._gain, self.dtype)) for of, n in sizes.items()}
        return {**weights, **gains, **{f"bias_{of}": Parameter(np.zeros(n, self.dtype)) for of, n in sizes.items()}}

    def _run(self, x: Array, starts: Any, parameters: Any, options: Any) -> Any:
        return layer_norm_lstm(x, *starts, *parameters, eps=self.eps, **options)

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        dx, dh0, dc0, *gradients = layer_norm_lstm_backward(
            dy, dends[0], dends[1], saved, state_grad_clip=self.state_grad_clip
        )
        return dx, (dh0, dc0), gradients


class GRU(_Recurrent):
    """A gated recurrent unit of `num_layers` layers, in one or both directions; gates in the order r, z, n.

    forward(x, state=None, lengths=None) -> y, h;  backward(dy, dstate=None) -> dx, keeps dstate0 = dh0.
    `reset_after=True` is the form of torch and cuDNN, False that of the paper (the reset gate before the product).
    Cho et al., Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation, 2014.
    """

    _gates, _states = 3, 1
    _probabilities = ("zoneout_h", "input_dropout", "recurrent_dropout")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        *,
        zoneout_h: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        state_grad_clip: float | None = None,
        reset_after: bool = True,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        self.reset_after = flag("reset_after", reset_after)
        probabilities = zoneout_h, input_dropout, recurrent_dropout
        super().__init__(
            input_size, hidden_size, num_layers, bidirectional, batch_first,
            probabilities, state_grad_clip, rng, dtype, device,
        )  # fmt: skip

    def _run(self, x: Array, starts: Any, parameters: Any, options: Any) -> Any:
        y, h, saved = gru(x, *starts, *parameters, reset_after=self.reset_after, **options)
        return y, (h,), saved

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        dx, dh0, *gradients = gru_backward(dy, dends[0], saved, state_grad_clip=self.state_grad_clip)
        return dx, (dh0,), gradients
