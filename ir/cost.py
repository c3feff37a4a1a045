"""What a program costs: parameters, multiply-accumulates, bytes, peak of live activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from shave.ir.ops import OPS, argument, op_name
from shave.ir.program import Program
from shave.ir.shapes import hints


@dataclass(frozen=True)
class Cost:
    """Static cost for one sample.

    Attributes:
        parameters: Elements of all weights; a shared weight counts once, and packed codes as many as they stand for.
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


def cost(program: Program, sizes: Mapping[str, int] | None = None) -> Cost:
    """Count; see :class:`Cost`.

    Args:
        program: What to count.
        sizes: Sizes of dynamic dimensions by name. By default those along the first axis of an input (the batch) count
            as one and the others as in the traced example.
    """
    chosen = sizes or {}
    known = one_sample(program) | {s: chosen[name] for s, name in program.dim_names.items() if name in chosen}

    def shape(value: object) -> tuple[int, ...]:
        return hints(cast(fx.Node, value).meta["val"].shape, known)

    by_node = {}
    for node in program.calls:
        row = OPS.get(op_name(node))
        if row is not None and row.macs is not None:
            by_node[node.name] = row.macs(node, shape)
    weights = [tensor for _, tensor in program.weights()]
    return Cost(
        parameters=sum(tensor.numel() for tensor in weights) + _packed(program),
        macs=sum(by_node.values()),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        peak_activation_bytes=_peak(program, known),
        macs_by_node=by_node,
    )


def one_sample(program: Program) -> dict[str, int]:
    """Sizes of dynamic dimensions by symbol, those along the first axis of an input as one: as costs are counted."""
    first = {spec.shape[0] for spec in program.signature.inputs if spec.shape}
    return {symbol: 1 for symbol, name in program.dim_names.items() if name in first}


def _packed(program: Program) -> int:
    """Elements that lie in packed codes beyond the bytes of these."""
    stood_for = {
        node.args[0]: math.prod(argument(node, "shape")) for node in program.calls if op_name(node) == "shave.lookup"
    }
    return sum(
        elements - program.weight(codes).numel()
        for codes, elements in stood_for.items()
        if isinstance(codes, fx.Node) and codes.op == "get_attr"
    )


def _peak(program: Program, known: Mapping[str, int]) -> int:
    """Walk in execution order; a value lives from its node to its last reader."""
    order = {node: position for position, node in enumerate(program.graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=order[node]) for node in order}
    dying: dict[int, list[fx.Node]] = {}
    live = peak = 0
    for node, position in order.items():
        if node.op in ("placeholder", "call_function"):
            live += _bytes(node.meta.get("val"), known)
            dying.setdefault(last_use[node], []).append(node)
        peak = max(peak, live)
        live -= sum(_bytes(dead.meta.get("val"), known) for dead in dying.pop(position, []))
    return peak


def _bytes(value: Any, known: Mapping[str, int]) -> int:
    """Bytes of a tensor; of a tuple nothing, as its elements are counted where they are taken out."""
    if not isinstance(value, torch.Tensor):
        return 0
    return math.prod(hints(value.shape, known)) * value.element_size()
