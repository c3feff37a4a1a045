"""What this machine is: its features, caches and the cores that this process may use."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def architecture() -> str:
    """Instruction set of this machine: ``x86_64``, ``aarch64`` ..."""
    machine = platform.machine().lower()
    return _MACHINES.get(machine, machine)


def system() -> str:
    """Operating system, as LLVM's triples call it: ``linux``, ``darwin``, ``windows``."""
    return platform.system().lower()


@functools.cache
def features() -> frozenset[str]:
    """Instruction set extensions of this machine that the operating system shows, by archspec's names."""
    from archspec.cpu.detect import detected_info

    return frozenset(detected_info().features)


def cache_bytes(level: int) -> int | None:
    """Size of the data cache of that level that core 0 sees, bytes; None where the system does not tell."""
    for index in sorted((_CPUS / "cpu0/cache").glob("index*")):
        text = {name: _read(index / name) for name in ("level", "type", "size")}
        if text["level"] == str(level) and text["type"] in ("Data", "Unified"):
            number, unit = text["size"][:-1], text["size"][-1:]
            if number.isdigit() and unit in ("K", "M"):
                return int(number) << (10 if unit == "K" else 20)
    return None


def usable_processors() -> list[int]:
    """Numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Physical cores that this process may use: the limits of affinity and of the container's CPU quota hold."""
    processors = usable_processors()
    siblings = {_read(_CPUS / f"cpu{i}/topology/thread_siblings_list") or str(i) for i in processors}
    return max(1, min(len(siblings), _quota() or len(siblings)))


def _quota() -> int | None:
    """Processors' worth of time that the control group grants, rounded up; None without a limit."""
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if not period:
        quota, period = _read(_CGROUP / "cpu/cpu.cfs_quota_us"), _read(_CGROUP / "cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        return -(-int(quota) // int(period))
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
