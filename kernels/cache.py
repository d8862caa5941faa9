"""Keep compiled kernels on disk.

The cache can't serve a stale kernel: the name of its folder is a hash of every source file in this package, of the
versions of Numba and LLVM, and of the processor. It lies in $FASTGRAD_CACHE_DIR, else in the user's cache folder, else
in a private folder under the temporary one. A filled one that can't be written is read; where there is none, each
process compiles anew. Code is loaded from nothing that other users could have written (root excepted).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import llvmlite
import numpy as np

CHECKSUM_BYTES = hashlib.sha256().digest_size
GENERATIONS_KEPT = 4  # folders of earlier sources left in the cache
# Settings of Numba's that its code follows, besides the processor's.
SETTINGS = ("NUMBA_OPT", "NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE", "NUMBA_BOUNDSCHECK", "NUMBA_DEBUGINFO")
# Processors whose name virtual machines give to others, without AVX: Numba leaves AVX out there.
WITHOUT_AVX = {"corei7-avx", "core-avx-i", "sandybridge", "ivybridge", "nocona"}


@functools.cache
def target() -> tuple[str, str, str]:
    """Return the triple, the name and the features of the processor that Numba compiles for.

    Worked out as Numba does, which is not imported for it.
    """
    import llvmlite.binding as llvm

    name = os.environ.get("NUMBA_CPU_NAME") or None
    features = os.environ.get("NUMBA_CPU_FEATURES", "" if str(name).lower() == "generic" else None)
    if features is None:
        host = llvm.get_host_cpu_features()
        avx = os.environ.get("NUMBA_ENABLE_AVX") or (name or llvm.get_host_cpu_name()) not in WITHOUT_AVX
        if not int(avx):
            host.update(dict.fromkeys((feature for feature in host if feature.startswith("avx")), False))
        features = host.flatten()
    return llvm.get_process_triple(), name or llvm.get_host_cpu_name(), features


def _numba_version() -> bytes:
    """Return what tells Numba's versions apart, without importing it."""
    spec = importlib.util.find_spec("numba")
    if spec is None or not spec.origin:
        return b"none"
    folder = Path(spec.origin).parent
    return next((path.read_bytes() for path in (folder / "_version.py", folder / "__init__.py") if path.exists()), b"")


@functools.cache
def source_hash() -> str:
    """Return a hash of all that compiled code is made of: these sources, the compilers, the processor."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(_numba_version())
    settings = [os.environ.get(name) for name in SETTINGS]
    digest.update(repr((target(), settings, llvmlite.__version__, np.__version__, sys.version)).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class CacheState:
    """Where compiled kernels are kept.

    folders : of these sources, to load from; where there are several, the first that has the kernel serves
    written : the one of them that new kernels are put into, or None
    trouble : for each folder that was passed over or can't be written, why
    """

    folders: tuple[Path, ...]
    written: Path | None
    trouble: tuple[str, ...]


def _distrust(status: os.stat_result) -> str | None:
    """Say why no code may be loaded from a file or folder: others than this user and root could have written it."""
    if not hasattr(os, "getuid"):
        return None
    own = status.st_uid == os.getuid()
    if not own and status.st_uid != 0:
        return f"belongs to another user (uid {status.st_uid})"
    others = stat.S_IWOTH if own else stat.S_IWOTH | stat.S_IWGRP
    # In a sticky folder others can add files, which are looked at one by one, but not replace any.
    if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
        return f"can be written by other users (mode {stat.S_IMODE(status.st_mode):o}); chmod go-w makes it usable"
    return None


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _unusable(root: Path, folder: Path) -> str | None:
    """Create `folder` below `root`, private to this user, where it is missing; say why it can't be read."""
    try:
        for path in (root, folder):
            if not path.is_dir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            distrust = _distrust(path.stat())
            if distrust:
                return f"{path} {distrust}"
    except OSError as error:
        return f"{folder} can't be made: {error.strerror}"
    return None


def _roots() -> list[Path]:
    if "FASTGRAD_CACHE_DIR" in os.environ:
        return [Path(os.environ["FASTGRAD_CACHE_DIR"])]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return [Path(home) / "fastgrad", Path(tempfile.gettempdir()) / f"fastgrad-{user}"]


@functools.cache
def cache_state() -> CacheState:
    """Return where compiled kernels are kept, settled at the first call in a process."""
    folders: list[Path] = []
    trouble: list[str] = []
    for root in _roots():
        folder = root / source_hash()
        why = _unusable(root, folder)
        if why is None:
            folders.append(folder)
            if _writable(folder):
                _prune(root, folder)
                return CacheState(tuple(folders), folder, tuple(trouble))
            why = f"{folder} can't be written"
        trouble.append(why)
    return CacheState(tuple(folders), None, tuple(trouble))


def cache_folder() -> Path | None:
    """Return the folder that new kernels are put into, or None where nothing can be written."""
    return cache_state().written


def folder_beside(name: str) -> Path | None:
    """Return a folder for other things to keep, private to this user, or None where none can be written."""
    for root in _roots():
        folder = root / name
        if _unusable(root, folder) is None and _writable(folder):
            return folder
    return None


def read_beside(name: str, file: str) -> tuple[Path, bytes] | None:
    """Return the path and the contents of a file in such a folder, None where there is none.

    Raises:
        OSError: it can't be read, or others could have written it.
    """
    for root in _roots():
        path = root / name / file
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as opened:
            distrust = _distrust(os.fstat(opened.fileno()))
            if distrust:
                raise PermissionError(f"{path} {distrust}")
            return path, opened.read()
    return None


def _prune(root: Path, current: Path) -> None:
    """Delete all but the newest generations."""
    try:
        os.utime(current)
        folders = [p for p in root.iterdir() if p.is_dir() and len(p.name) == len(current.name)]
        generations = sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True)
        for old in generations[GENERATIONS_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError:
        pass  # another process is pruning, or the folder is read-only: nothing depends on it


class Entry:
    """A compiled function in the cache: a file of a checksum, then the object code.

    name : of the function, with all that it was specialised for
    source : file that it was written in, if that is not in this package, whose sources name the folder
    """

    def __init__(self, name: str, source: str | None = None):
        salt = b""
        if source is not None and Path(source).parent != Path(__file__).parent:
            salt = Path(source).read_bytes()
        self.file = f"{name.split('(')[0]}-{hashlib.sha256(name.encode() + salt).hexdigest()[:24]}.bin"

    def _read(self, path: Path) -> bytes | None:
        try:
            with path.open("rb") as file:
                if _distrust(os.fstat(file.fileno())):
                    return None
                content = file.read()
        except OSError:
            return None
        checksum, code = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        # A damaged file: compile anew, and replace it.
        return code if hashlib.sha256(code).digest() == checksum else None

    def exists(self) -> bool:
        """Say whether there is a file to load."""
        return any((folder / self.file).exists() for folder in cache_state().folders)

    def load(self) -> bytes | None:
        """Return the object code, or None where there is none."""
        for folder in cache_state().folders:
            code = self._read(folder / self.file)
            if code is not None:
                return code
        return None

    def save(self, code: bytes) -> None:
        """Keep object code for the next process, where that is possible."""
        written = cache_state().written
        if written is None:
            return
        # Written aside and renamed: processes that compile at the same time don't see each other's half. A full disk
        # costs the next process a compilation, not this one its result.
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=written) as folder:
            file = Path(folder) / self.file
            file.write_bytes(hashlib.sha256(code).digest() + code)
            os.replace(file, written / file.name)
