"""The targets by name: this host, processors that archspec knows, a few it does not, and CUDA architectures."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from shave.backends import host
from shave.backends.target import LLVM_FEATURES, Dot, Kind, Target
from shave.ir.errors import TargetError

_KINDS: dict[str, Kind] = {"x86_64": "x86", "aarch64": "arm"}
_TRIPLES = {
    ("x86_64", "linux"): "x86_64-unknown-linux-gnu",
    ("aarch64", "linux"): "aarch64-unknown-linux-gnu",
    ("x86_64", "darwin"): "x86_64-apple-darwin",
    ("aarch64", "darwin"): "arm64-apple-darwin",
}
_NAMED_CORES = 4
"""Cores assumed of a machine that is known by name only."""


class _Caches(NamedTuple):
    """Data caches of one core, KiB."""

    l1: int
    l2: int


# archspec has no caches. Vendors' optimisation manuals; a name not listed has those of the nearest ancestor that is.
_CACHES = {
    "x86_64": _Caches(32, 256),
    "x86_64_v4": _Caches(32, 512),
    "haswell": _Caches(32, 256),
    "skylake_avx512": _Caches(32, 1024),
    "icelake": _Caches(48, 512),
    "alderlake": _Caches(48, 1280),
    "sapphirerapids": _Caches(48, 2048),
    "zen": _Caches(32, 512),
    "zen4": _Caches(32, 1024),
    "zen5": _Caches(48, 1024),
    "aarch64": _Caches(32, 512),
    "neoverse_n1": _Caches(64, 1024),
    "neoverse_v1": _Caches(64, 1024),
    "neoverse_n2": _Caches(64, 1024),
    "neoverse_v2": _Caches(64, 2048),
    "a64fx": _Caches(64, 1024),
    "ampere1": _Caches(64, 2048),
}

# Levels between those of the x86-64 ABI: what is added to which. AVX-512 with its dot product has no level of its own.
_MORE_LEVELS = {"x86-64-v4-vnni": ("x86-64-v4", frozenset({"avx512_vnni"}))}

_ARMV8 = frozenset({"fp", "asimd", "crc32"})
_ARMV82 = _ARMV8 | {"atomics", "asimdrdm", "asimdhp", "asimddp", "lrcpc"}
# Cores that archspec lacks: Arm's technical reference manuals.
_MORE_ARM = {
    "cortex-a53": (_ARMV8, _Caches(32, 512)),
    "cortex-a55": (_ARMV82, _Caches(32, 256)),
    "cortex-a57": (_ARMV8, _Caches(32, 1024)),
    "cortex-a73": (_ARMV8, _Caches(32, 1024)),
    "cortex-a75": (_ARMV82, _Caches(64, 512)),
    "cortex-a76": (_ARMV82, _Caches(64, 512)),
    "cortex-a77": (_ARMV82, _Caches(64, 512)),
    "cortex-a78": (_ARMV82, _Caches(64, 512)),
    "cortex-x1": (_ARMV82, _Caches(64, 1024)),
}


class _Cuda(NamedTuple):
    """One CUDA architecture: KiB of L1 and shared memory per multiprocessor, KiB of L2, multiprocessors."""

    l1: int
    l2: int
    cores: int


# CUDA C++ Programming Guide, table of compute capabilities; L2 and counts of the largest data-centre or desktop chip.
_CUDA = {
    "sm_75": _Cuda(96, 6144, 72),
    "sm_80": _Cuda(192, 40960, 108),
    "sm_86": _Cuda(128, 6144, 84),
    "sm_87": _Cuda(192, 4096, 16),
    "sm_89": _Cuda(128, 98304, 142),
    "sm_90": _Cuda(256, 51200, 132),
    "sm_100": _Cuda(256, 129024, 148),
    "sm_120": _Cuda(128, 131072, 188),
}


def resolve(name: str) -> Target:
    """The target of that name: ``cpu``, a name of :func:`list_targets`, or LLVM's name of such a processor.

    Dashes and underscores are alike.

    Raises:
        TargetError: No target has that name; the nearest names are offered.
    """
    if name == "cpu":
        return _this_host()
    key = _spelling(name)
    table = _table()
    for target in table.values():
        if key == _spelling(target.name):
            return target
    for target in table.values():
        if key == target.cpu:
            return target
    near = difflib.get_close_matches(name.lower(), ["cpu", *table], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`shave targets` lists them"
    raise TargetError(f"no target is named {name!r}; {hint}")


def list_targets() -> list[Target]:
    """Every target: this host first, then by kind and name."""
    return [_this_host(), *_table().values()]


def _spelling(name: str) -> str:
    return name.lower().replace("_", "-")


@functools.cache
def _this_host() -> Target:
    """Describe this machine by the features it shows: a container or a hypervisor may hide the model's name."""
    from archspec.cpu import host as detect

    known = _described(detect())
    kind = _KINDS.get(host.architecture())
    triple = _TRIPLES.get((host.architecture(), host.system()))
    if known is None or kind is None or triple is None:
        raise TargetError(f"no code generator for this machine ({host.architecture()}, {host.system()}); name a target")
    caches = _Caches((host.cache_bytes(1) or known.l1_bytes) >> 10, (host.cache_bytes(2) or known.l2_bytes) >> 10)
    target = _target("cpu", kind, known.cpu, host.features() & LLVM_FEATURES[kind].keys(), caches, triple)
    return replace(target, cores=host.usable_cores())


@functools.cache
def _table() -> dict[str, Target]:
    from archspec.cpu import TARGETS

    found = [target for target in map(_described, TARGETS.values()) if target is not None]
    found += [_target(name, "arm", name, features, caches) for name, (features, caches) in _MORE_ARM.items()]
    found += [_level(name, *_MORE_LEVELS[name], found) for name in _MORE_LEVELS]
    found.sort(key=lambda target: (target.kind != "x86", target.name))
    found += [_cuda(name, chip) for name, chip in _CUDA.items()]
    return {target.name: target for target in found}


def _level(name: str, below: str, more: frozenset[str], known: Sequence[Target]) -> Target:
    """A level with some more features than one that is known."""
    base = next(target for target in known if target.name == below)
    features = base.features | more
    return replace(base, name=name, features=features, int8_dot=_int8_dot(features))


def _described(architecture: Any) -> Target | None:
    """Turn archspec's description into a target; None if it is of another family or no code can be made for it."""
    kind = _KINDS.get(str(architecture.family))
    cpu = _llvm_name(architecture)
    if kind is None or cpu is None or (architecture.vendor == "Apple" and host.system() != "darwin"):
        return None
    lineage = [architecture.name, *(ancestor.name for ancestor in architecture.ancestors)]
    caches = next(_CACHES[name] for name in lineage if name in _CACHES)
    features = frozenset(architecture.features) & LLVM_FEATURES[kind].keys()
    return _target(architecture.name.replace("_", "-"), kind, cpu, features, caches)


def _llvm_name(architecture: Any) -> str | None:
    """The name after ``-march`` (x86) or ``-mcpu`` (Arm) in archspec's flags for clang."""
    from archspec.cpu import UnsupportedMicroarchitecture

    try:
        flags = architecture.optimization_flags("clang", "20.0")
    except UnsupportedMicroarchitecture:
        return None
    option = "-march" if str(architecture.family) == "x86_64" else "-mcpu"
    if match := re.search(rf"{option}=([\w-]+)", flags):
        return match[1]
    # For some Arm cores archspec spells out extensions; LLVM knows those cores by the same name.
    name = str(architecture.name).replace("_", "-")
    return name if name.startswith("neoverse") else "generic" if name == "aarch64" else None


def _target(name: str, kind: Kind, cpu: str, features: frozenset[str], caches: _Caches, triple: str = "") -> Target:
    """Derive the widths from the features."""
    machine = "x86_64" if kind == "x86" else "aarch64"
    return Target(
        name=name,
        kind=kind,
        cpu=cpu,
        triple=triple or _TRIPLES[machine, "linux"],
        features=frozenset(features),  # "&" with the keys of a dictionary gives a set
        vector_bytes=_vector_bytes(features),
        vector_registers=32 if kind == "arm" or "avx512f" in features else 16,
        int8_dot=_int8_dot(features),
        l1_bytes=caches.l1 << 10,
        l2_bytes=caches.l2 << 10,
        cores=_NAMED_CORES,
    )


def _vector_bytes(features: frozenset[str]) -> int:
    """Width of a register; the length of SVE's is not known before the program runs, so Arm counts as NEON."""
    if features >= {"avx512f", "avx512bw", "avx512dq", "avx512vl"}:
        return 64
    return 32 if features >= {"avx2", "fma"} else 16


def _int8_dot(features: frozenset[str]) -> Dot:
    if _vector_bytes(features) == 64 and "avx512_vnni" in features:
        return "vnni"
    if "avx_vnni" in features:
        return "avx-vnni"
    if "i8mm" in features:
        return "i8mm"
    return "sdot" if "asimddp" in features else "none"


def _cuda(name: str, chip: _Cuda) -> Target:
    return Target(
        name=name,
        kind="cuda",
        cpu=name,
        triple=_TRIPLES["x86_64", "linux"],
        features=frozenset(),
        vector_bytes=16,
        vector_registers=255,
        int8_dot="imma",
        l1_bytes=chip.l1 << 10,
        l2_bytes=chip.l2 << 10,
        cores=chip.cores,
    )
