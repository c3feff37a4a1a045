"""Takes units out of a group without surgery, and lets what stays stand in for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.prune.groups import Channels, Group, Slice
from shave.passes.prune.importance.criterion import matrix
from shave.passes.prune.roles import Role
from shave.passes.prune.statistics import Statistics
from shave.passes.repair.layer import layer_of

_SAME = 1e-5
"""Relative distance up to which weights count as equal."""


@dataclass(frozen=True)
class StandIn:
    """What takes the place of removed units in one activation: ``removed = mix @ kept + constant``.

    Attributes:
        mix: [units, units], float64; rows of removed units, zero elsewhere. Columns of removed units are zero.
        constant: [units, width], float64; rows of removed units, zero elsewhere.
    """

    mix: torch.Tensor
    constant: torch.Tensor


def means(statistics: Statistics, kept: Sequence[int]) -> StandIn:
    """Let every removed unit be its mean."""
    units = len(statistics.mean)
    constant = statistics.mean.clone()
    constant[list(kept)] = 0
    return StandIn(torch.zeros(units, units, dtype=torch.float64), constant)


def twins(statistics: Statistics, kept: Sequence[int]) -> StandIn:
    """Let every removed unit be a multiple of the kept unit it correlates with most, plus a constant."""
    covariance, mean = statistics.covariance, statistics.mean
    staying = torch.tensor(list(kept))
    removed = _others(len(mean), kept)
    variance = covariance.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    correlation = covariance[removed][:, staying].abs() / variance[staying].sqrt()
    twin = staying[correlation.argmax(1)]
    factor = covariance[removed, twin] / variance[twin]
    mix = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    mix[removed, twin] = factor
    constant = torch.zeros_like(mean)
    constant[removed] = mean[removed] - factor[:, None] * mean[twin]
    return StandIn(mix, constant)


def duplicates(program: Program, group: Group, kept: Sequence[int], channels: Channels) -> StandIn:
    """Let every removed unit whose weights are those of a kept one be that unit; it takes no data."""
    own = [each for each in group.slices if each.role is not Role.CONSUMES]
    rows = torch.cat([matrix(program, each) for each in own], 1)
    staying, removed = torch.tensor(list(kept)), _others(group.units, kept)
    distance = torch.cdist(rows[removed], rows[staying])
    nearest = distance.min(1)
    same = nearest.values <= _SAME * rows[removed].norm(dim=1)
    mix = torch.zeros(group.units, group.units, dtype=torch.float64)
    mix[removed[same], staying[nearest.indices[same]]] = 1.0
    return StandIn(mix, torch.zeros(channels.index.shape, dtype=torch.float64))


def compensate(
    program: Program, rewriter: Rewriter, channels: Channels, readers: Sequence[fx.Node], stand_in: StandIn
) -> int:
    """Put what stands in for removed units into the weights and biases of the layers that consume them.

    It is exact where the constants hold, but at borders that a convolution pads with zeros.

    Returns:
        How many layers were changed: those that are no convolution or linear layer, or mix within groups, are not.
    """
    changed = 0
    index = torch.from_numpy(channels.index)
    for reader in readers:
        layer = layer_of(program, reader)
        if layer is None or layer.groups > 1 or layer.source is not channels.node or layer.axis != channels.axis:
            continue
        matrix = layer.matrix(program)[0]
        size = int(channels.node.meta["val"].shape[channels.axis])
        inputs = matrix[:-1].reshape(size, -1, matrix.shape[1])  # [channels, kernel, outputs]
        shift = torch.einsum("c,ckn->n", _spread(stand_in.constant, index, size), inputs)
        mixed = inputs.clone()
        for unit, twin in stand_in.mix.nonzero().tolist():
            mixed[index[twin]] += stand_in.mix[unit, twin] * inputs[index[unit]]
        new = torch.cat([mixed.reshape(-1, matrix.shape[1]), (matrix[-1] + shift)[None]])
        layer.set_matrix(program, rewriter, new[None])
        changed += 1
    return changed


def ablate(
    program: Program, group: Group, kept: Sequence[int], statistics: Sequence[Statistics] = (), by: str = "ablate"
) -> Program:
    """Copy a program in which the removed units of a group reach nothing, but for their mean where that is known.

    Args:
        program: Stays as it is; its weights are unpacked, see :mod:`shave.passes.prune.plain_weights`.
        group: One of its groups.
        kept: Units that stay.
        statistics: Of the group; empty if removed units shall count as zero.
        by: Who asks.
    """
    copy = program.clone()
    nodes = {node.name: node for node in copy.graph.nodes}
    removed = _others(group.units, kept).numpy()
    with copy.rewrite(by=by) as rewriter:
        for each in statistics:
            channels = replace(each.channels, node=nodes[each.channels.node.name])
            readers = [nodes[reader.name] for reader in each.readers]
            compensate(copy, rewriter, channels, readers, means(each, kept))
    with copy.rewrite(by=by) as rewriter:
        for part in group.slices:
            if part.role is Role.CONSUMES:
                _zero(copy, rewriter, part, nodes[part.reader.name], removed)
    return copy


def _zero(program: Program, rewriter: Rewriter, part: Slice, reader: fx.Node, removed: np.ndarray) -> None:
    """Zero what reads removed units, in the weight that stands where the slice's does."""
    weight = reader.all_input_nodes[part.reader.all_input_nodes.index(part.weight)]
    tensor = program.weight(weight).detach().clone()
    tensor.index_fill_(part.axis, torch.from_numpy(part.index[removed].reshape(-1)), 0)
    rewriter.set_weight(reader, weight, tensor)


def _spread(values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Put the values [units, width] at their positions along an axis."""
    spread = torch.zeros(size, dtype=torch.float64)
    spread[index.reshape(-1)] = values.reshape(-1)
    return spread


def _others(units: int, kept: Sequence[int]) -> torch.Tensor:
    """The units that go."""
    staying = set(kept)
    return torch.tensor([unit for unit in range(units) if unit not in staying], dtype=torch.int64)
