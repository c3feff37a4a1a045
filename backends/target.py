"""Targets as data: what the hardware is and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["x86", "arm", "cuda"]
Dot = Literal["none", "vnni", "avx-vnni", "sdot", "i8mm", "dp4a", "imma"]

LLVM_FEATURES = {
    "x86": {
        "sse3": "sse3", "ssse3": "ssse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "popcnt": "popcnt", "abm": "lzcnt",
        "bmi1": "bmi", "bmi2": "bmi2", "movbe": "movbe", "f16c": "f16c", "fma": "fma", "avx": "avx", "avx2": "avx2",
        "avx_vnni": "avxvnni", "gfni": "gfni", "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512bw": "avx512bw",
        "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi",
        "avx512_vbmi2": "avx512vbmi2", "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg",
        "avx512_vpopcntdq": "avx512vpopcntdq", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
    },
    "arm": {
        "fp": "fp-armv8", "asimd": "neon", "crc32": "crc", "atomics": "lse", "asimdrdm": "rdm", "lrcpc": "rcpc",
        "asimdhp": "fullfp16", "asimdfhm": "fp16fml", "asimddp": "dotprod", "bf16": "bf16", "i8mm": "i8mm",
        "fcma": "complxnum", "jscvt": "jsconv", "sve": "sve", "sve2": "sve2",
    },
    "cuda": {},
}  # fmt: skip
"""LLVM's name of each feature (by archspec's name) that a code generator may use, per kind of target.

Features that no numeric code needs (``rdrand``, ``sha_ni``) are left out, so that a virtual machine that hides them is
not refused; AMX too, since a process must first ask the operating system for its registers.
"""


@dataclass(frozen=True)
class Target:
    """One machine to compile for.

    Attributes:
        name: What the user types (``cpu``, ``x86-64-v4``, ``neoverse-n1``, ``sm_90`` ...).
        kind: Family of code generators: ``x86``, ``arm`` or ``cuda``.
        cpu: LLVM's name of the processor (``-mcpu``), or the CUDA architecture.
        triple: LLVM's target triple of the code that runs on the host side.
        features: Instruction set extensions (names of archspec) that the generated code may use.
        vector_bytes: Width of one vector register, bytes.
        vector_registers: Number of architectural vector registers.
        int8_dot: The dot-product instruction on 8-bit integers, or ``none``.
        l1_bytes: Data cache per core, level 1, bytes (CUDA: L1 and shared memory of one multiprocessor).
        l2_bytes: Cache per core, level 2, bytes (CUDA: of the whole chip).
        cores: Cores that the threads of one call may use (CUDA: multiprocessors).
        gigahertz: Clock of a core under sustained vector arithmetic, cycles per nanosecond. Estimates of kernels'
            times use it; no code depends on it, and a description must not vary with the load, so it is not measured.
        memory_gbytes: Bandwidth at which one core reads main memory, 1e9 bytes per second; as above.
    """

    name: str
    kind: Kind
    cpu: str
    triple: str
    features: frozenset[str]
    vector_bytes: int
    vector_registers: int
    int8_dot: Dot
    l1_bytes: int
    l2_bytes: int
    cores: int
    gigahertz: float = 2.75
    memory_gbytes: float = 14.0

    @property
    def lanes(self) -> int:
        """Number of float32 values in one vector register."""
        return self.vector_bytes // 4

    @property
    def peak_gflops(self) -> float:
        """Most float32 operations of one core, 1e9 per second: two units of one fused multiply-add per lane."""
        return 2 * 2 * self.lanes * self.gigahertz

    @property
    def architecture(self) -> str:
        """Instruction set of the host-side code, as ``platform.machine`` calls it: ``x86_64`` or ``aarch64``."""
        return self.triple.partition("-")[0]

    @property
    def attributes(self) -> tuple[str, ...]:
        """LLVM's ``-mattr``: each feature that the code may use, as ``+name``."""
        names = LLVM_FEATURES[self.kind]
        return tuple(f"+{names[feature]}" for feature in sorted(self.features) if feature in names)
