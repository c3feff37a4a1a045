"""Unpacks weights that a file keeps in another form, so that they can be compared, cut and fitted."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.ops import op_name
from shave.ir.program import Program, attribute
from shave.ir.rewrite import Rewriter

_QUANTIZED = "quantized_decomposed."


def unpack(program: Program, by: str) -> list[fx.Node]:
    """Compute, once and in place, what layers take for weights and what follows from weights alone.

    Among them are weights that are kept as integers behind a dequantize.

    Returns:
        The new weights.

    Raises:
        PipelineError: Activations are quantized, so that the integers are there to be computed with.
    """
    constant: set[fx.Node] = set()
    for node in program.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and inputs and constant.issuperset(inputs)):
            constant.add(node)
        elif node.op == "call_function" and op_name(node).startswith(f"{_QUANTIZED}quantize"):
            raise PipelineError(
                f"{by} works on float activations, but {node.name} quantizes them: put it before quantize"
            )
    made = []
    with program.rewrite(by=by) as rewriter:
        for node in program.calls:
            read = any(user not in constant for user in node.users)
            if node in constant and read and isinstance(node.meta.get("val"), torch.Tensor):
                made.append(_unpack(program, rewriter, node))
    return made


def _unpack(program: Program, rewriter: Rewriter, node: fx.Node) -> fx.Node:
    values: dict[fx.Node, Any] = {}
    order: list[fx.Node] = []
    _collect(node, order)
    for each in order:
        if each.op == "get_attr":
            values[each] = attribute(program.module, str(each.target))
            continue
        args: Any = fx.map_arg(each.args, values.__getitem__)
        kwargs: Any = fx.map_arg(each.kwargs, values.__getitem__)
        assert callable(each.target)
        with torch.no_grad():
            values[each] = each.target(*args, **kwargs)
    value = values[node]
    assert isinstance(value, torch.Tensor)
    name = next(str(each.target) for each in order if each.op == "get_attr")
    tensor = value.detach().clone().contiguous()
    fresh = rewriter.weight(name, torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor, sources=[node])
    rewriter.replace(node, fresh)
    return fresh


def _collect(node: fx.Node, order: list[fx.Node]) -> None:
    """What a node is computed from, in order, itself last."""
    for each in node.all_input_nodes:
        if each not in order:
            _collect(each, order)
    order.append(node)
