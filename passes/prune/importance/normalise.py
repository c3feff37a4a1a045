"""Makes the scores of different groups comparable, so that they can be ranked together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

Normaliser = Literal["none", "mean", "max", "sum", "gaussian"]


def _positive(value: torch.Tensor) -> torch.Tensor:
    return value.clamp_min(torch.finfo(torch.float64).tiny)


_NORMALISERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda scores: scores,
    "mean": lambda scores: scores / _positive(scores.mean()),
    "max": lambda scores: scores / _positive(scores.max()),
    "sum": lambda scores: scores / _positive(scores.sum()),
    "gaussian": lambda scores: (scores - scores.mean()) / _positive(scores.std(correction=0)),
}


def normalise(scores: torch.Tensor, by: Normaliser) -> torch.Tensor:
    """Scale the scores [units] of a group: by its mean, its maximum or its sum, or to mean 0 and deviation 1."""
    return _NORMALISERS[by](scores)
