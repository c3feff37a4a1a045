"""What the units of groups give on calibration data, gathered batch by batch: memory does not grow with the samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.program import Program
from shave.passes.prune.groups import Channels, Group
from shave.passes.prune.roles import Role
from shave.passes.statistics import Watcher, watch


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one activation that consumers of a group read.

    Attributes:
        channels: Where the units lie.
        readers: The calls that consume it.
        mean: [units, width], float64, over samples and positions; so are the next three.
        variance: [units, width].
        magnitude: Mean of the absolute value, [units, width].
        active: Share of values that are not zero, [units, width].
        covariance: [units, units], float64; empty unless asked for.
    """

    channels: Channels
    readers: tuple[fx.Node, ...]
    mean: torch.Tensor
    variance: torch.Tensor
    magnitude: torch.Tensor
    active: torch.Tensor
    covariance: torch.Tensor


def consumed(group: Group) -> list[tuple[Channels, tuple[fx.Node, ...]]]:
    """The activations of a group that calls with weights consume, each with these calls."""
    readers = [each.reader for each in group.slices if each.role is Role.CONSUMES]
    found = []
    for channels in group.values:
        reading = tuple(dict.fromkeys(reader for reader in readers if channels.node in reader.all_input_nodes))
        if reading:
            found.append((channels, reading))
    return found


def gather(
    program: Program, groups: Sequence[Group], batches: Iterable[tuple[torch.Tensor, ...]], *, covariance: bool = False
) -> dict[str, list[Statistics]]:
    """Run a program on calibration data and gather statistics of what consumers read, by name of the group.

    Args:
        program: The program of the groups.
        groups: Whose units to watch.
        batches: Inputs.
        covariance: Whether to gather covariances, too; this takes units^2 operations per value.
    """
    sums = {
        group.name: [_Sums(channels, readers, covariance) for channels, readers in consumed(group)] for group in groups
    }
    watched: dict[fx.Node, list[Watcher]] = {}
    for each in (each for of_group in sums.values() for each in of_group):
        watched.setdefault(each.channels.node, []).append(each.add)
    watch(program, watched, batches)
    return {name: [each.statistics() for each in of_group] for name, of_group in sums.items()}


class _Sums:
    """Running sums of one activation."""

    def __init__(self, channels: Channels, readers: tuple[fx.Node, ...], covariance: bool) -> None:
        self.channels = channels
        self.readers = readers
        self.count = 0
        shape = channels.index.shape
        self.value, self.square, self.magnitude, self.active = torch.zeros(4, *shape, dtype=torch.float64)
        self.products = torch.zeros((shape[0], shape[0]) if covariance else (0, 0), dtype=torch.float64)

    def add(self, value: torch.Tensor) -> None:
        units, width = self.channels.index.shape
        index = torch.from_numpy(self.channels.index).reshape(-1)
        rows = value.movedim(self.channels.axis, 0)[index].reshape(units, width, -1).double()
        self.count += rows.shape[2]
        self.value += rows.sum(2)
        self.square += rows.square().sum(2)
        self.magnitude += rows.abs().sum(2)
        self.active += (rows != 0).sum(2)
        if self.products.numel():
            flat = rows.reshape(units, -1)
            self.products += flat @ flat.T

    def statistics(self) -> Statistics:
        count = max(self.count, 1)
        mean = self.value / count
        variance = (self.square / count - mean.square()).clamp_min(0)
        covariance = self.products / (count * mean.shape[1])
        if covariance.numel():
            centre = mean.mean(1)
            covariance = covariance - torch.outer(centre, centre)
        return Statistics(
            self.channels, self.readers, mean, variance, self.magnitude / count, self.active / count, covariance
        )
