"""What an observer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from shave.passes.quantize.affine import Scheme


class Observer(ABC):
    """Sees an activation batch by batch and tells which range of it to map onto integers.

    Its memory does not grow with what it sees. Values that are not finite are left out: whatever the range, they are
    clipped to its ends.

    Attributes:
        name: As written in pipelines.
    """

    name: ClassVar[str]

    def observe(self, values: torch.Tensor) -> None:
        """Take in a tensor of any shape and floating-point or integer dtype; an empty one changes nothing."""
        flat = values.detach().reshape(-1)
        flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
        if flat.numel():
            low, high = (float(end) for end in torch.aminmax(flat))
            if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN fails, too
                flat = flat[flat.isfinite()]
                if not flat.numel():
                    return
                low, high = (float(end) for end in torch.aminmax(flat))
            self._take(flat, low, high)

    @abstractmethod
    def _take(self, values: torch.Tensor, low: float, high: float) -> None:
        """Take in finite values, flat, one at least, and their extremes."""

    @abstractmethod
    def range(self, scheme: Scheme) -> tuple[float, float]:
        """The range to map onto the integers of ``scheme``; (0, 0) if nothing was seen."""
