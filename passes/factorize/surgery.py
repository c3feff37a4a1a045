"""Chains in the places of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as fields

import torch
from torch import fx

from shave.ir.program import Program
from shave.ir.rewrite import as_trainable
from shave.passes.factorize.chain import emit
from shave.passes.factorize.factorization import Fitted
from shave.passes.factorize.options import Choice
from shave.passes.factorize.plan import Candidate
from shave.passes.weights import value_of


def replace(program: Program, chosen: Mapping[Candidate, Choice], by: str) -> None:
    """Write the chain of each choice in the place of its layer.

    Args:
        program: What the layers belong to.
        chosen: By layer.
        by: Name of the pass.
    """
    made: dict[fx.Node, fx.Node] = {}
    with program.rewrite(by=by) as rewriter:
        for candidate, choice in chosen.items():
            layer, fitted = candidate.layer, candidate.fitted(choice)
            layer = fields(layer, source=made.get(layer.source, layer.source))  # which may be a chain by now
            weight, bias = layer.weight_node, layer.bias_node
            old = value_of(program, weight)
            base = _base(candidate)
            factors = [
                rewriter.weight(
                    f"{base}factor{k}", as_trainable(factor.to(old.dtype).contiguous(), old), sources=[weight]
                )
                for k, factor in enumerate(fitted.factors, 1)
            ]
            if choice.method.metric.mean is not None:
                shifted = bias_of(program, candidate, choice, fitted)
                assert shifted is not None
                shifted = as_trainable(shifted, old)
                bias = rewriter.weight(f"{base}bias", shifted, sources=[weight if bias is None else bias])
            made[layer.node] = emit(rewriter, layer, choice.method.steps(choice.ranks), factors, bias)
            rewriter.replace(layer.node, made[layer.node])
            rewriter.erase(layer.node)


def bias_of(program: Program, candidate: Candidate, choice: Choice, fitted: Fitted) -> torch.Tensor | None:
    """The bias of a chain: with data, the layer's own and the mean of what its weight lacks."""
    layer, mean = candidate.layer, choice.method.metric.mean
    own = None if layer.bias_node is None else value_of(program, layer.bias_node).detach()
    if mean is None:
        return own
    lacking = (layer.weight - fitted.product) @ mean
    return (lacking if own is None else lacking + own).to(value_of(program, layer.weight_node).dtype)


def _base(candidate: Candidate) -> str:
    """What the names of new weights start with: the path of the old weight."""
    weight = candidate.layer.weight_node
    name = str((weight if weight.op == "get_attr" else weight.args[0]).target)  # type: ignore[union-attr]
    path, _, leaf = name.rpartition(".")
    if leaf == "weight" and path:
        return f"{path}."
    return f"{name}_"
