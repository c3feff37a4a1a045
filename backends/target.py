"""Targets as data: what the hardware is and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["x86", "arm", "cuda"]
Dot = Literal["none", "vnni", "avx-vnni", "sdot", "i8mm", "dp4a", "imma"]


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
        l1_bytes: Data cache per core, level 1, bytes.
        l2_bytes: Cache per core, level 2, bytes.
        cores: Cores that the threads of one call may use.
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

    @property
    def lanes(self) -> int:
        """Number of float32 values in one vector register."""
        return self.vector_bytes // 4
