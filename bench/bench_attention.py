"""Scaled dot-product attention, and a block of a transformer, forward and backward.

Flops: 4 B H T T D forward and 10 backward, half of that where causal. A block adds its products: 24 B T E^2 forward for
d_ff = 4 E, and twice that backward. Bytes: arguments, results and gradients, each once.
"""

from __future__ import annotations

import pytest
from inputs import QUICK, name_of, normal
from machine import torch
from work import Work, contestants, on_reference, tensors

import fastgrad
from fastgrad.layers import TransformerBlock
from fastgrad.profiling import limits

# (B, H, T, D): the trainer's, and those of GPT-2 small and of a longer context.
SHAPES = [(2, 2, 9, 8)] if QUICK else [(32, 4, 64, 32), (8, 8, 512, 64), (1, 12, 1024, 64)]
# (T, B, E, H)
BLOCKS = [(9, 2, 16, 2)] if QUICK else [(64, 32, 128, 4), (256, 8, 512, 8)]


def attention(B: int, H: int, T: int, D: int, causal: bool = True) -> Work:
    """y, dq, dk and dv."""
    q, k, v, dy = (normal(seed, B, H, T, D) for seed in range(4))
    flops = 14 * B * H * T * T * D // (2 if causal else 1)

    def by_fastgrad() -> object:
        y, saved = fastgrad.attention(q, k, v, causal=causal)
        return [y, fastgrad.attention_backward(dy, saved)]

    by_torch = None
    if torch:
        q_t, k_t, v_t, dy_t = tensors([q, k, v, dy])
        wanted = [t.requires_grad_() for t in (q_t, k_t, v_t)]

        def by_torch() -> object:
            y = torch.nn.functional.scaled_dot_product_attention(*wanted, is_causal=causal)
            return [y, torch.autograd.grad(y, wanted, dy_t)]

    return Work(
        f"attention forward + backward {(B, H, T, D)}, {'causal' if causal else 'all keys'}", name_of([(B, H, T, D)]),
        4 * 8 * q.size, flops, contestants(on_reference(by_fastgrad), by_fastgrad, by_torch),
        limit=lambda: limits.of_products(flops), rtol=1e-4,
    )  # fmt: skip


def block(T: int, B: int, E: int, H: int) -> Work:
    """y and dx of a causal pre-norm block with gelu; the gradients of its parameters are made as well."""
    layer = TransformerBlock(E, H, causal=True, rng=1)
    x, dy = normal(0, T, B, E), normal(1, T, B, E)
    flops = 3 * 24 * B * T * E * E + 14 * B * T * T * E // 2

    def by_fastgrad() -> object:
        for parameter in layer.parameters():
            parameter.grad = None
        return [layer.forward(x), layer.backward(dy)]

    by_torch = None
    if torch:
        module = torch.nn.TransformerEncoderLayer(E, H, 4 * E, 0.0, "gelu", norm_first=True)
        module.load_state_dict({name: torch.tensor(value) for name, value in layer.state_dict().items()})
        x_t, dy_t = tensors([x, dy])
        x_t.requires_grad_()
        mask = torch.nn.Transformer.generate_square_subsequent_mask(T)

        def by_torch() -> object:
            module.zero_grad()
            x_t.grad = None
            y = module(x_t, src_mask=mask, is_causal=True)
            y.backward(dy_t)
            return [y, x_t.grad]

    size = sum(parameter.data.size for parameter in layer.parameters())
    return Work(
        f"transformer block forward + backward {(T, B, E, H)}", name_of([(T, B, E)]), 4 * (4 * x.size + 2 * size),
        flops, contestants(on_reference(by_fastgrad), by_fastgrad, by_torch),
        limit=lambda: limits.of_products(flops), rtol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all keys"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_attention(race, shape, causal):
    race(attention, *shape, causal)


@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def bench_transformer_block(race, sizes):
    race(block, *sizes)
