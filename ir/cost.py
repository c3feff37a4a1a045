"""What a program costs: parameters, multiply-accumulates, bytes, peak of live activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.ops import OPS, op_name
from shave.ir.program import Program
from shave.ir.shapes import hints


@dataclass(frozen=True)
class Cost:
    """Static cost at the traced example's sizes.

    Attributes:
        parameters: Elements of all weights; a shared weight counts once.
        macs: Multiply-accumulates of convolutions, matrix products and attention.
        weight_bytes: Bytes of all weights in their own dtypes.
        peak_activation_bytes: Largest sum of live intermediate tensors, inputs and outputs included, when every
            operator runs by itself and views share nothing.
        macs_by_node: Multiply-accumulates of each node that has any.
    """

    parameters: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int
    macs_by_node: dict[str, int]


def cost(program: Program) -> Cost:
    """Count; see :class:`Cost`."""
    by_node = {}
    for node in program.calls:
        row = OPS.get(op_name(node))
        if row is not None and row.macs is not None:
            by_node[node.name] = row.macs(node)
    weights = [tensor for _, tensor in program.weights()]
    return Cost(
        parameters=sum(tensor.numel() for tensor in weights),
        macs=sum(by_node.values()),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        peak_activation_bytes=_peak(program),
        macs_by_node=by_node,
    )


def _peak(program: Program) -> int:
    """Walk in execution order; a value lives from its node to its last reader."""
    order = {node: position for position, node in enumerate(program.graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=order[node]) for node in order}
    dying: dict[int, list[fx.Node]] = {}
    live = peak = 0
    for node, position in order.items():
        if node.op in ("placeholder", "call_function"):
            live += _bytes(node.meta.get("val"))
            dying.setdefault(last_use[node], []).append(node)
        peak = max(peak, live)
        live -= sum(_bytes(dead.meta.get("val")) for dead in dying.pop(position, []))
    return peak


def _bytes(value: Any) -> int:
    """Bytes of a tensor; of a tuple nothing, as its elements are counted where they are taken out."""
    if not isinstance(value, torch.Tensor):
        return 0
    return math.prod(hints(value.shape)) * value.element_size()
