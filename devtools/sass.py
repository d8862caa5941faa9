"""Report what the compiler made of each kernel: registers, spills, shared memory, and the widths of its accesses.

for name, kernel in report(code, "sm_90").items():
    print(name, kernel.registers, kernel.spills, kernel.accesses.get("LDG.128", 0))
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import nvrtc


@dataclass(slots=True)
class Kernel:
    """One kernel, compiled.

    registers : of a thread
    spills : bytes of registers stored to and loaded from local memory
    stack : bytes of local memory of a thread
    shared : bytes of static shared memory of a block
    accesses : instruction and bits -> how many there are: "LDG.128" loads from global memory, "STG.32" stores to it;
        LD and ST by an address that may be of any memory, LDS and STS shared, LDL and STL local
    """

    registers: int = 0
    spills: int = 0
    stack: int = 0
    shared: int = 0
    accesses: Counter[str] = field(default_factory=Counter)

    @property
    def local_accesses(self) -> int:
        return sum(n for name, n in self.accesses.items() if name.startswith(("LDL.", "STL.")))


@functools.cache
def _tools() -> tuple[str, str] | None:
    """Return cuobjdump and the PATH on which it finds nvdisasm."""
    wheels = nvrtc.wheel_files("cu13/bin/cuobjdump", "cuda_cuobjdump/bin/cuobjdump")
    path = os.pathsep.join([*(str(tool.parent) for tool in wheels), os.environ.get("PATH", "")])
    cuobjdump = shutil.which("cuobjdump", path=path)
    return (cuobjdump, path) if cuobjdump and shutil.which("nvdisasm", path=path) else None


def why_unavailable() -> str | None:
    """Say why nothing can be reported, or return None."""
    if _tools() is None:
        return 'cuobjdump and nvdisasm are not installed; `pip install "fastgrad[cuda-dev]"` brings them'
    return nvrtc.why_unavailable()


def disassembled(cubin: bytes) -> dict[str, str]:
    """Return the instructions of each kernel as text."""
    tools = _tools()
    if tools is None:
        raise FileNotFoundError(why_unavailable())
    cuobjdump, path = tools
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        file.write_bytes(cubin)
        command = [cuobjdump, "-sass", str(file)]
        text = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
        ).stdout
    parts = text.split("Function : ")[1:]
    return {part.split(None, 1)[0]: part.split("\n", 1)[1] for part in parts}


_ACCESS = re.compile(r"\b(LDG|STG|LDS|STS|LDL|STL|LD|ST)((?:\.\w+)*) ")


def accesses(sass: str) -> Counter[str]:
    """Count the loads and stores of a kernel by kind and bits."""
    counts: Counter[str] = Counter()
    for kind, suffixes in _ACCESS.findall(sass):
        bits = re.search(r"\.[US]?(8|16|64|128)(?=\.|$)", suffixes)
        counts[f"{kind}.{bits[1] if bits else 32}"] += 1
    return counts


def resources(log: str) -> dict[str, Kernel]:
    """Read what the assembler says of each kernel when it is asked (--ptxas-options=-v)."""
    found: dict[str, Kernel] = {}
    kernel = Kernel()
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found.setdefault(match[1], Kernel())
        if match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernel.stack, kernel.spills = int(match[1]), int(match[2]) + int(match[3])
        if match := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(match[1])
        if match := re.search(r"(\d+) bytes smem", line):
            kernel.shared = int(match[1])
    return found


def report(code: str, arch: str, options: Sequence[str] = ()) -> dict[str, Kernel]:
    """Compile a source for "sm_90" or another, and report on each of its kernels."""
    compiled = nvrtc.compile(code, arch, [*options, "--ptxas-options=-v"])
    kernels = resources(compiled.log)
    for name, text in disassembled(compiled.image).items():
        kernels[name].accesses = accesses(text)
    return kernels
