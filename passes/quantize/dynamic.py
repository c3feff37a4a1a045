"""Integers whose range is found while the program runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from torch import fx

from shave.ir.cost import one_sample
from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.problems import Oracle
from shave.passes.quantize.affine import weight_scheme
from shave.passes.quantize.insertion import behind, insert_measured_pair
from shave.passes.quantize.integers import insert, is_integer, scales_of, to_nearest, weight_axis
from shave.passes.quantize.products import Product, product_of
from shave.passes.quantize.table import PRODUCTS, is_float
from shave.passes.quantize.times import conversion, milliseconds, times_of
from shave.passes.report import Report
from shave.passes.scope import select
from shave.passes.stages import Stage
from shave.passes.weights import value_of


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Round what layers read to 8 bits within bounds that are found on the fly.

    It needs no calibration data. Weights become 8-bit integers with a scale for each output; activations get one scale
    and zero point per call, or one for each token (row of the last axis). Convolutions sum over more than a row: their
    inputs have bounds for the tensor.
    """

    name = "quantize-dynamic"
    exactness = Exactness.LOSSY
    requires = Stage.FLOAT | Stage.QUANTIZED
    ensures = Stage.QUANTIZED

    bounds: Literal["tensor", "token"] = option("tensor", help="one range for each activation, or for each row of it")
    by_cost: bool = option(
        True, help="with a target: whether products stay in float that integers, with all conversions, make no faster"
    )
    layers: tuple[str, ...] = option((), help="scopes to quantize; all layers with weights by default")
    skip: tuple[str, ...] = option((), help="scopes to leave in float")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        readers: dict[tuple[fx.Node, bool], list[Product]] = {}
        candidates = [node for node in program.calls if op_name(node) in PRODUCTS]
        for node in select(program, candidates, self.layers, self.skip):
            product = product_of(program, node)
            source = node if product is None else argument(node, product.data)
            if product is None or not is_float(source):
                report.skipped(node, "it has no constant float32 weights")
            elif op_name(source).startswith("quantized_decomposed."):
                report.skipped(node, "what it reads is quantized already")
            else:
                readers.setdefault((source, self.bounds == "token" and _sums_rows(product)), []).append(product)
        oracle = cache(context.oracle) if self.by_cost and context.oracle is not None else None
        sizes = one_sample(program)
        integers: dict[fx.Node, fx.Node] = {}
        with program.rewrite(by=self.name) as rewriter:
            for (source, by_row), products in readers.items():
                slower = {} if oracle is None else _slower(source, products, oracle, sizes)
                for product in products:
                    if product.node in slower:
                        report.skipped(product.node, slower[product.node])
                faster = [product for product in products if product.node not in slower]
                if not faster:
                    continue
                rounded = insert_measured_pair(rewriter, source, by_row)
                for product in faster:
                    _round_weights(program, rewriter, product, integers)
                    product.node.replace_input_with(source, rounded)
                    whole = "token" if by_row else "tensor"
                    report.applied(product.node, f"reads {source.name} as 8-bit integers, bounds for each {whole}")
        return report


def _sums_rows(product: Product) -> bool:
    """Whether each sum of a product goes along one row of the activation."""
    name = op_name(product.node)
    return "conv" not in name and PRODUCTS[name].data == product.data


def _slower(
    source: fx.Node, products: Sequence[Product], oracle: Oracle, sizes: Mapping[str, int]
) -> dict[fx.Node, str]:
    """The products that are no faster in integers, each with the reason.

    They share one conversion: if it takes longer than they gain together, all stay in float. What the oracle does not
    know takes part.
    """
    found = {product.node: times_of(product.node, True, oracle, sizes) for product in products}
    times = {node: each for node, each in found.items() if each is not None}
    slower = {node: "in float: the target has no integer kernel for it" for node, t in times.items() if not t.integers}
    known = {node: (t.integers, t.floats) for node, t in times.items() if t.integers}
    gains = {node: floats - integers for node, (integers, floats) in known.items()}
    reading = conversion(source, oracle, sizes, measured=True)
    together = len(known) == len(products) and sum(max(0.0, gain) for gain in gains.values()) <= reading
    for node, (integers, floats) in known.items():
        if together or gains[node] <= 0:
            also = f" and {milliseconds(reading)} of finding bounds and rounding"
            slower[node] = (
                f"in float: no faster: {milliseconds(integers)} in integers{also}, {milliseconds(floats)} in float"
            )
    return slower


def _round_weights(program: Program, rewriter: Rewriter, product: Product, made: dict[fx.Node, fx.Node]) -> None:
    """Let a product read integers in the place of its weights; ``made`` holds those that there are already."""
    weight = argument(product.node, product.weight)
    axis, scheme = weight_axis(product.node, weight), weight_scheme(8)
    if is_integer(program, weight, axis):
        return
    if weight not in made:
        values = value_of(program, weight)
        integers = to_nearest(values, scales_of(values, axis, scheme), axis, scheme)
        stored = weight if weight.op == "get_attr" else weight.all_input_nodes[0]
        made[weight] = insert(rewriter, integers, weight, str(stored.target), behind(rewriter, weight))
    product.node.replace_input_with(weight, made[weight])
