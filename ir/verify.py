"""The rules of the representation, checked after every pass."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from shave.ir.dtypes import dtype_name
from shave.ir.errors import VerifyError
from shave.ir.program import Program, attribute
from shave.ir.rewrite import fake_mode, infer
from shave.ir.shapes import hints
from shave.ir.text import node_line

_WINDOW = 5


def verify(program: Program, *, full: bool = False) -> None:
    """Check a program.

    Always: each node reads only earlier nodes; placeholders, weights, calls and the output come in that order; every
    node has a value; weights exist with the shape and dtype that their nodes claim; inputs and outputs fit the
    signature. With ``full``, each call's value is inferred anew from its arguments and compared.

    Raises:
        VerifyError: What is wrong, and the ten nodes around the one at fault.
    """
    seen: set[fx.Node] = set()
    for node in program.graph.nodes:
        for used in node.all_input_nodes:
            if used not in seen:
                raise _error(program, node, f"reads {used.name} before it is computed")
        seen.add(node)
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            raise _error(program, node, f"has the kind {node.op}, which a program does not have")
        if node.op == "get_attr":
            _check_weight(program, node)
        elif node.op != "output" and "val" not in node.meta:
            raise _error(program, node, "has no value in its meta data")
        if node.op == "call_function" and not _is_operator(node.target):
            raise _error(program, node, f"calls {node.target}, which is no operator")
    _check_signature(program)
    if full:
        _check_values(program)


def _is_operator(target: Any) -> bool:
    if isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return True
    return target is operator.getitem or getattr(target, "__module__", "") in ("_operator", "math", "torch")


def _check_weight(program: Program, node: fx.Node) -> None:
    try:
        value = attribute(program.module, str(node.target))
    except AttributeError:
        raise _error(program, node, f"reads the weight {node.target}, which the module lacks") from None
    if isinstance(value, torch.Tensor):
        claimed = node.meta.get("val")
        if not isinstance(claimed, torch.Tensor):
            raise _error(program, node, "has no value in its meta data")
        if tuple(value.shape) != tuple(claimed.shape) or value.dtype != claimed.dtype:
            raise _error(program, node, f"claims {_describe(claimed)}, but the weight is {_describe(value)}")


def _check_signature(program: Program) -> None:
    signature = program.signature
    for what, nodes, specs in (
        ("input", program.inputs, signature.inputs),
        ("output", program.outputs, signature.outputs),
    ):
        if len(nodes) != len(specs):
            raise VerifyError(f"the graph has {len(nodes)} {what}s, the signature {len(specs)}")
        for node, spec in zip(nodes, specs, strict=True):
            if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
                raise VerifyError(f"{what} {spec.name!r} is not a tensor")
            value = node.meta["val"]
            fits = len(value.shape) == len(spec.shape) and all(
                isinstance(want, str) or (not isinstance(size, torch.SymInt) and size == want)
                for size, want in zip(value.shape, spec.shape, strict=True)
            )
            if not fits or dtype_name(value.dtype) != spec.dtype:
                raise _error(program, node, f"is {what} {spec}, but its value is {_describe(value)}")


def _check_values(program: Program) -> None:
    mode = fake_mode(program)
    for node in program.calls:
        try:
            fresh = infer(node, mode)
        except Exception as error:
            raise _error(program, node, f"cannot be inferred: {error}") from error
        if not _same(node.meta["val"], fresh):
            raise _error(program, node, f"claims {_describe(node.meta['val'])}, but gives {_describe(fresh)}")


def _same(claimed: Any, fresh: Any) -> bool:
    if isinstance(claimed, (tuple, list)):
        return (
            isinstance(fresh, (tuple, list))
            and len(claimed) == len(fresh)
            and all(_same(c, f) for c, f in zip(claimed, fresh, strict=True))
        )
    if isinstance(claimed, torch.Tensor):
        if not isinstance(fresh, torch.Tensor) or claimed.dtype != fresh.dtype or claimed.dim() != fresh.dim():
            return False
        # A size that depends on data gets a new symbol at each inference; its hint is the same.
        return hints(claimed.shape) == hints(fresh.shape)
    return type(claimed) is type(fresh)


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{dtype_name(value.dtype)}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_describe, value))})"
    return repr(value)


def _error(program: Program, node: fx.Node, problem: str) -> VerifyError:
    nodes = list(program.graph.nodes)
    where = nodes.index(node)
    lines = [
        ("> " if other is node else "  ") + node_line(program, other)
        for other in nodes[max(0, where - _WINDOW) : where + _WINDOW + 1]
    ]
    return VerifyError(f"node {node.name} {problem}\n" + "\n".join(lines))
