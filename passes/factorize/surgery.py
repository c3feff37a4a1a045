"""Chains in the places of layers."""

from __future__ import annotations

from collections.abc import Mapping

from shave.ir.program import Program
from shave.ir.rewrite import as_trainable
from shave.passes.factorize.chain import emit
from shave.passes.factorize.layer import value_of
from shave.passes.factorize.options import Choice
from shave.passes.factorize.plan import Candidate


def replace(program: Program, chosen: Mapping[Candidate, Choice], by: str) -> None:
    """Write the chain of each choice in the place of its layer.

    Args:
        program: What the layers belong to.
        chosen: By layer.
        by: Name of the pass.
    """
    with program.rewrite(by=by) as rewriter:
        for candidate, choice in chosen.items():
            layer, fitted = candidate.layer, candidate.fitted(choice)
            weight, bias = layer.weight_node, layer.bias_node
            old = value_of(program, weight)
            base = _base(candidate)
            factors = [
                rewriter.weight(
                    f"{base}factor{k}", as_trainable(factor.to(old.dtype).contiguous(), old), sources=[weight]
                )
                for k, factor in enumerate(fitted.factors, 1)
            ]
            mean = choice.method.metric.mean
            if mean is not None:
                value = (layer.weight - fitted.product) @ mean
                if bias is not None:
                    value = value + value_of(program, bias).detach()
                shifted = as_trainable(value.to(old.dtype), old)
                bias = rewriter.weight(f"{base}bias", shifted, sources=[weight if bias is None else bias])
            rewriter.replace(layer.node, emit(rewriter, layer, choice.method.steps(choice.ranks), factors, bias))
            rewriter.erase(layer.node)


def _base(candidate: Candidate) -> str:
    """What the names of new weights start with: the path of the old weight."""
    weight = candidate.layer.weight_node
    name = str((weight if weight.op == "get_attr" else weight.args[0]).target)  # type: ignore[union-attr]
    path, _, leaf = name.rpartition(".")
    if leaf == "weight" and path:
        return f"{path}."
    return f"{name}_"
