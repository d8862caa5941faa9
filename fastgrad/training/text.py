"""Text as codes: reading it, its vocabulary, and the contiguous streams that truncated backpropagation walks along.

Dimension letters: N characters of the text, V of the vocabulary, B streams, T characters in a window, S of a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastgrad._arrays import Array
from fastgrad.training.errors import UserError

__all__ = ["BUILT_IN", "Corpus", "TrainingWindows", "ValidationStreams", "read_text"]

# The name under which a checkpoint remembers the text that needs no file.
BUILT_IN = "pydoc_data.topics"


def read_text(source: str) -> str:
    """Return the text of a UTF-8 file, or with `source` "pydoc_data.topics" the one inside Python itself.

    The latter is the language reference behind `help("...")`, about 465,000 characters of English, its topics joined
    in sorted order. Line ends are kept as they are. Raises UserError for whatever can't be read as text.
    """
    if source == BUILT_IN:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    path = Path(source)
    if path.is_dir():
        raise UserError(f"{source} is a directory; give a text file")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{source} does not exist; give a text file, or none for the text inside Python") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{source} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if not raw:
        raise UserError(f"{source} is empty; give a text of some ten thousand characters or more")
    if b"\0" in raw:
        raise UserError(f"{source} is binary (byte {raw.index(0)} is NUL); give a text file in UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start}); convert it, for example by iconv"
        ) from None


@dataclass(frozen=True)
class Corpus:
    """A text as codes (N,) int64 into its sorted characters, and its SHA-256."""

    codes: Array
    vocabulary: str
    sha256: str

    @classmethod
    def from_text(cls, text: str) -> Corpus:
        """Encode `text`. Raises UserError when it has fewer than two different characters."""
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        distinct, codes = np.unique(points, return_inverse=True)
        if len(distinct) < 2:
            found = f"only the character {chr(distinct[0])!r}" if len(distinct) else "no character"
            raise UserError(f"the text holds {found}; a language model needs at least two different ones")
        return cls(
            codes=np.ascontiguousarray(codes, dtype=np.int64),
            vocabulary="".join(map(chr, distinct)),
            sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        )

    def validation_length(self, batch: int) -> int:
        """Return how many characters at the end are kept for validation.

        5 % of the text, rounded down so that `batch` streams of equal length cover every one of them.
        """
        twentieth = len(self.codes) // 20
        return twentieth - twentieth % max(1, min(batch, twentieth))

    def require(self, batch: int, seq_length: int) -> None:
        """Raise UserError when the text is too short for `batch` streams of at least one window and a validation."""
        # The training part, at least 19/20 of the text, holds a window for each stream and the character after.
        training = batch * seq_length + 1
        needed = max(20, -(-20 * training // 19))
        if len(self.codes) < needed:
            raise UserError(
                f"the text has {len(self.codes):,} characters, but {batch} streams of windows of {seq_length} need "
                f"{needed:,}; give a longer text or a smaller --batch or --seq-length"
            )


class TrainingWindows:
    """Windows of (T, B) codes and targets over B contiguous streams of the training text, epoch after epoch.

    A window's targets are the characters that follow. Stream b continues where it stopped in the window before, which
    is what makes a carried state right. Each epoch starts at a random offset below T, so that windows fall differently.
    The training text must hold B * T + 1 characters or more. `place` takes the streams to where the model is, once.
    Where the next window starts and the random generator are the whole state: see `state` and `restore`.
    """

    def __init__(
        self,
        codes: Array,
        batch: int,
        seq_length: int,
        rng: np.random.Generator,
        place: Callable[[Array], Array] = np.asarray,
    ) -> None:
        length = (len(codes) - 1) // batch
        self.seq_length = seq_length
        # (S + 1, B): a window is a contiguous block of rows, so that the model gets views and nothing is copied.
        starts = np.arange(batch) * length
        self._streams = place(np.ascontiguousarray(codes[starts[None, :] + np.arange(length + 1)[:, None]]))
        self._rng = rng
        self.epoch = 0
        self._position = self._offset()

    def _offset(self) -> int:
        spare = len(self._streams) - self.seq_length
        return int(self._rng.integers(min(self.seq_length, spare)))

    def next(self) -> tuple[Array, Array, bool]:
        """Return inputs (T, B), targets (T, B), both read-only by agreement, and whether an epoch begins here.

        At the beginning of an epoch the carried state belongs to another place of the text and has to be dropped.
        """
        if self._position + self.seq_length >= len(self._streams):
            self._position = self._offset()
            self.epoch += 1
            begins = True
        else:
            begins = False
        start, end = self._position, self._position + self.seq_length
        self._position = end
        return self._streams[start:end], self._streams[start + 1 : end + 1], begins

    def state(self) -> dict[str, Any]:
        """Return position, epoch and random generator, as JSON can hold them."""
        return {"position": self._position, "epoch": self.epoch, "rng": self._rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises KeyError, TypeError or ValueError when it is not one."""
        position, epoch = int(state["position"]), int(state["epoch"])
        if not 0 <= position < len(self._streams):
            raise ValueError(f"position {position} lies outside the streams of {len(self._streams)} characters")
        self._rng.bit_generator.state = state["rng"]
        self._position, self.epoch = position, epoch


class ValidationStreams:
    """The end of the text in B streams of equal length, each with the text before it to warm the state up.

    Every validation character is predicted exactly once, and by a model that has read the `warm_up` characters before
    its stream (they count nothing): cutting the text for speed doesn't change what is measured. `place` is as in
    TrainingWindows.
    """

    def __init__(
        self,
        codes: Array,
        validation_length: int,
        batch: int,
        window: int,
        place: Callable[[Array], Array] = np.asarray,
    ) -> None:
        streams = max(1, min(batch, validation_length))
        length = validation_length // streams
        self.count = streams * length
        first = len(codes) - self.count
        self.warm_up = min(window, first - 1)
        self.window = window
        starts = first - 1 - self.warm_up + np.arange(streams) * length
        rows = np.arange(self.warm_up + length + 1)
        self._streams = place(np.ascontiguousarray(codes[starts[None, :] + rows[:, None]]))

    def windows(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield inputs (T, B) and targets (T, B), or None as targets while warming up; T shrinks in the last window."""
        if self.warm_up:
            yield self._streams[: self.warm_up], None
        for start in range(self.warm_up, len(self._streams) - 1, self.window):
            end = min(start + self.window, len(self._streams) - 1)
            yield self._streams[start:end], self._streams[start + 1 : end + 1]
