"""The stages a program goes through, and the check that a pipeline keeps their order."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Flag
from typing import TYPE_CHECKING

from shave.ir.errors import PipelineError

if TYPE_CHECKING:
    from shave.ir.program import Program
    from shave.passes.base import Pass


class Stage(Flag):
    """How far a program has come. A pass accepts a union of stages: ``Stage.FLOAT | Stage.QUANTIZED``."""

    FLOAT = 1
    """Ordinary operators on floating-point (and index) tensors."""
    QUANTIZED = 2
    """Some values go through ``quantized_decomposed.quantize_*`` and ``dequantize_*``, or ``shave.lookup``."""
    LOWERED = 4
    """Some operators are shave's own (namespace ``shave``) and stand for a particular kernel."""
    ANY = 7

    def __str__(self) -> str:
        return " or ".join(str(stage.name).lower() for stage in _ORDER if stage in self)


_ORDER = (Stage.FLOAT, Stage.QUANTIZED, Stage.LOWERED)


def stage_of(program: Program) -> Stage:
    """Tell a program's stage from its operators: the furthest that any of them belongs to."""
    from shave.ir.ops import Trait, has_trait, op_name

    storing = {node for node in program.calls if has_trait(node, Trait.OPAQUE)}
    if any(op_name(node).startswith("shave.") for node in program.calls if node not in storing):
        return Stage.LOWERED
    return Stage.QUANTIZED if storing else Stage.FLOAT


def is_beyond(stage: Stage, limit: Stage) -> bool:
    """Whether one stage comes after another."""
    return _ORDER.index(stage) > _ORDER.index(limit)


def check_stages(passes: Sequence[Pass], start: Stage) -> list[Stage]:
    """Check that each pass gets a program of a stage that it takes. Passes are never re-sorted.

    Args:
        passes: In the order in which they are to run.
        start: Stage of the program that the first pass is given.

    Returns:
        The stage before each pass, and behind the last: one more than there are passes.

    Raises:
        PipelineError: Names the first pass out of place, and what brought the program where it is.
    """
    stages = [start]
    cause = "the program given"
    for position, instance in enumerate(passes, 1):
        stage = stages[-1]
        if stage not in instance.requires:
            raise PipelineError(
                f"pass {position}, {instance.name}, takes a {instance.requires} program, but after {cause} it is "
                f"{stage}; put {instance.name} earlier"
            )
        if instance.ensures is not None and instance.ensures != stage:
            stage, cause = instance.ensures, instance.name
        stages.append(stage)
    return stages
