"""How much the units of a group are worth, by many criteria: one small class each."""

from __future__ import annotations

from shave.passes.prune.importance.activations import (
    ActivationCorrelation,
    Fluctuation,
    Magnitude,
    PercentageOfZeros,
    Variance,
)
from shave.passes.prune.importance.criterion import Criterion
from shave.passes.prune.importance.taylor import Taylor
from shave.passes.prune.importance.weights import (
    L1,
    L2,
    GeometricMedian,
    LayerAdaptive,
    NormScale,
    Random,
    WeightCorrelation,
)

CRITERIA: dict[str, type[Criterion]] = {
    "l1": L1,
    "l2": L2,
    "fpgm": GeometricMedian,
    "bn-scale": NormScale,
    "lamp": LayerAdaptive,
    "weight-correlation": WeightCorrelation,
    "taylor": Taylor,
    "variance": Variance,
    "magnitude": Magnitude,
    "apoz": PercentageOfZeros,
    "correlation": ActivationCorrelation,
    "fluctuation": Fluctuation,
    "random": Random,
}
"""Every criterion by the name that it has in pipelines."""
