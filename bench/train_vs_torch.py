"""Train one character model three ways, by turns: fastgrad, fastgrad on its reference kernels, and PyTorch.

    python bench/train_vs_torch.py [--model gru]

The model is that of `fastgrad train` at its default size: Embedding(V, 64) -> LSTM(64, 256) -> Linear(256, V), batch
32, 64 steps, Adam 3e-3, global norm clipped to 1, the state carried over and detached, on the text inside Python. All
three start from the same weights and see the same batches. That they compute the same is shown first, by their losses.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from typing import Any

import machine
from inputs import QUICK
from machine import torch
from work import FASTGRAD, NUMPY, TORCH

from fastgrad.profiling.turns import SPIN_DOWN, Contestant, by_turns
from fastgrad.training import BUILT_IN, Config, Corpus, Trainer, read_text

SMALL = {"embedding": 8, "hidden": 16, "seq_length": 8, "batch": 4} if QUICK else {}


class TorchTrainer:
    """The same model, batches, clip and Adam in PyTorch, from the weights of a fastgrad trainer that has not begun."""

    def __init__(self, trainer: Trainer) -> None:
        config, V = trainer.config, len(trainer.corpus.vocabulary)
        rnn = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[config.model]
        self.embedding = torch.nn.Embedding(V, config.embedding)
        self.rnn = rnn(config.embedding, config.hidden, config.layers)
        self.head = torch.nn.Linear(config.hidden, V)
        model = torch.nn.ModuleDict({"embedding": self.embedding, "rnn": self.rnn, "head": self.head})
        weights = {name: torch.from_numpy(array.copy()) for name, array in trainer.model.state_dict().items()}
        model.load_state_dict(weights)
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr, fused=True)
        self.clip = config.clip
        # A trainer of the same configuration draws the same windows.
        self.windows = Trainer(config, trainer.corpus).windows
        self.state: Any = None

    def train_step(self) -> float:
        """Learn from the next window; return the loss before the update."""
        x, targets, begins = self.windows.next()
        state = None if begins else self.state
        y, state = self.rnn(self.embedding(torch.from_numpy(x)), state)
        logits = self.head(y)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.optimizer.step()
        self.state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        return loss.item()


def racers(config: Config, corpus: Corpus) -> dict[str, Callable[[], float]]:
    """Return the training steps by name, all from the same weights; torch only where it is installed."""
    trainers = {FASTGRAD: Trainer(config, corpus), NUMPY: Trainer(config, corpus, "reference")}
    steps: dict[str, Callable[[], float]] = {
        name: lambda trainer=trainer: trainer.train_step().loss for name, trainer in trainers.items()
    }
    if torch:
        steps[TORCH] = TorchTrainer(trainers[FASTGRAD]).train_step
    return steps


def repeated(step: Callable[[], float], times: int) -> Callable[[], None]:
    """Return a call that makes `times` steps."""

    def run() -> None:
        for _ in range(times):
            step()

    return run


def main() -> None:
    """Compare the losses, then the speeds, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["lstm", "gru"], default="lstm")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of every contestant (default: all cores)")
    parser.add_argument("--turns", type=int, default=3 if QUICK else 7, help="default: %(default)s")
    parser.add_argument("--steps-per-turn", type=int, default=2 if QUICK else 20, help="default: %(default)s")
    parser.add_argument("--compared-steps", type=int, default=50, help="steps whose losses are compared first")
    parser.add_argument("--pause", type=float, default=SPIN_DOWN, help="seconds of sleep ahead of each contestant")
    arguments = parser.parse_args()
    if min(arguments.turns, arguments.steps_per_turn, arguments.compared_steps) < 1 or arguments.pause < 0:
        parser.error("--turns, --steps-per-turn and --compared-steps must be at least 1, and --pause at least 0")
    try:
        machine.set_threads(arguments.threads)
    except ValueError as error:
        parser.error(f"--threads: {error}")

    config, corpus = Config(model=arguments.model, **SMALL), Corpus.from_text(read_text(BUILT_IN))
    characters = config.batch * config.seq_length
    print(f"{datetime.date.today().isoformat()}, {machine.describe(arguments.threads)}")
    print(
        f"{config.model.upper()} {config.embedding} -> {config.hidden}, batch {config.batch}, "
        f"{config.seq_length} steps, Adam {config.lr}, clip {config.clip}, {config.dtype}, text {BUILT_IN}"
    )
    steps = racers(config, corpus)
    losses = {name: [step() for _ in range(arguments.compared_steps)] for name, step in steps.items()}
    for name in losses:
        if name != FASTGRAD:
            worst = max(abs(a - b) for a, b in zip(losses[name], losses[FASTGRAD], strict=True))
            print(
                f"largest difference of the losses to {name}, first {arguments.compared_steps} steps "
                f"({losses[FASTGRAD][0]:.4f} to {losses[FASTGRAD][-1]:.4f} nats): {worst:.2e}"
            )
    times = by_turns(
        {name: Contestant(repeated(step, arguments.steps_per_turn)) for name, step in steps.items()},
        turns=arguments.turns,
        pause=arguments.pause,
        calls=1,
    )
    for name in steps:
        speed = arguments.steps_per_turn * characters / times.median(name)
        line = f"{name:9} {speed:12,.0f} characters/s"
        if name != FASTGRAD:
            ratio, paired = times.ratio(name, FASTGRAD), times.paired_ratio(name, FASTGRAD)
            line += f"   fastgrad is {ratio:.2f}x as fast ({paired:.2f}x in the median turn)"
        print(line)
    print(f"medians of {arguments.turns} turns of {arguments.steps_per_turn} steps, by turns in one process")


if __name__ == "__main__":
    main()
