"""Integers whose range is found while the program runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.quantize.affine import SMALLEST_SCALE, UINT8, weight_scheme
from shave.passes.quantize.integers import insert, is_integer, scales_of, to_nearest, weight_axis
from shave.passes.quantize.products import product_of
from shave.passes.quantize.table import PRODUCTS, is_float
from shave.passes.report import Report
from shave.passes.scope import select
from shave.passes.stages import Stage
from shave.passes.weights import value_of

_aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Round what layers read to 8 bits within bounds that are computed on the fly.

    It needs no calibration data. Weights become 8-bit integers with a scale for each output; activations get one scale
    and zero point per call, or one for each token (row of the last axis).
    """

    name = "quantize-dynamic"
    exactness = Exactness.LOSSY
    requires = Stage.FLOAT | Stage.QUANTIZED
    ensures = Stage.QUANTIZED

    bounds: Literal["tensor", "token"] = option("tensor", help="one range for each activation, or for each row of it")
    layers: tuple[str, ...] = option((), help="scopes to quantize; all layers with weights by default")
    skip: tuple[str, ...] = option((), help="scopes to leave in float")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        candidates = [node for node in program.calls if op_name(node) in PRODUCTS]
        scheme = weight_scheme(8)
        rounded: dict[fx.Node, fx.Node] = {}
        made: dict[fx.Node, fx.Node] = {}
        with program.rewrite(by=self.name) as rewriter:
            for node in select(program, candidates, self.layers, self.skip):
                product = product_of(program, node)
                source = argument(node, product.data) if product is not None else node
                if product is None or not is_float(source):
                    report.skipped(node, "it has no constant float32 weights")
                elif op_name(source).startswith("quantized_decomposed."):
                    report.skipped(node, "what it reads is quantized already")
                else:
                    if source not in rounded:
                        rounded[source] = self._round(rewriter, source, node)
                    weight = argument(node, product.weight)
                    axis = weight_axis(node, weight)
                    if not is_integer(program, weight, axis):
                        if weight not in made:
                            values = value_of(program, weight)
                            integers = to_nearest(values, scales_of(values, axis, scheme), axis, scheme)
                            stored = weight if weight.op == "get_attr" else weight.all_input_nodes[0]
                            made[weight] = insert(rewriter, integers, weight, str(stored.target), node)
                        node.replace_input_with(weight, made[weight])
                    node.replace_input_with(source, rounded[source])
                    report.applied(node, f"reads {source.name} as 8-bit integers, with bounds for each {self.bounds}")
        return report

    def _round(self, rewriter: Rewriter, x: fx.Node, before: fx.Node) -> fx.Node:
        """The value once it has been quantized, in plain operators: every backend and ONNX take them.

        Zero is within the bounds and exact, as in :meth:`shave.passes.quantize.affine.Scheme.fit`.
        """

        def call(target: object, *args: object, **kwargs: object) -> fx.Node:
            return rewriter.call(target, args, kwargs, before=before, sources=[x])  # type: ignore[arg-type]

        dims = list(range(x.meta["val"].dim())) if self.bounds == "tensor" else [-1]
        low = call(_aten.clamp_max.default, call(_aten.amin.default, x, dims, True), 0.0)
        high = call(_aten.clamp_min.default, call(_aten.amax.default, x, dims, True), 0.0)
        span = call(_aten.sub.Tensor, high, low)
        scale = call(_aten.clamp_min.default, call(_aten.mul.Tensor, span, 1 / UINT8.steps), SMALLEST_SCALE)
        zero = call(_aten.round.default, call(_aten.neg.default, call(_aten.div.Tensor, low, scale)))
        steps = call(_aten.add.Tensor, call(_aten.round.default, call(_aten.div.Tensor, x, scale)), zero)
        codes = call(_aten.clamp.default, steps, UINT8.low, UINT8.high)
        return call(_aten.mul.Tensor, call(_aten.sub.Tensor, codes, zero), scale)
