"""LSTM and GRU with zoneout, variational dropout and the clamp of the state's gradient, forward and backward.

torch has none of them in its layers: it is a loop over the steps of its operations, as people write it, which draws its
masks with bernoulli. Everybody drops other entries, so nobody returns any to be compared. Flops and bytes as in
recurrent.py.
"""

from __future__ import annotations

import limit
import pytest
import recurrent
from inputs import SEQUENCES, normal
from machine import torch
from work import Work, contestants, on_reference, tensors

import fastgrad

NOISE = {"zoneout_h": 0.05, "zoneout_c": 0.3, "input_dropout": 0.2, "recurrent_dropout": 0.2}
CLIP = 1.0


def sequence(cell: str, T: int, B: int, I: int, H: int) -> Work:  # noqa: E741  the letters of DESIGN and torch
    """A layer over a sequence, with the gradient of its whole output."""
    gates = recurrent.GATES[cell]
    x, dy = normal(0, T, B, I), normal(1, T, B, H)
    states = [normal(2 + k, B, H, scale=0.5) for k in range(2 if cell == "lstm" else 1)]
    weights = recurrent._weights(gates, I, H)
    noise = {name: p for name, p in NOISE.items() if cell == "lstm" or name != "zoneout_c"}

    def by_fastgrad() -> object:
        if cell == "lstm":
            _, _, saved = fastgrad.lstm(x, *states, *weights, **noise, seed=1)
            fastgrad.lstm_backward(dy, None, None, saved, state_grad_clip=CLIP)
        else:
            _, _, saved = fastgrad.gru(x, *states, *weights, **noise, seed=1)
            fastgrad.gru_backward(dy, None, saved, state_grad_clip=CLIP)
        return []

    by_torch = None
    if torch:
        module = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[cell](I, H)
        parameters = recurrent._torch_module(module, weights)
        x_t, dy_t, *states_t = tensors([x, dy, *states])
        wanted = [x_t.requires_grad_(), *(state.requires_grad_() for state in states_t), *parameters]

        def dropped(like: object, p: float) -> object:
            return torch.empty_like(like).bernoulli_(1 - p).div_(1 - p)

        def by_torch() -> object:
            m_x, m_h = dropped(x_t[0], NOISE["input_dropout"]), dropped(states_t[0], NOISE["recurrent_dropout"])
            current, outputs = states_t, []
            for t in range(T):
                given = [state.view_as(state) for state in current]
                for state in given:
                    state.register_hook(lambda g: g.clamp(-CLIP, CLIP))
                entering = [given[0] * m_h, *given[1:]]
                new = module(x_t[t] * m_x, tuple(entering) if cell == "lstm" else entering[0])
                new = list(new) if cell == "lstm" else [new]
                current = [
                    torch.where(torch.rand_like(a) < p, a, b)
                    for a, b, p in zip(given, new, (NOISE["zoneout_h"], NOISE["zoneout_c"]), strict=False)
                ]
                outputs.append(current[0])
            torch.autograd.grad(torch.stack(outputs), wanted, dy_t)
            return []

    flops = 6 * gates * T * B * H * (I + H)
    return Work(
        f"{cell} with zoneout, dropout, clamp {(T, B, I, H)}",
        f"(T, B, I, H) = {(T, B, I, H)}",
        4 * 2 * (x.size + dy.size + sum(weight.size for weight in weights)),
        flops,
        contestants(on_reference(by_fastgrad), by_fastgrad, by_torch),
        limit=lambda: limit.of_products(flops),
    )


@pytest.mark.parametrize("sizes", SEQUENCES, ids=str)
@pytest.mark.parametrize("cell", recurrent.GATES)
def bench_between_steps(race, cell, sizes):
    race(sequence, cell, *sizes)
