"""TensorBoard's event files, written by the package `tensorboard` itself, which needs no TensorFlow for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from fastgrad._arrays import to_host
from fastgrad.monitor.history import COLUMNS, INF, NAN, Look

BINS = 40


class Board:
    """Scalars and histograms in one folder.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "tensorboard: is not installed; pip install 'fastgrad[tensorboard]', or leave the argument out"
            ) from error
        self._event, self._summary = event_pb2.Event, summary_pb2
        self._writer = EventFileWriter(str(folder))

    def scalars(self, look: Look, names: tuple[str, ...]) -> None:
        """Write the numbers of a look: of the whole step, and of each tensor."""
        values = {
            "step/grad_norm": look.grad_norm,
            "step/clip_coefficient": look.clip_coefficient,
            "step/skipped": float(look.skipped),
        }
        for row, column in enumerate(COLUMNS):
            for name, value in zip(names, look.values[row].tolist(), strict=True):
                # A chart for each tensor and count would be mostly zeros.
                if not np.isnan(value) and (row not in (NAN, INF) or value):
                    values[f"{column}/{name}"] = value
        self._add(look.step, [self._summary.Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()])

    def histograms(self, step: int, names: tuple[str, ...], grads: list[Any]) -> None:
        """Write how the entries of each gradient are spread; waits for a device."""
        found = []
        for name, grad in zip(names, grads, strict=True):
            if grad is not None and grad.size:
                entries = to_host(grad)
                entries = entries[np.isfinite(entries)].astype(np.float64)
                if entries.size:
                    counts, edges = np.histogram(entries, BINS)
                    histogram = self._summary.HistogramProto(
                        min=entries.min(), max=entries.max(), num=entries.size, sum=entries.sum(),
                        sum_squares=np.square(entries).sum(), bucket_limit=edges[1:].tolist(), bucket=counts.tolist(),
                    )  # fmt: skip
                    found.append(self._summary.Summary.Value(tag=f"gradient/{name}", histo=histogram))
        self._add(step, found)

    def _add(self, step: int, values: list[Any]) -> None:
        event = self._event(wall_time=time.time(), step=step, summary=self._summary.Summary(value=values))
        self._writer.add_event(event)

    def flush(self) -> None:
        """Bring the file up to date."""
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
