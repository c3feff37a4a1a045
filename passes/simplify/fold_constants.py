"""Compute ahead of time what depends on weights alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.ops import Trait, has_trait, is_random, op_name
from shave.ir.program import Program, attribute
from shave.ir.rewrite import is_impure
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.report import Report


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace calls that depend on weights alone by their results.

    Never folded: quantize and dequantize (a dequantized weight is meant to be stored quantized), random calls, and
    results that would take more than ``growth`` bytes beyond the weights that they make superfluous (a large expand).
    What stems from a trainable weight stays trainable.
    """

    name = "fold-constants"
    exactness = Exactness.EXACT

    growth: int = option(1 << 20, help="Bytes that a result may take beyond the weights it replaces.")

    def __post_init__(self) -> None:
        if self.growth < 0:
            raise ValueError(f"growth={self.growth} is negative")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        constant = self._constant_nodes(program, report)
        values: dict[fx.Node, Any] = {}
        with program.rewrite(by=self.name) as rewriter:
            for node in program.calls:
                folds = node in constant and isinstance(node.meta["val"], torch.Tensor)
                if folds and any(user not in constant for user in node.users):
                    result = _as_trainable(_evaluate(program, node, values), program, node)
                    rewriter.replace(node, rewriter.weight(f"{node.name}_folded", result, sources=[node]))
                    report.applied(node, f"computed ahead: {result.dtype} of shape {list(result.shape)}")
        return report

    def _constant_nodes(self, program: Program, report: Report) -> set[fx.Node]:
        """The weights, and the calls whose results may be kept in their place."""
        constant: set[fx.Node] = set()
        for node in program.graph.nodes:
            if node.op == "get_attr":
                if isinstance(attribute(program.module, str(node.target)), torch.Tensor):
                    constant.add(node)
            elif node.op == "call_function" and all(used in constant for used in node.all_input_nodes):
                if reason := self._why_not(node, constant):
                    report.skipped(node, reason)
                else:
                    constant.add(node)
        return constant

    def _why_not(self, node: fx.Node, constant: set[fx.Node]) -> str:
        if has_trait(node, Trait.OPAQUE):
            return f"{op_name(node)} is never folded: it says how the weight is stored"
        if is_random(node):
            return "it is random"
        if is_impure(node):
            return "it checks its arguments"
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return "it runs a graph of its own"
        sizes = [size for value in _tensors(node.meta["val"]) for size in value.shape]
        if not _tensors(node.meta["val"]) or any(isinstance(size, torch.SymInt) for size in sizes):
            return "its size is known only when it runs"
        grown = sum(map(_bytes, _tensors(node.meta["val"]))) - _superfluous(node, constant)
        return f"its result takes {grown} bytes more than what it replaces" if grown > self.growth else ""


def _superfluous(node: fx.Node, constant: set[fx.Node]) -> int:
    """Bytes of the weights behind a constant call that nothing but constant calls (and this one) reads."""
    weights = _weights_behind(node)
    return sum(_bytes(w.meta["val"]) for w in weights if all(user in constant or user is node for user in w.users))


def _as_trainable(result: torch.Tensor, program: Program, node: fx.Node) -> torch.Tensor:
    """Make a folded result trainable if it stems from a trainable weight, so that nothing falls out of training."""
    if not (result.is_floating_point() or result.is_complex()):
        return result
    parameters = [w for w in map(program.weight, _weights_behind(node)) if isinstance(w, torch.nn.Parameter)]
    if not parameters:
        return result
    return torch.nn.Parameter(result, any(parameter.requires_grad for parameter in parameters))


def _weights_behind(node: fx.Node) -> list[fx.Node]:
    """All weights that a constant call depends on."""
    seen: dict[fx.Node, None] = {}
    pending = list(node.all_input_nodes)
    while pending:
        used = pending.pop()
        if used not in seen:
            seen[used] = None
            pending += used.all_input_nodes
    return [used for used in seen if used.op == "get_attr"]


def _evaluate(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> torch.Tensor:
    """Run a constant call, and first those that it reads."""

    def value(used: fx.Node) -> Any:
        if used not in values:
            if used.op == "get_attr":
                values[used] = program.weight(used).detach()
            else:
                assert callable(used.target)
                values[used] = used.target(*fx.map_arg(used.args, value), **fx.map_arg(used.kwargs, value))
        return values[used]

    with torch.no_grad():
        result = value(node)
    # A view would keep the whole of what it looks at alive, and would be written to through it.
    return result.contiguous().clone()  # type: ignore[no-any-return]


def _tensors(value: Any) -> list[torch.Tensor]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [each for each in values if isinstance(each, torch.Tensor)]


def _bytes(value: torch.Tensor) -> int:
    return math.prod(value.shape) * value.element_size()
