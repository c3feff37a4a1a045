"""Values that are rounded to codes within bounds found in them: bounds, scale and codes are one region."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from shave.backends.tvm.quantized import MeasuredCodes, measured
from shave.backends.tvm.regions import Region


@dataclass(frozen=True)
class MeasuredRegion(Region):
    """From the call that finds scale and zero point to the codes.

    Attributes:
        made: What comes out.
    """

    made: MeasuredCodes | None = None


def find_measured(graph: fx.Graph) -> dict[fx.Node, MeasuredRegion]:
    """The regions of all such values, by the call that finds the scale.

    Args:
        graph: Every node carries its FakeTensor.
    """
    found = filter(None, map(measured, graph.nodes))
    return {made.choice: MeasuredRegion((made.choice, *made.between, made.node), made=made) for made in found}
