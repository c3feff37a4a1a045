"""How much of a program shall stay: budgets as users write them, and what a group allows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from shave.passes.prune.groups import Group

_PERCENT = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*%")


@dataclass(frozen=True)
class Budget:
    """An upper limit on a cost.

    Attributes:
        cost: ``macs``, ``params`` or ``size`` (bytes of weights).
        text: The limit as the user wrote it.
        share: Of what the program costs now, in (0, 1); None if the limit is absolute.
        absolute: In multiply-accumulates, parameters or bytes; None if the limit is a share.
    """

    cost: str
    text: str
    share: float | None
    absolute: float | None

    def limit(self, now: float) -> float:
        """The limit as a number, for a program that costs ``now``."""
        return self.share * now if self.share is not None else float(self.absolute or 0)


def budget(cost: str, written: float | str) -> Budget:
    """Read a limit: a share to keep (``0.5``, ``50%``), or a number of more than one (``60e6``).

    Raises:
        ValueError: It is neither.
    """
    text = f"{cost}={written}"
    if isinstance(written, str):
        percent = _PERCENT.fullmatch(written.strip())
        if percent is None:
            raise ValueError(f"{text} is neither a share to keep (0.5, 50%) nor a number ({cost}=60e6)")
        value = float(percent[1]) / 100
        if not 0 < value <= 1:
            raise ValueError(f"{text}: a share to keep is more than 0% and at most 100%")
        return Budget(cost, text, value, None)
    if not (written > 0 and math.isfinite(written)):
        raise ValueError(f"{text}: what is to be kept is more than 0")
    return Budget(cost, text, written, None) if written <= 1 else Budget(cost, text, None, written)


@dataclass(frozen=True)
class Room:
    """The numbers of units that a group may be cut to.

    Attributes:
        units: How many there are.
        least: The fewest that may stay.
        quantum: Numbers of units are multiples of this, but for ``units`` itself.
    """

    units: int
    least: int
    quantum: int

    def up(self, wanted: float) -> int:
        """The least allowed number of at least ``wanted``."""
        steps = math.ceil(max(wanted, self.least) / self.quantum - 1e-9)
        return min(self.units, max(1, steps) * self.quantum)

    def nearest(self, wanted: float) -> int:
        """The allowed number nearest to ``wanted``; of two, the larger."""
        above = self.up(wanted)
        below = (above - 1) // self.quantum * self.quantum
        return below if below >= self.up(self.least) and wanted - below < above - wanted else above

    def numbers(self) -> list[int]:
        """All allowed numbers, largest first."""
        first = (self.units - 1) // self.quantum * self.quantum
        return [self.units, *range(first, self.up(self.least) - 1, -self.quantum)]


@dataclass(frozen=True)
class Multiple:
    """What numbers of channels are multiples of.

    Attributes:
        asked: What a user asks for, if anything.
        lanes: Channels in one vector of the target; None where no target is given.
    """

    asked: int | None
    lanes: int | None

    def of(self, units: int) -> int:
        """For a group of so many channels.

        Kernels keep two vectors of output channels in registers for each pixel that they load: an odd vector at the end
        costs nearly as much as two. In narrow groups steps of two vectors would be too coarse.
        """
        if self.asked is not None or self.lanes is None:
            return self.asked or 1
        return self.lanes * (2 if units >= 8 * self.lanes else 1)


def room(group: Group, multiple: Multiple, floor: float, originally: int) -> Room:
    """Tell what a group allows.

    Args:
        group: The group.
        multiple: What numbers of channels are multiples of; heads and groups of convolutions are counted one by one.
        floor: The fewest units that stay: a share of those that there were originally if less than 1, else a number.
        originally: Units before the first of several cuts.
    """
    quantum = multiple.of(originally) if group.kind in ("channels", "head dims") else 1
    least = floor * originally if floor < 1 else floor
    return Room(group.units, min(group.units, max(1, math.ceil(least - 1e-9))), min(quantum, group.units))


def best(scores: np.ndarray, number: int) -> list[int]:
    """The units of the highest scores, ascending; of equal scores the first ones.

    Args:
        scores: [units].
        number: How many.
    """
    return sorted(np.argsort(-scores, kind="stable")[:number].tolist())
