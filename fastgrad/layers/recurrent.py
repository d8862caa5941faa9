"""LSTM and GRU as layers.

Dimension letters: T time, B batch, I input, H hidden, L layers, D directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad import init
from fastgrad._arrays import Array, array_module
from fastgrad.layers.base import Layer, Parameter, Rng, describe, positive, uniform, wrong_shape
from fastgrad.recurrent import gru, gru_backward, lstm, lstm_backward


class _Recurrent(Layer):
    """Layers and directions of a recurrent cell: L x D runs of one kernel each.

    Parameters of layer k are weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}, and those of the reverse
    direction have `_reverse` appended; all from U(-a, a), a = 1 / sqrt(hidden_size).
    """

    _gates: int  # rows of the weights in units of H
    _states: int  # arrays in a state: 2 for (h, c), 1 for h
    # What a monitor puts here is called at the end of each forward pass, with what all runs have saved.
    gates_watcher: Callable[[list[Any]], None] | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = False,
        *,
        rng: Rng = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> None:
        positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        rng = np.random.default_rng(rng)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bidirectional, self.batch_first = bool(bidirectional), bool(batch_first)
        self.dtype = init.float_dtype(dtype)
        self.dstate0: Any = None
        self._directions = 2 if bidirectional else 1
        self._runs: list[list[Parameter]] = []
        bound, rows = 1.0 / math.sqrt(hidden_size), self._gates * hidden_size
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * self._directions
            for suffix in ["", "_reverse"][: self._directions]:
                shapes = {"weight_ih": (rows, size), "weight_hh": (rows, hidden_size)}
                run = []
                for name, shape in {**shapes, "bias_ih": (rows,), "bias_hh": (rows,)}.items():
                    parameter = Parameter(uniform(shape, bound, rng, self.dtype))
                    setattr(self, f"{name}_l{layer}{suffix}", parameter)
                    run.append(parameter)
                self._runs.append(run)
        self.to(device)

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
        for _ in range(self.num_layers):
            outputs = []
            for direction in range(self._directions):
                index = len(saved)
                parameters = [parameter.data for parameter in self._runs[index]]
                starts = [None if part is None else part[index] for part in initial]
                y, ends, kept = self._run(x, starts, parameters, lengths, direction == 1)
                outputs.append(y)
                last.append(ends)
                saved.append(kept)
            x = outputs[0] if len(outputs) == 1 else array_module(x).concatenate(outputs, axis=-1)
        y = x.swapaxes(0, 1) if self.batch_first else x
        self._keep(y, (saved, x.shape[1]))
        if self.gates_watcher is not None:
            self.gates_watcher(saved)
        return y, self._join_state(last)

    def backward(self, dy: Array | None, dstate: Any = None) -> Array:
        """Return dx of x's shape; adds to the parameters' gradients and keeps the initial state's as `dstate0`.

        dy has y's shape, or is None when only the state has a gradient. dstate, the gradient of the returned state, and
        `dstate0` have the state's form; None, whole or for one of (h, c), means zeros.
        """
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
            runs[0][part][None] if len(runs) == 1 else array_module(runs[0][part]).stack([run[part] for run in runs])
            for part in range(self._states)
        )
        return parts[0] if self._states == 1 else parts

    def _run(self, x: Array, starts: Any, parameters: Any, lengths: Any, reverse: bool) -> Any:
        raise NotImplementedError

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        raise NotImplementedError


class LSTM(_Recurrent):
    """A long short-term memory of `num_layers` layers, in one or both directions; gates in the order i, f, g, o.

    forward(x, state=None, lengths=None) -> y, (h, c);  backward(dy, dstate=None) -> dx, keeps dstate0 = (dh0, dc0).
    Hochreiter & Schmidhuber, Long Short-Term Memory, 1997; Gers, Schmidhuber & Cummins, Learning to Forget, 2000.
    """

    _gates, _states = 4, 2

    def _run(self, x: Array, starts: Any, parameters: Any, lengths: Any, reverse: bool) -> Any:
        return lstm(x, *starts, *parameters, lengths=lengths, reverse=reverse)

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        dx, dh0, dc0, *gradients = lstm_backward(dy, dends[0], dends[1], saved)
        return dx, (dh0, dc0), gradients


class GRU(_Recurrent):
    """A gated recurrent unit of `num_layers` layers, in one or both directions; gates in the order r, z, n.

    forward(x, state=None, lengths=None) -> y, h;  backward(dy, dstate=None) -> dx, keeps dstate0 = dh0.
    `reset_after=True` is the form of torch and cuDNN, False that of the paper (the reset gate before the product).
    Cho et al., Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation, 2014.
    """

    _gates, _states = 3, 1

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        self.reset_after = bool(reset_after)
        super().__init__(*args, **kwargs)

    def _run(self, x: Array, starts: Any, parameters: Any, lengths: Any, reverse: bool) -> Any:
        y, h, saved = gru(x, *starts, *parameters, lengths=lengths, reverse=reverse, reset_after=self.reset_after)
        return y, (h,), saved

    def _run_backward(self, dy: Array | None, dends: Any, saved: Any) -> Any:
        dx, dh0, *gradients = gru_backward(dy, dends[0], saved)
        return dx, (dh0,), gradients
