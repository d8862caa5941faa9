"""Layers: parameters, their gradients and what the backward pass needs, around fastgrad's functions.

No graph is recorded: `forward` keeps what `backward` needs, and `backward(dy)` is called once after each `forward`, in
the opposite order of layers. It adds to the gradients of the parameters, as in torch, and returns the gradient of the
input. Names in `state_dict` and initial values follow torch.

Layers are made on the CPU and take NumPy arrays there; after `layer.to("gpu")`, or made with `device="gpu"`, they take
and return CuPy arrays. Initial values are drawn on the CPU for both: the same `rng` gives the same numbers.

Dimension letters: T time, B batch, I input, H hidden, L layers, D directions.
"""

from fastgrad.layers.attention import MultiHeadAttention
from fastgrad.layers.base import Layer, Parameter
from fastgrad.layers.checkpoint import Checkpoint
from fastgrad.layers.containers import Residual, Sequential
from fastgrad.layers.dense import Activation, Embedding, Linear, PReLU
from fastgrad.layers.norms import BatchNorm, LayerNorm
from fastgrad.layers.recurrent import GRU, LSTM, LayerNormLSTM
from fastgrad.layers.regularization import Dropout
from fastgrad.layers.transformer import TransformerBlock

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "BatchNorm",
    "Checkpoint",
    "Dropout",
    "Embedding",
    "Layer",
    "LayerNorm",
    "LayerNormLSTM",
    "Linear",
    "MultiHeadAttention",
    "PReLU",
    "Parameter",
    "Residual",
    "Sequential",
    "TransformerBlock",
]
