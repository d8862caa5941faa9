"""Checkpoints: arrays in safetensors, everything else in JSON, and the two always of one mind.

A folder holds `checkpoint.json` and the one arrays file that it names, with its SHA-256:

    checkpoint.json                            what can be read: configuration, step, history, vocabulary, ...
    checkpoint-00001200-5f0c1a9e.safetensors   what can't: weights, optimizer state, carried state

Saving writes the arrays under a name of their own first (step and hash), then puts the new JSON in place of the old by
one atomic rename, then deletes the old arrays. That rename is the only moment at which the checkpoint changes: a crash
before it leaves the old pair complete, a crash after it the new one. Every file is flushed to the disk before it gets
its name. Arrays that no JSON names are deleted by the next save.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastgrad.training.errors import UserError

__all__ = ["claimed", "exists", "load", "save", "write_atomically"]

FORMAT = "fastgrad checkpoint"
VERSION = 1
JSON_NAME = "checkpoint.json"
ARRAYS_PATTERN = "checkpoint-*.safetensors"


def exists(folder: Path) -> bool:
    """Return whether `folder` holds a checkpoint, whole or damaged; False where nobody can look."""
    return os.path.exists(folder / JSON_NAME)  # that of pathlib raises for a name too long or a folder locked


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs inside a `with` block, as far as the system has such locks; leaves no file.

    Two runs that save to one folder would delete each other's arrays. The lock is the kernel's: it ends with the
    process, however that ends. A folder that is not there is not held.

    Raises UserError when another run holds it.
    """
    with contextlib.ExitStack() as stack:
        # Windows has no fcntl, and some network file systems no locks.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{folder} is in use by another run of fastgrad; wait for its end, or choose another --out"
                ) from None
        yield


def save(folder: Path, arrays: Mapping[str, np.ndarray[Any, Any]], contents: Mapping[str, Any], step: int) -> None:
    """Write `arrays` and the JSON values `contents` to `folder` as its only checkpoint, atomically as a pair.

    Raises OSError when the folder can't be written; the former checkpoint is then still whole.
    """
    from safetensors.numpy import save as serialise

    raw = serialise({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    digest = hashlib.sha256(raw).hexdigest()
    name = f"checkpoint-{step:08d}-{digest[:8]}.safetensors"
    document = {
        "format": FORMAT,
        "version": VERSION,
        "arrays": {"file": name, "bytes": len(raw), "sha256": digest},
        **contents,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / name, raw)
    write_atomically(folder / JSON_NAME, text.encode("utf-8"))
    for stale in (*folder.glob(ARRAYS_PATTERN), *folder.glob(".*.partial")):
        if stale.name != name:
            with contextlib.suppress(OSError):
                stale.unlink()


def load(folder: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Return the arrays and the JSON values of the checkpoint in `folder`.

    Raises UserError when there is none, when it is damaged, or when something else wrote it.
    """
    from safetensors.numpy import load as deserialise

    path = folder / JSON_NAME
    try:
        contents = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no checkpoint to resume ({JSON_NAME} is missing); leave out --resume"
        ) from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise _damaged(path, f"it is not valid JSON: {error}") from None
    if not isinstance(contents, dict) or contents.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a checkpoint of fastgrad train; choose another --out")
    version = contents.pop("version", None)
    if version != VERSION:
        raise UserError(f"{path} has format version {version!r}; this fastgrad reads version {VERSION}")
    entry = contents.pop("arrays", None)
    try:
        name, size, digest = entry["file"], entry["bytes"], entry["sha256"]
        if Path(name).name != name:
            raise ValueError(name)
    except (KeyError, TypeError, ValueError):
        raise _damaged(path, "its entry 'arrays' names no file with size and hash") from None
    arrays_path = folder / name
    try:
        raw = arrays_path.read_bytes()
    except OSError as error:
        raise _damaged(arrays_path, f"it can't be read: {error.strerror}") from None
    if len(raw) != size:
        raise _damaged(arrays_path, f"it has {len(raw):,} bytes instead of {size:,}")
    if hashlib.sha256(raw).hexdigest() != digest:
        raise _damaged(arrays_path, "its SHA-256 is not the one in checkpoint.json")
    try:
        return deserialise(raw), contents
    except Exception as error:  # safetensors raises its own class and, for header contents, plain KeyErrors
        raise _damaged(arrays_path, str(error)) from None


def write_atomically(path: Path, raw: bytes) -> None:
    """Give `path` the bytes `raw`, on the disk, or leave it as it was: a temporary file, flushed, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the renames in `folder` to the disk, where the platform can open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}; restore it, or start anew with --overwrite")
