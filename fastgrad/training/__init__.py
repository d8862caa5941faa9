"""The trainer behind `fastgrad train`: text, character model, loop, checkpoints, curve.

text -> Corpus -> Trainer(Config(), corpus).train_step() ...
"""

from fastgrad.training.errors import Diverged, UserError
from fastgrad.training.model import CharacterModel, Config
from fastgrad.training.text import BUILT_IN, Corpus, read_text
from fastgrad.training.trainer import StepResult, Trainer

__all__ = [
    "BUILT_IN",
    "CharacterModel",
    "Config",
    "Corpus",
    "Diverged",
    "StepResult",
    "Trainer",
    "UserError",
    "read_text",
]
