"""How much of a layer's error reaches the outputs of the program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from shave.ir.program import Program
from shave.passes.compare import outputs_of
from shave.passes.factorize.layer import Layer


def output_error(
    program: Program, layer: Layer, product: torch.Tensor, mean: torch.Tensor | None, inputs: Sequence[torch.Tensor]
) -> float:
    """Run a program with another weight in one layer; give the energy of the outputs' error as a share of their own.

    Args:
        program: Stays as it is.
        layer: Whose weight is another.
        product: That weight [out, features].
        mean: Of what the layer reads [features]; what the difference makes of it is taken off again, as its bias would.
        inputs: What to run on.
    """
    wants = outputs_of(program(*inputs))
    with torch.no_grad():
        gots = outputs_of(_Altered(program, layer, product, mean).run(*inputs))
    errors = [
        float((got - want).double().square().sum() / (want - want.mean(0)).double().square().sum().clamp(min=1e-30))
        for want, got in zip(wants, gots, strict=True)
        if want.is_floating_point() and want.numel()
    ]
    return sum(errors) / max(1, len(errors))


class _Altered(fx.Interpreter):
    """Runs a program, one weight replaced."""

    def __init__(self, program: Program, layer: Layer, product: torch.Tensor, mean: torch.Tensor | None) -> None:
        super().__init__(program.module)
        self._layer = layer
        like: torch.Tensor = layer.weight_node.meta["val"]
        self._weight = layer.as_operand(product).to(like.dtype)
        self._shift: torch.Tensor | None = None
        if mean is not None:
            shift = ((layer.weight - product) @ mean).to(like.dtype)
            self._shift = shift if layer.window is None else shift[:, None, None]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n is self._layer.weight_node:
            return self._weight
        if n is self._layer.node and self._shift is not None:
            return value + self._shift
        return value
