"""Put operators together again that exporters write out, so that one kernel computes them.

* A product with a constant matrix and the sum with a constant vector behind it are ``linear``.
* Elementwise operators on one tensor are the activation whose values they have. They are not matched by form, of which
  every exporter has its own, but computed: two functions that agree in double precision at thousands of points from
  far left to far right are the same function.
* Mean, difference, mean of squares, root and quotient are ``layer_norm``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx

from shave.ir.ops import Trait, argument, has_trait, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter

_aten = torch.ops.aten

_FAR = torch.logspace(1.5, 4, 50, dtype=torch.float64)
_POINTS = torch.cat((torch.linspace(-30, 30, 6001, dtype=torch.float64), _FAR, -_FAR))
_AGREEMENT = 1e-6
"""Largest difference over 1 + |x|: formulas carry constants that were rounded to single precision."""

_CURVES = ("aten.tanh", "aten.erf", "aten.sigmoid", "aten.softplus")
"""What a written-out activation has at its heart."""

_ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Any, dict[str, Any]]] = {
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), _aten.gelu.default, {"approximate": "tanh"}),
    "gelu": (F.gelu, _aten.gelu.default, {}),
    "silu": (F.silu, _aten.silu.default, {}),
    "mish": (F.mish, _aten.mish.default, {}),
}
"""(values, operator, its keyword arguments)"""


def compose(program: Program, rewriter: Rewriter) -> None:
    """Rewrite every group of operators that stands for one of the composite operators above."""
    for node in program.calls:
        if op_name(node) == "aten.add":
            _linear(program, rewriter, node)
    for node in program.calls:
        if op_name(node) in _CURVES:
            _activation(program, rewriter, node)
    for node in program.calls:
        if op_name(node) == "aten.div":
            _layer_norm(program, rewriter, node)
    rewriter.sweep()


# Products


def _linear(program: Program, rewriter: Rewriter, node: fx.Node) -> None:
    """``x @ W + b`` with constant W [inner, columns] and b [columns]."""
    if argument(node, "alpha") != 1 or not all(isinstance(a, fx.Node) for a in node.args[:2]):
        return
    operands = cast("tuple[fx.Node, fx.Node]", node.args[:2])
    for made, bias in (operands, operands[::-1]):
        if op_name(made) not in ("aten.matmul", "aten.mm") or bias.op != "get_attr" or len(made.users) != 1:
            continue
        x, weight = cast("tuple[fx.Node, fx.Node]", made.args[:2])
        if weight.op != "get_attr" or weight.meta["val"].dim() != 2 or x.meta["val"].dim() < 2:
            continue
        if bias.meta["val"].shape != weight.meta["val"].shape[1:] or bias.meta["val"].dtype != weight.meta["val"].dtype:
            continue
        turned = rewriter.weight(f"{weight.target}_t", program.weight(weight).t().contiguous(), sources=[weight])
        linear = rewriter.call(_aten.linear.default, (x, turned, bias), before=node, sources=[made, node])
        rewriter.replace(node, linear)
        return


# Activations


def _activation(program: Program, rewriter: Rewriter, curve: fx.Node) -> None:
    """The elementwise operators around ``curve``, from one tensor to one tensor."""
    for x in _behind(curve):
        group = _depending_on(x)
        for end in reversed(group):
            inner = _between(x, end, set(group))
            if curve not in inner or any(set(n.users) - inner for n in inner if n is not end):
                continue
            found = _same_function(program, x, [n for n in group if n in inner])
            if found is not None:
                _, operator, kwargs = _ACTIVATIONS[found]
                made = rewriter.call(operator, (x,), kwargs, before=end, sources=[n for n in group if n in inner])
                rewriter.replace(end, made)
                return


def _behind(curve: fx.Node) -> list[fx.Node]:
    """What ``curve`` is computed from by elementwise operators, nearest first; its start is read more than once."""
    found: list[fx.Node] = []
    waiting = [n for n in curve.all_input_nodes if n.op != "get_attr"]
    while waiting and len(found) < 8:
        node = waiting.pop(0)
        if node in found:
            continue
        found.append(node)
        if _is_elementwise(node):
            waiting += [n for n in node.all_input_nodes if n.op != "get_attr"]
    return [node for node in found if len(node.users) > 1 and node.meta["val"].dtype == torch.float32]


def _is_elementwise(node: fx.Node) -> bool:
    return node.op == "call_function" and has_trait(node, Trait.ELEMENTWISE)


def _depending_on(x: fx.Node) -> list[fx.Node]:
    """Elementwise operators on ``x`` and numbers alone, in order."""
    group: dict[fx.Node, None] = {}
    waiting = list(x.users)
    while waiting and len(group) < 24:
        node = waiting.pop(0)
        if node in group or not _is_elementwise(node) or node.meta["val"].shape != x.meta["val"].shape:
            continue
        if all(n is x or n in group or _is_number(n) for n in node.all_input_nodes):
            group[node] = None
            waiting += list(node.users)
    return sorted(group)


def _is_number(node: fx.Node) -> bool:
    return node.op == "get_attr" and node.meta["val"].numel() == 1


def _between(x: fx.Node, end: fx.Node, group: set[fx.Node]) -> set[fx.Node]:
    """The part of a group that ``end`` is computed from, with ``end``."""
    inner: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node in inner or node is x or node not in group:
            continue
        inner.add(node)
        waiting += node.all_input_nodes
    return inner


def _same_function(program: Program, x: fx.Node, nodes: list[fx.Node]) -> str | None:
    values: dict[fx.Node, torch.Tensor] = {x: _POINTS}

    def value(node: fx.Node) -> torch.Tensor:
        return values[node] if node in values else program.weight(node).double().reshape(())

    with torch.no_grad():
        for node in nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            values[node] = cast(Callable[..., torch.Tensor], node.target)(*args, **kwargs)
    result = values[nodes[-1]]
    for name, (function, _, _) in _ACTIVATIONS.items():
        difference = (result - function(_POINTS)).abs() / (1 + _POINTS.abs())
        if bool((difference <= _AGREEMENT).all()):
            return name
    return None


# Normalisations


def _layer_norm(program: Program, rewriter: Rewriter, quotient: fx.Node) -> None:
    """``(x - mean) / sqrt(mean((x - mean) ** 2) + epsilon) * weight + bias`` over the last axis."""
    difference, root = quotient.args[:2]
    if not isinstance(difference, fx.Node) or not isinstance(root, fx.Node) or op_name(difference) != "aten.sub":
        return
    x, mean = difference.args[:2]
    if not isinstance(x, fx.Node) or not isinstance(mean, fx.Node) or _mean_of(mean) is not x:
        return
    epsilon = _epsilon(program, root, difference)
    columns = quotient.meta["val"].shape[-1]
    if epsilon is None or not isinstance(columns, int) or argument(difference, "alpha") != 1:
        return
    end, nodes, affine = quotient, [difference, quotient], {}
    for name, operator in (("weight", "aten.mul"), ("bias", "aten.add")):
        reader = next(iter(end.users)) if len(end.users) == 1 else None
        if reader is None or op_name(reader) != operator or (operator == "aten.add" and argument(reader, "alpha") != 1):
            break
        others = [a for a in reader.args[:2] if a is not end and isinstance(a, fx.Node) and a.op == "get_attr"]
        if len(others) != 1 or tuple(others[0].meta["val"].shape) != (columns,):
            break
        affine[name] = others[0]
        end = reader
        nodes.append(reader)
    made = rewriter.call(
        _aten.layer_norm.default,
        (x, [columns], affine.get("weight"), affine.get("bias"), epsilon),
        before=end,
        sources=nodes,
    )
    rewriter.replace(end, made)


def _mean_of(node: fx.Node) -> fx.Node | None:
    """What a node is the mean of, over the last axis, which stays."""
    if op_name(node) != "aten.mean" or not argument(node, "keepdim"):
        return None
    source, axes = cast(fx.Node, node.args[0]), argument(node, "dim")
    return source if axes in ([-1], [source.meta["val"].dim() - 1]) else None


def _epsilon(program: Program, root: fx.Node, difference: fx.Node) -> float | None:
    """The epsilon of ``sqrt(mean(difference ** 2) + epsilon)``; None for anything else."""
    if op_name(root) != "aten.sqrt":
        return None
    added = cast(fx.Node, root.args[0])
    if op_name(added) != "aten.add" or argument(added, "alpha") != 1:
        return None
    variance, epsilon = added.args[:2]
    if isinstance(epsilon, fx.Node) and _is_number(epsilon):
        epsilon = float(program.weight(epsilon))
    squares = _mean_of(variance) if isinstance(variance, fx.Node) else None
    if squares is None or not isinstance(epsilon, (int, float)):
        return None
    if op_name(squares) == "aten.pow":
        square = squares.args[0] is difference and squares.args[1] == 2
    else:
        square = op_name(squares) == "aten.mul" and all(a is difference for a in squares.args[:2])
    return float(epsilon) if square else None
