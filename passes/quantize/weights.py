"""Store weights as small integers, whatever activations are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.quantize.affine import check_bits, weight_scheme
from shave.passes.quantize.calibrate import observe, samples_of
from shave.passes.quantize.integers import Integers, along, insert, insert_groups, scales_of, to_nearest, weight_axis
from shave.passes.quantize.products import Product, product_of
from shave.passes.quantize.rounding import Gram, to_least_error
from shave.passes.quantize.table import PRODUCTS
from shave.passes.report import Report
from shave.passes.scope import select, values_of
from shave.passes.stages import Stage


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of products as integers; activations stay in float.

    Weights have a scale for each output, or with ``group`` one for so many inputs of an output. With
    ``rounding=second-order`` they are rounded by what that does to the outputs on calibration data. ``quantize`` behind
    it leaves 8-bit weights as they are and makes the activations integers, too.
    """

    name = "quantize-weights"
    exactness = Exactness.LOSSY
    requires = Stage.FLOAT | Stage.QUANTIZED
    ensures = Stage.QUANTIZED

    bits: int = option(8, search=(8, 6, 5, 4, 3), help="bits of a weight, 2 to 8")
    layer_bits: Mapping[str, int] = option({}, help="bits for scopes, in place of bits; the last that matches counts")
    group: int | None = option(None, search=(None, 128, 64, 32), help="inputs that share a scale; none: all of them")
    rounding: Literal["nearest", "second-order"] = option(
        "nearest", help="to the nearest integer, or so that errors make up for each other on calibration data"
    )
    samples: int = option(300, help="calibration samples to use at most")
    layers: tuple[str, ...] = option((), help="scopes to store so; all by default")
    skip: tuple[str, ...] = option((), help="scopes to leave in float")

    def __post_init__(self) -> None:
        check_bits(self.bits, self.layer_bits)
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group}, but is 1 at least")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, but is 1 at least")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        products = self._products(program, report)
        grams: dict[fx.Node, Gram] = {}
        if self.rounding == "second-order":
            grams = {product.node: Gram(program, product.node, context.seed) for product in products}
            usable = {node: gram for node, gram in grams.items() if not gram.why_not}
            sources = _Fan.of((argument(node, PRODUCTS[op_name(node)].data), gram) for node, gram in usable.items())
            observe(program, sources, samples_of(context.batches(program, self), program, self.samples))
        bits = values_of(program, [product.node for product in products], self.bits, self.layer_bits)
        made: dict[tuple[fx.Node, int], tuple[fx.Node, str]] = {}
        with program.rewrite(by=self.name) as rewriter:
            for product in products:
                weight = argument(product.node, product.weight)
                key = weight, bits[product.node]
                if key not in made:
                    made[key] = self._store(program, rewriter, product, *key, grams.get(product.node))
                fresh, text = made[key]
                product.node.replace_input_with(weight, fresh)
                report.applied(product.node, text)
        return report

    def _products(self, program: Program, report: Report) -> list[Product]:
        found = []
        candidates = [node for node in program.calls if op_name(node) in PRODUCTS]
        for node in select(program, candidates, self.layers, self.skip):
            product = product_of(program, node)
            if product is None:
                report.skipped(node, "it has no constant weights")
                continue
            weight = argument(node, product.weight)
            if weight.op != "get_attr":
                report.skipped(node, "its weights are integers already")
            elif not program.weight(weight).is_floating_point() or not program.weight(weight).isfinite().all():
                report.skipped(node, "its weights are not finite floats")
            elif self.group is not None and (reason := self._why_no_groups(node, weight)):
                report.skipped(node, reason)
            else:
                found.append(product)
        return found

    def _why_no_groups(self, node: fx.Node, weight: fx.Node) -> str:
        if weight_axis(node, weight) != 0 or len(weight.meta["val"].shape) != 2:
            return "groups are for weights [outputs, inputs]: linear layers"
        inputs = int(weight.meta["val"].shape[1])
        return f"its {inputs} inputs are no multiple of {self.group}" if inputs % (self.group or 1) else ""

    def _store(
        self, program: Program, rewriter: Rewriter, product: Product, weight: fx.Node, bits: int, gram: Gram | None
    ) -> tuple[fx.Node, str]:
        scheme = weight_scheme(bits)
        values = program.weight(weight).detach()
        axis = weight_axis(product.node, weight)
        shaped = values if self.group is None else values.reshape(-1, self.group)
        scales = scales_of(shaped, axis, scheme)
        rounded = to_nearest(shaped, scales, axis, scheme)
        text = f"weights of {bits} bits" + (f" in groups of {self.group}" if self.group is not None else "")
        if gram is not None and gram.why_not:
            text += f", rounded to the nearest: {gram.why_not}"
        elif gram is not None and gram.rows:
            rounded, before, after = _second_order(values, shaped, rounded, axis, gram)
            text += (
                f", error of the outputs {100 * before**0.5:.2g} % rounded to the nearest, {100 * after**0.5:.2g} % now"
            )
        name = str(weight.target)
        if self.group is None:
            return insert(rewriter, rounded, weight, name, product.node), text
        return insert_groups(rewriter, rounded, weight, name, product.node), text


def _second_order(
    values: torch.Tensor, shaped: torch.Tensor, rounded: Integers, axis: int | None, gram: Gram
) -> tuple[Integers, float, float]:
    """Round the rows of each group of a layer; gives the errors of the outputs, relative and squared, too."""
    scheme = rounded.scheme
    spread = along(rounded.scales, axis, shaped.dim()).expand(shaped.shape).reshape(values.shape)
    turned = gram.groups == 1 and values.dim() == 2 and values.shape[0] == gram.sums.shape[1] and axis == 1
    rows, steps = (each.T if turned else each for each in (values, spread))
    rows, steps = (each.reshape(gram.groups, each.shape[0] // gram.groups, -1) for each in (rows, steps))
    found, before, after = [], 0.0, 0.0
    for number in range(gram.groups):
        whole, one, other = to_least_error(rows[number], steps[number], scheme, gram.sums[number])
        found.append(whole)
        before, after = before + one / gram.groups, after + other / gram.groups
    whole = torch.cat(found)
    whole = whole.reshape(values.T.shape).T if turned else whole.reshape(values.shape)
    integers = whole.reshape(shaped.shape).to(torch.int8).contiguous()
    return Integers(integers, rounded.scales, rounded.axis, scheme), before, after


class _Fan:
    """Shows one value to several that look at it."""

    def __init__(self) -> None:
        self._grams: list[Gram] = []

    def observe(self, values: torch.Tensor) -> None:
        for gram in self._grams:
            gram.observe(values)

    @staticmethod
    def of(pairs: Iterable[tuple[fx.Node, Gram]]) -> dict[fx.Node, _Fan]:
        found: dict[fx.Node, _Fan] = {}
        for source, gram in pairs:
            found.setdefault(source, _Fan())._grams.append(gram)
        return found
