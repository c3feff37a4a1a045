"""The cut: channels are taken out of weights, and the constants of the graph follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shave.ir.program import Program


def cut(program: Program, keep: Mapping[str, Sequence[int]], by: str) -> None:
    """Cut several groups at once, in place.

    Args:
        program: What to cut; clones keep their weights.
        keep: For each group to cut, by name, the units that stay (sorted).
        by: The pass that does it.

    Raises:
        PipelineError: A name is not that of a group (the nearest are offered), the group may not be cut, or the units
            are not some of the group's.
    """
    raise NotImplementedError
