"""Fold batch norms into the weights of the layers beside them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.base import Context, Exactness, Pass
from shave.passes.report import Report
from shave.passes.simplify.affine import Affine, affine_of
from shave.passes.simplify.linear_layer import linear_layer


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold inference batch norms into convolutions, transposed convolutions and linear layers.

    A batch norm is s * x + t per channel, with s = gamma / sqrt(variance + epsilon) and t = beta - mean * s. So

        s * (W x + b) + t = (s W) x + (s b + t)        behind a layer,
        W (s x + t) + b   = (W s) x + (W t + b)        ahead of a layer; if it pads with zeros, only for t = 0.

    The decomposed form, a row of multiplications, divisions, additions and subtractions by per-channel constants, folds
    likewise. Computed in float64 and rounded once. A layer whose output others read too keeps its weights; a weight
    that another layer shares is cloned.
    """

    name = "fold-batchnorm"
    exactness = Exactness.EXACT

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        stay: dict[fx.Node, str] = {}
        with program.rewrite(by=self.name) as rewriter:
            for node in program.calls:
                if (affine := affine_of(program, node)) is None or not node.users:
                    if op_name(node) == "aten.batch_norm":
                        report.skipped(node, "its statistics are not constants" if node.users else "nothing reads it")
                    continue
                if reason := _fold_back(program, rewriter, node, affine, report):
                    stay[node] = reason
            # Of a row of operations ahead of a layer, the last goes in first.
            for node in reversed(list(stay)):
                if (affine := affine_of(program, node)) is None:
                    continue
                reason = _fold_ahead(program, rewriter, node, affine, report)
                if reason is None:
                    del stay[node]
                elif op_name(node) == "aten.batch_norm" or linear_layer(program, next(iter(node.users), None)):
                    stay[node] += f"; {reason}"
                elif linear_layer(program, affine.source) is None:
                    del stay[node]  # Arithmetic with constants far from any layer is no batch norm.
        for node, reason in stay.items():
            report.skipped(node, reason)
        return report


def _fold_back(program: Program, rewriter: Rewriter, node: fx.Node, affine: Affine, report: Report) -> str | None:
    """Fold a call into the layer whose output it reads, or say why not."""
    layer = linear_layer(program, affine.source)
    if layer is None:
        return "no layer with constant weights is ahead of it"
    if len(layer.node.users) > 1:
        return f"the output of {layer.node.name} ahead of it has other readers"
    factors = affine.per_channel(layer.axis)
    if factors is None:
        return f"its factors vary along other axes than the channels of {layer.node.name}"
    source = layer.node.args[0]
    assert isinstance(source, fx.Node)
    new = layer.rebuild(program, rewriter, *layer.scale_output(*factors), before=node, source=source, merged=node)
    if isinstance(new, str):
        return new
    report.applied(node, f"folded into {layer.node.name}")
    rewriter.replace(node, new)
    rewriter.erase(node)
    rewriter.erase(layer.node)
    return None


def _fold_ahead(program: Program, rewriter: Rewriter, node: fx.Node, affine: Affine, report: Report) -> str | None:
    """Fold a call into the layer that alone reads it, or say why not."""
    layer = linear_layer(program, next(iter(node.users), None))
    if layer is None or layer.node.args[0] is not node:
        return "no layer with constant weights is behind it"
    if len(node.users) > 1:
        return f"others than {layer.node.name} behind it read its output"
    factors = affine.per_channel(layer.axis)
    if factors is None:
        return f"its factors vary along other axes than the channels of {layer.node.name}"
    if layer.pads and factors[1].any():
        return f"{layer.node.name} behind it pads with zeros, which its shift does not reach"
    weights = layer.scale_input(*factors)
    new = layer.rebuild(program, rewriter, *weights, before=layer.node, source=affine.source, merged=node)
    if isinstance(new, str):
        return new
    report.applied(node, f"folded into {layer.node.name}")
    rewriter.replace(layer.node, new)
    rewriter.erase(layer.node)
    rewriter.erase(node)
    return None
