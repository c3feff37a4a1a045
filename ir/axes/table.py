"""The axis map of each operator: beside the op table, what tells how channels go through it."""

from __future__ import annotations

from shave.ir.axes import contraction, elementwise, indexing, movement, reduction
from shave.ir.axes.relations import AxisMap
from shave.ir.ops import OPS, Trait

AXIS_MAPS: dict[str, AxisMap] = {
    **{name: elementwise.pointwise for name, row in OPS.items() if Trait.ELEMENTWISE in row.traits},
    **elementwise.MAPS,
    **movement.MAPS,
    **contraction.MAPS,
    **reduction.MAPS,
    **indexing.MAPS,
}
"""By name of the operator. One that is not here lets no channel go that reaches it."""
