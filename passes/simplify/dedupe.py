"""Compute equal things once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.ops import Trait, has_trait, is_random
from shave.ir.program import Program, attribute
from shave.ir.rewrite import Rewriter, is_impure
from shave.ir.structure import weight_digest
from shave.passes.base import Context, Exactness, Pass
from shave.passes.report import Report


@dataclass(frozen=True)
class Dedupe(Pass):
    """Merge equal weights, and calls of the same operator on the same arguments (common subexpressions).

    Weights are compared by content; a trainable weight is not merged with a constant. Random calls and those that check
    data stay, and so do quantize and dequantize: each marks a border of its own.
    """

    name = "dedupe"
    exactness = Exactness.EXACT

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        with program.rewrite(by=self.name) as rewriter:
            self._merge_weights(program, rewriter, report)
            self._merge_calls(program, rewriter, report)
        return report

    def _merge_weights(self, program: Program, rewriter: Rewriter, report: Report) -> None:
        first: dict[tuple[str, bool, bool], fx.Node] = {}
        for node in program.graph.find_nodes(op="get_attr"):
            tensor = attribute(program.module, str(node.target))
            if not isinstance(tensor, torch.Tensor):
                continue
            key = (weight_digest(tensor), isinstance(tensor, torch.nn.Parameter), tensor.requires_grad)
            kept = first.setdefault(key, node)
            if kept is not node:
                rewriter.replace(node, kept)
                report.applied(node, f"equal to weight {kept.target}")

    def _merge_calls(self, program: Program, rewriter: Rewriter, report: Report) -> None:
        first: dict[tuple[Any, ...], fx.Node] = {}
        for node in program.calls:
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                continue
            key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
            kept = first.setdefault(key, node)
            if kept is node or not node.users:
                continue
            if reason := _why_not(node):
                report.skipped(node, reason)
                continue
            rewriter.replace(node, kept)
            report.applied(node, f"computes the same as {kept.name}")


def _why_not(node: fx.Node) -> str:
    """Why a repeated call must stay; empty if it may go."""
    if is_random(node):
        return "equal calls of a random operator differ"
    if has_trait(node, Trait.OPAQUE):
        return "quantize, dequantize and lookup stay where they are"
    return "it checks its arguments" if is_impure(node) else ""
