"""Watches the outputs while passes run: exact passes must keep them, lossy ones have their drift measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from shave.ir.dtypes import torch_dtype
from shave.ir.errors import PassError
from shave.ir.ops import Trait, has_trait
from shave.ir.program import Program
from shave.ir.signature import TensorSpec
from shave.passes.base import Exactness, Pass
from shave.passes.compare import CompareError, Difference, difference, outputs_of

MIN_SQNR_DB = 40.0
"""What is asked of an exact pass on a quantized program. There a difference by rounding can move a value by a whole
quantization step, so that no bound holds for a single element; but it moves few values, and all together stay far
below the noise of quantization itself (30 to 40 dB for 8 bits)."""

MAX_UNEQUAL = 1e-3
"""Share of an integer or boolean output that an exact pass may change: near ties of argmax and comparisons flip by
rounding."""


ROUNDINGS = 16.0
"""How many times as far as by rounding its inputs otherwise an exact pass may move a program's outputs: it rounds the
weights and results of many layers otherwise."""


class OutputCheck:
    """Runs a program on the same inputs after each pass.

    Exact passes are compared with what the last lossy pass left (or with the program given), so that the roundings of a
    row of passes together stay within the largest tolerance of any of them. Some programs magnify roundings beyond
    that, deep ones with random weights above all; what they do to their own is no fault of a pass.
    """

    def __init__(self, program: Program, inputs: Sequence[torch.Tensor], seed: int = 0) -> None:
        self._inputs = inputs
        self._seed = seed
        self._original = program
        self._before = self._reference = self._run(program, inputs)
        self._tolerance = 0.0

    def after(self, instance: Pass, program: Program) -> dict[str, Difference]:
        """Measure by how much a pass moved each output.

        Raises:
            PassError: An exact pass moved one beyond its tolerance, or changed its shape.
        """
        outputs = self._run(program, self._inputs)
        names = [spec.name for spec in program.signature.outputs]
        if instance.exactness is Exactness.EXACT:
            try:
                since = _differences(names, self._reference, outputs)
            except CompareError as error:
                raise PassError(f"{instance.name} is an exact pass, but {error}") from error
            self._tolerance = max(self._tolerance, instance.tolerance)
            if any(found.max_rel > self._tolerance for found in since.values()):
                self._tolerance = max(self._tolerance, ROUNDINGS * self._own_noise(names))
            check_exact(instance, program, since, self._tolerance)
        try:
            drift = _differences(names, self._before, outputs)
        except CompareError:
            drift = {}  # A lossy pass may change shapes; then there is nothing to measure.
        self._before = outputs
        if instance.exactness is Exactness.LOSSY:
            self._original, self._reference, self._tolerance = program, outputs, 0.0
        return drift

    def _own_noise(self, names: Sequence[str]) -> float:
        """By how much, relative to float32, the outputs move if each input is rounded up or down by one place."""
        generator = torch.Generator().manual_seed(self._seed)
        moved = self._run(self._original, [rounded_otherwise(tensor, generator) for tensor in self._inputs])
        found = _differences(names, self._reference, moved).values()
        places = [torch.finfo(o.dtype).eps if o.dtype.is_floating_point else torch.inf for o in self._reference]
        single = torch.finfo(torch.float32).eps
        noise = [f.max_rel * single / eps for f, eps in zip(found, places, strict=True) if math.isfinite(f.max_rel)]
        return max(noise, default=0.0)

    def _run(self, program: Program, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        # Programs may draw random numbers; each run draws the same, and the caller's generator stays untouched.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return outputs_of(program(*inputs))


def rounded_otherwise(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each element up or down by one place of its dtype; integers stay."""
    if not tensor.dtype.is_floating_point:
        return tensor
    sign = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.dtype) * 2 - 1
    return tensor * (1 + sign * torch.finfo(tensor.dtype).eps)


def check_exact(
    instance: Pass, program: Program, differences: Mapping[str, Difference], tolerance: float | None = None
) -> None:
    """Check the differences that an exact pass made.

    Args:
        instance: The pass.
        program: What it left.
        differences: By output name.
        tolerance: What takes the place of the pass's own.

    Raises:
        PassError: Names the output that moved too far, by how much, and the bound.
    """
    quantized = any(has_trait(node, Trait.OPAQUE) for node in program.calls)
    tolerance = instance.tolerance if tolerance is None else tolerance
    for spec in program.signature.outputs:
        found = differences[spec.name]
        excess = _excess(spec, found, tolerance, quantized)
        if excess:
            raise PassError(f"{instance.name} is an exact pass, but output {spec.name!r} moved: {excess} ({found})")


def _excess(spec: TensorSpec, found: Difference, tolerance: float, quantized: bool) -> str:
    """Say which bound is broken; empty if none."""
    dtype = torch_dtype(spec.dtype)
    if not dtype.is_floating_point and not dtype.is_complex:
        unequal = 1 - found.equal
        return f"{100 * unequal:.3g} % of the elements differ" if unequal > MAX_UNEQUAL else ""
    if quantized:
        return f"SQNR is below {MIN_SQNR_DB} dB" if not found.sqnr_db >= MIN_SQNR_DB else ""
    bound = tolerance * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    # A NaN is no larger than the bound, but it is not within it either.
    return f"the relative difference is above {bound:.3g}" if not found.max_rel <= bound else ""


def _differences(
    names: Sequence[str], wants: Sequence[torch.Tensor], gots: Sequence[torch.Tensor]
) -> dict[str, Difference]:
    if len(wants) != len(gots):
        raise CompareError(f"the number of outputs went from {len(wants)} to {len(gots)}")
    found = {}
    for name, want, got in zip(names, wants, gots, strict=True):
        if want.dtype != got.dtype:
            raise CompareError(f"the dtype of output {name!r} went from {want.dtype} to {got.dtype}")
        try:
            found[name] = difference(want, got)
        except CompareError as error:
            raise CompareError(f"output {name!r}: {error}") from error
    return found
