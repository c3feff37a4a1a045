"""What each product of a quantized program loses by itself, on what it reads in the float program."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.passes.quantize.affine import Affine
from shave.passes.quantize.products import Product, affine_of, is_weight, product_of
from shave.passes.quantize.table import PRODUCTS
from shave.passes.weights import value_of


@dataclass(frozen=True)
class Loss:
    """Of one product, over all samples.

    Attributes:
        mean: Mean of float less integer result for each output [outputs], float64; empty for products of two
            activations, and if nothing was seen.
        noise: Variance of that mean, as the samples differ [outputs].
        power: Mean square of the float result.
        error: Mean square of the difference.
    """

    mean: torch.Tensor
    noise: torch.Tensor
    power: float
    error: float

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise of the product, dB."""
        if not self.error:
            return math.inf
        return 10 * math.log10(self.power / self.error) if self.power else -math.inf

    @property
    def shift(self) -> torch.Tensor:
        """What to add to each output: its mean error, as far as it is more than noise."""
        return self.mean * (1 - self.noise / self.mean.square().clamp_min(1e-300)).clamp_min(0)


def losses(program: Program, reference: Program, batches: Iterable[Sequence[torch.Tensor]]) -> dict[str, Loss]:
    """Compare the integer products of a program with those of the program that it was made from.

    Args:
        program: Quantized; calls that come from ``reference`` have their names from there.
        reference: In float; it is run.
        batches: Inputs.

    Returns:
        By name of the product.
    """
    calls = {node.name: node for node in reference.calls}
    found: dict[fx.Node, _Comparison] = {}
    for node in program.calls:
        twin = calls.get(node.name)
        if op_name(node) in PRODUCTS and twin is not None and twin.target is node.target:
            comparison = _Comparison(program, node)
            if comparison.replaced:
                found[twin] = comparison
    watcher = _Watcher(reference.module, found)
    with torch.no_grad():
        for batch in batches:
            watcher.run(*batch)
    return {twin.name: comparison.loss() for twin, comparison in found.items()}


class _Comparison:
    """Computes a product as the quantized program does, and sums up the differences."""

    def __init__(self, program: Program, node: fx.Node) -> None:
        operands = PRODUCTS[op_name(node)]
        self.product: Product | None = product_of(program, node)
        self.replaced: dict[str, Affine | torch.Tensor] = {}
        for name in (operands.data, operands.weight):
            factor = argument(node, name)
            affine = affine_of(factor)
            if affine is not None:
                self.replaced[name] = affine
            elif is_weight(factor) and factor.op == "call_function":
                self.replaced[name] = value_of(program, factor).detach()
        self._samples = self._elements = 0
        self._power = self._error = 0.0
        self._sum = self._squares = torch.zeros(0, dtype=torch.float64)

    def add(self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], want: torch.Tensor) -> None:
        names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
        values = dict(zip(names, args, strict=False)) | dict(kwargs)
        for name, how in self.replaced.items():
            values[name] = how.round(values[name]) if isinstance(how, Affine) else how
        assert callable(node.target)
        error = (want - node.target(**values)).double()
        self._elements += error.numel()
        self._power += float(want.double().square().sum())
        self._error += float(error.square().sum())
        if self.product is not None:
            rows = error.movedim(self.product.axis, -1)
            means = rows.reshape(rows.shape[0], -1, rows.shape[-1]).mean(1) if rows.dim() > 1 else rows[None]
            if not self._samples:
                self._sum, self._squares = torch.zeros(2, rows.shape[-1], dtype=torch.float64)
            self._samples += len(means)
            self._sum = self._sum + means.sum(0)
            self._squares = self._squares + means.square().sum(0)

    def loss(self) -> Loss:
        mean = self._sum / max(self._samples, 1)
        spread = (self._squares / max(self._samples, 1) - mean**2).clamp_min(0)
        elements = max(self._elements, 1)
        return Loss(mean, spread / max(self._samples - 1, 1), self._power / elements, self._error / elements)


class _Watcher(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, comparisons: Mapping[fx.Node, _Comparison]) -> None:
        super().__init__(module)
        self._comparisons = comparisons

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._comparisons:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self._comparisons[n].add(n, args, kwargs, value)
        return value
