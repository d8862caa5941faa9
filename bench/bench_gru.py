"""GRU over sequences and one step of its cell, forward and backward; bytes and flops in recurrent.py."""

from __future__ import annotations

import pytest
import recurrent
from inputs import SEQUENCES, TRAINER_SEQUENCE


@pytest.mark.parametrize("sizes", [*SEQUENCES, TRAINER_SEQUENCE], ids=str)
def bench_gru(race, sizes):
    race(recurrent.sequence, "gru", *sizes)


def bench_gru_cell(race):
    race(recurrent.step, "gru")
