"""What the operating system says about this machine. Whatever it does not say is None: no file need exist."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_PROC, _SYS = Path("/proc"), Path("/sys")


def read(path: Path) -> str | None:
    """Return the text of a file without surrounding space, or None where it can't be read."""
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return None


def processor() -> str:
    """Return the model name of the processor, with family and model number where there are, or its architecture.

    Virtual machines call many generations by one name.
    """
    text = read(_PROC / "cpuinfo") or ""
    name, family, model = (
        re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE) for key in ("model name", "cpu family", "model")
    )
    if not name:
        return platform.processor() or platform.machine() or "unknown"
    return name[1].strip() + (f" (family {family[1].strip()}, model {model[1].strip()})" if family and model else "")


def processor_flags() -> set[str]:
    """Return the names of the processor's extensions as Linux gives them."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", read(_PROC / "cpuinfo") or "", re.MULTILINE)
    return set(match[1].split()) if match else set()


def cores() -> int:
    """Return how many logical processors the machine has."""
    return os.cpu_count() or 1


def allowed_cores() -> int:
    """Return how many of them this process may run on (taskset, job schedulers, containers)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores()


def _own_cgroups(controller: str) -> list[Path]:
    """Return the folders of this process's control group and of those around it; no controller is version 2."""
    root = _SYS / "fs" / "cgroup" / controller
    for line in (read(_PROC / "self" / "cgroup") or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            inner = root / path.strip("/")
            # Seen from inside a container the path may be that of the host, which is not there: the root then is ours.
            return [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return [root]


def cpu_quota() -> float | None:
    """Return the processors' worth of time that the control group allows (docker --cpus), or None without a limit."""
    limits = []
    for folder in _own_cgroups(""):  # version 2
        quota, period = (*(read(folder / "cpu.max") or "max").split(), "")[:2]
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    for folder in _own_cgroups("cpu"):  # version 1
        quota, period = (read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def usable_cores() -> int:
    """Return how many processes or threads can run at once here: 1 or more."""
    quota = cpu_quota()
    return allowed_cores() if quota is None else max(1, min(allowed_cores(), int(quota)))


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping, as the system and the control group see it."""
    limits = []
    match = re.search(r"^MemAvailable:\s*(\d+) kB", read(_PROC / "meminfo") or "", re.MULTILINE)
    if match:
        limits.append(int(match[1]) * 1024)
    groups = [(f, "memory.max", "memory.current") for f in _own_cgroups("")]
    groups += [(f, "memory.limit_in_bytes", "memory.usage_in_bytes") for f in _own_cgroups("memory")]
    for folder, limit_name, used_name in groups:
        limit, used = read(folder / limit_name) or "max", read(folder / used_name) or ""
        if limit.isdecimal() and used.isdecimal():
            # Files that were read count as used, and are dropped as soon as somebody wants the memory.
            files = re.search(r"^inactive_file (\d+)$", read(folder / "memory.stat") or "", re.MULTILINE)
            limits.append(max(0, int(limit) - int(used) + int(files[1] if files else 0)))
    return min(limits, default=None)


def huge_pages() -> str | None:
    """Return the system's setting for transparent huge pages: always, madvise or never."""
    match = re.search(r"\[(\w+)\]", read(_SYS / "kernel/mm/transparent_hugepage/enabled") or "")
    return match[1] if match else None


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver in the kernel, None where there is none."""
    match = re.search(r"Kernel Module\b.*?\s(\d+\.\d[\d.]*)", read(_PROC / "driver/nvidia/version") or "")
    return match[1] if match else None
