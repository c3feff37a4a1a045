"""Programs in torch's own operators, for formats and tools that know no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from shave.ir.errors import UnsupportedError
from shave.ir.lookup import codes_of
from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter, as_trainable
from shave.ir.winograd import restore_weight

aten = torch.ops.aten

_NAMESPACE = "shave."


def standard(program: Program) -> Program:
    """Replace shave's own operators by torch's that compute the same but for rounding.

    ``winograd_conv2d`` becomes ``conv2d`` with the 3x3 weights that its transformed ones stem from; ``lookup`` becomes
    ``index_select`` or ``gather`` with codes of a byte each.

    Returns:
        A clone; the program itself, if it calls none of them.

    Raises:
        UnsupportedError: One of them has no such form; it is named.
    """
    if not any(op_name(node).startswith(_NAMESPACE) for node in program.calls):
        return program
    program = program.clone()
    with program.rewrite(by="standard") as rewriter:
        for node in program.calls:
            if op_name(node) == "shave.winograd_conv2d":
                _restore_convolution(program, rewriter, node)
            elif op_name(node) == "shave.lookup":
                _gather(program, rewriter, node)
            elif op_name(node).startswith(_NAMESPACE):
                raise UnsupportedError(f"operator {op_name(node)} (node {node.name}) has no form in torch's operators")
    return program


def _restore_convolution(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    x, weight, bias, padding, tile = (argument(node, name) for name in ("x", "weight", "bias", "padding", "tile"))
    if weight.op != "get_attr":
        raise UnsupportedError(f"operator {op_name(node)} (node {node.name}): its weight is computed")
    old = program.weight(weight)
    new = as_trainable(restore_weight(old, tile).to(old.dtype), old)
    plain = rewriter.weight(str(weight.target), new, sources=[weight])
    arguments = (x, plain, bias, [1, 1], list(padding))
    rewriter.replace(node, rewriter.call(torch.ops.aten.conv2d.default, arguments, before=node, sources=[node]))
    rewriter.erase(node)


def _gather(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    names = ("codes", "codebook", "bits", "shape", "axis")
    packed, codebook, bits, shape, axis = (argument(node, name) for name in names)
    if packed.op != "get_attr":
        raise UnsupportedError(f"operator {op_name(node)} (node {node.name}): its codes are computed")
    codes = codes_of(program.weight(packed), bits, shape)
    if axis is not None:
        codes = codes.movedim(axis, 0)
    moved = list(codes.shape)
    flat = codes.reshape(-1) if axis is None else codes.flatten(1)

    def call(target: Callable[..., Any], *arguments: Any, **named: Any) -> fx.Node:
        return rewriter.call(target, arguments, named, before=node, sources=[node])

    stored = rewriter.weight(str(packed.target), flat.contiguous(), sources=[packed])
    places = call(aten._to_copy.default, stored, dtype=torch.int64)
    if axis is None:
        values = call(aten.index_select.default, codebook, 0, places)
    else:
        values = call(aten.gather.default, codebook, 1, places)
    whole = call(aten.reshape.default, values, moved)
    if axis:
        whole = call(aten.permute.default, whole, [*range(1, axis + 1), 0, *range(axis + 1, len(shape))])
    rewriter.replace(node, whole)
    rewriter.erase(node)
