"""Takes units out of a group without surgery, and lets what stays stand in for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.prune.groups import Group, Role
from shave.passes.prune.repair.layer import Layer, layer_of
from shave.passes.prune.statistics import Statistics


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


def compensate(program: Program, rewriter: Rewriter, statistics: Statistics, stand_in: StandIn) -> int:
    """Put what stands in for removed units into the weights and biases of the layers that consume them.

    It is exact where the constants hold, but at borders that a convolution pads with zeros.

    Returns:
        How many layers were changed: those that are no convolution or linear layer, or mix within groups, are not.
    """
    channels, changed = statistics.channels, 0
    index = torch.from_numpy(channels.index)
    for reader in statistics.readers:
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
        program: Stays as it is.
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
            here = _moved(each, nodes)
            compensate(copy, rewriter, here, means(each, kept))
        for part in group.slices:
            if part.role is not Role.CONSUMES:
                continue
            reader = nodes[part.reader.name]
            for weight in reader.all_input_nodes:
                if weight.op == "get_attr" and _stems_from(weight, part.weight):
                    tensor = copy.weight(weight).detach().clone()
                    tensor.index_fill_(part.axis, torch.from_numpy(part.index[removed].reshape(-1)), 0)
                    rewriter.set_weight(reader, weight, tensor)
    return copy
