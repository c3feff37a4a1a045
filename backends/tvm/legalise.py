"""Bring a graph to the operators that have emitters: fold what is constant, decompose what is composite.

A call without an emitter is traced through torch's own decompositions, under the program's FakeTensor mode, and
replaced by what it decomposes into; a call all of whose tensors are weights is computed now.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx
from torch._decomp import core_aten_decompositions
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from shave.backends.tvm.compose import compose
from shave.backends.tvm.emit.registry import emitter_of
from shave.backends.tvm.integer_products import as_real_products
from shave.backends.tvm.integers import is_multiplied, use_integers
from shave.backends.tvm.recurrent import DECOMPOSITIONS
from shave.backends.tvm.small_form import is_decoding, keep_small_form
from shave.ir.ops import Trait, has_trait, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter, fake_mode, is_impure
from shave.ir.shapes import hints

_GROWTH = 4
_SMALL = 1 << 20
"""A folded value may be this many times larger than what it is computed from, or have this many bytes: an expanded
weight is not stored, a table of relative positions is. A decoded one may be any size: its small form is stored."""
_ROUNDS = 8
_OF_SHAPE_ALONE = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
"""Operators that ask their first argument for its shape and dtype, never for its values."""


def legalise(program: Program, integers: bool = True) -> Program:
    """Clone a program and rewrite the clone; calls that nothing can be done about stay as they are.

    Args:
        program: What to rewrite.
        integers: Whether kernels multiply integers; else the weights of quantized operators become floats.
    """
    program = program.clone()
    with program.rewrite("legalise") as rewriter:
        _drop_checks(program, rewriter)
        compose(program, rewriter)
        if integers:
            as_real_products(program, rewriter)
            use_integers(program, rewriter)
        for _ in range(_ROUNDS):
            _fold(program, rewriter, integers)
            if not _decompose(program, rewriter):
                break
            rewriter.sweep()
        _fold(program, rewriter, integers)
    return program


def _drop_checks(program: Program, rewriter: Rewriter) -> None:
    """Drop calls that only assert: the signature is checked before each call."""
    for node in reversed(program.calls):
        if is_impure(node) and not node.users:
            rewriter.erase(node)


# Folding


def _fold(program: Program, rewriter: Rewriter, integers: bool) -> None:
    for node in program.calls:
        if not _is_foldable(node) or (integers and is_multiplied(node)):
            continue
        with torch.no_grad():
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _known(program, n))
            value = cast(Callable[..., Any], node.target)(*args, **kwargs)
        if isinstance(value, torch.Tensor):
            source = next((str(n.target) for n in node.all_input_nodes if n.op == "get_attr"), node.name)
            name = f"{source}_{op_name(node).split('.')[-1].lstrip('_')}"
            folded = rewriter.weight(name, value.contiguous(), sources=[node])
            keep_small_form(program, node, folded)
            rewriter.replace(node, folded)


def _known(program: Program, node: fx.Node) -> torch.Tensor:
    """A weight, or a tensor that stands for one of which only the shape matters."""
    if node.op == "get_attr":
        return program.weight(node)
    value = node.meta["val"]
    return torch.empty(hints(value.shape), dtype=value.dtype)


def _is_foldable(node: fx.Node) -> bool:
    """Whether a call has one tensor as result and depends on weights, numbers and nothing else."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or node.target is operator.getitem or not node.users:
        return False
    if has_trait(node, Trait.RANDOM) or not isinstance(node.target, torch._ops.OpOverload):
        return False
    by_shape = op_name(node).removeprefix("aten.") in _OF_SHAPE_ALONE
    inputs = node.all_input_nodes[1:] if by_shape else node.all_input_nodes
    if any(n.op != "get_attr" or not isinstance(n.meta.get("val"), torch.Tensor) for n in inputs):
        return False
    if any(isinstance(size, torch.SymInt) for size in value.shape):
        return False
    if is_decoding(node):
        return True
    read = sum(n.meta["val"].numel() * n.meta["val"].element_size() for n in inputs)
    made = torch.Size(hints(value.shape)).numel() * value.element_size()
    return bool(made <= max(_GROWTH * read, _SMALL))


# Decomposition


def _decompose(program: Program, rewriter: Rewriter) -> bool:
    """Replace each call without an emitter by its decomposition, one level of torch's table; False if none was."""
    table = {
        overload: decomposition
        for overload, decomposition in core_aten_decompositions().items()  # type: ignore[no-untyped-call]
        if emitter_of(_Named(overload)) is None  # type: ignore[arg-type]
    }
    changed, mode = False, fake_mode(program)
    for node in program.calls:
        if emitter_of(node) is not None or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if _is_size(node):
            continue
        changed |= _expand(rewriter, node, table, mode)
    return changed


class _Named:
    """Lets an overload be looked up as a call of it would be."""

    def __init__(self, target: Any) -> None:
        self.target = target


def _expand(rewriter: Rewriter, node: fx.Node, table: dict[Any, Any], mode: FakeTensorMode) -> bool:
    inputs = node.all_input_nodes

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: given[n])
        return DECOMPOSITIONS.get(op_name(node), cast(Callable[..., Any], node.target))(*args, **kwargs)  # type: ignore[no-untyped-call]

    try:
        with mode, torch.no_grad():
            tracer = make_fx(call, decomposition_table=table, tracing_mode="real")
            traced = tracer(*[n.meta["val"] for n in inputs])
    except (RuntimeError, NotImplementedError):  # no decomposition, or one that depends on data
        return False
    calls = [n for n in traced.graph.nodes if n.op == "call_function"]
    if any(n.op == "get_attr" for n in traced.graph.nodes) or any(n.target is node.target for n in calls):
        return False
    made: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True))
    if any(_writes(n) and _functional(n) is None for n in calls):
        return False
    for inner in calls:
        args, kwargs = fx.map_arg((inner.args, inner.kwargs), lambda n: made[n])
        target = _functional(inner) if _writes(inner) else inner.target
        made[inner] = rewriter.call(cast(Callable[..., Any], target), args, kwargs, before=node, sources=[node])
        if _writes(inner):
            made[cast(fx.Node, inner.args[0])] = made[inner]
    results = fx.map_arg(traced.graph.output_node().args[0], lambda n: made[n])
    if isinstance(results, (tuple, list)):
        for item in list(node.users):
            if item.target is operator.getitem:
                rewriter.replace(item, results[cast(int, item.args[1])])
    else:
        rewriter.replace(node, cast(fx.Node, results))
    return True


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _functional(node: fx.Node) -> Any:
    """The operator that computes what an in-place one writes (``relu`` for ``relu_``).

    None where writing matters beyond that: into an argument, a view, or something that has views.
    """
    written = node.args[0]
    if not isinstance(written, fx.Node) or written.op == "placeholder":
        return None
    if any(_is_view(n) for n in (written, *written.users)):
        return None
    packet = getattr(torch.ops.aten, op_name(node).removeprefix("aten.").removesuffix("_"), None)
    return getattr(packet, cast(torch._ops.OpOverload, node.target)._overloadname, None)


def _is_view(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view


def _is_size(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))
