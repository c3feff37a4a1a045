"""The largest magnitude, of each channel or of all values."""

from __future__ import annotations

import torch


class ChannelMaxima:
    """Keeps the largest finite magnitude of each channel.

    Args:
        axis: The channels of the values.

    Attributes:
        largest: [channels], float64; empty as long as nothing was seen.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self.largest = torch.zeros(0, dtype=torch.float64)

    def observe(self, values: torch.Tensor) -> None:
        """Take in a tensor that has the channels; an empty one changes nothing."""
        rows = values.detach().movedim(self._axis, 0).flatten(1).double().abs()
        rows = torch.where(rows.isfinite(), rows, 0.0)
        if rows.numel():
            found = rows.amax(1)
            self.largest = torch.maximum(self.largest, found) if len(self.largest) else found


class Extremes:
    """Keeps the largest magnitude of all values, infinities included.

    Attributes:
        largest: 0 as long as nothing was seen.
    """

    def __init__(self) -> None:
        self.largest = 0.0

    def observe(self, values: torch.Tensor) -> None:
        """Take in a tensor; an empty one changes nothing."""
        if values.numel():
            self.largest = max(self.largest, float(values.detach().abs().max()))
