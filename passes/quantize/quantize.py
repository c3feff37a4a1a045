"""Let a program compute in small integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import fx

from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.factorize.layer import value_of
from shave.passes.quantize import weights
from shave.passes.quantize.affine import ACTIVATIONS, Affine, weight_scheme
from shave.passes.quantize.calibrate import observe, samples_of
from shave.passes.quantize.insertion import insert_pairs
from shave.passes.quantize.observers import OBSERVERS, Observer
from shave.passes.quantize.placement import Placement, place, selectable
from shave.passes.report import Report
from shave.passes.scope import select
from shave.passes.stages import Stage


@dataclass(frozen=True)
class Quantize(Pass):
    """Compute products, and what lies between them, in 8-bit integers.

    Ranges of activations come from calibration data; weights get a scale for each output. Normalisations, softmax and
    all that integers would spoil stay in float. See ``docs/quantization.md``.
    """

    name = "quantize"
    exactness = Exactness.LOSSY
    requires = Stage.FLOAT | Stage.QUANTIZED
    ensures = Stage.QUANTIZED

    calibrate: Literal["minmax", "moving-average", "entropy", "mse", "percentile"] = option(
        "mse", search=("mse", "minmax", "entropy", "percentile"), help="what tells the range of an activation"
    )
    samples: int = option(300, help="calibration samples to use at most")
    activations: Literal["uint8", "int8", "int16"] = option("uint8", help="what activations become")
    per_channel: bool = option(True, help="whether weights have a scale for each output, or one in all")
    bits: int = option(8, help="bits of a weight, 2 to 8")
    layers: tuple[str, ...] = option((), help="scopes that may compute in integers; all by default")
    skip: tuple[str, ...] = option((), help="scopes to leave in float")

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, but is 1 at least")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, but lies from 2 to 8")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        chosen = set(select(program, selectable(program.calls), self.layers, self.skip))
        placement = place(program, chosen)
        parameters = self._parameters(program, context, placement)
        with program.rewrite(by=self.name) as rewriter:
            insert_pairs(program, rewriter, placement.readers, parameters)
            stored = self._store_weights(program, rewriter, placement)
        return self._report(placement, parameters, stored)

    def _parameters(self, program: Program, context: Context, placement: Placement) -> dict[fx.Node, Affine]:
        """Scale and zero point of every value that is quantized."""
        observers: dict[fx.Node, Observer] = {value: OBSERVERS[self.calibrate]() for value in placement.readers}
        if observers:
            observe(program, observers, samples_of(context.batches(program, self), program, self.samples))
        scheme = ACTIVATIONS[self.activations]
        found = {}
        for group in placement.groups():
            ranges = [observers[value].range(scheme) for value in group]
            affine = scheme.fit(min(low for low, _ in ranges), max(high for _, high in ranges))
            found.update(dict.fromkeys(group, affine))
        return found

    def _store_weights(self, program: Program, rewriter: Rewriter, placement: Placement) -> dict[fx.Node, str]:
        """Turn the weights of products into integers; tells of each product in what form they are."""
        scheme = weight_scheme(self.bits)
        made: dict[tuple[fx.Node, int | None], fx.Node] = {}
        texts = {}
        for node in placement.products:
            weight = placement.weights.get(node)
            if weight is None:
                continue
            axis = weights.weight_axis(node, weight)
            if weights.is_integer(program, weight, axis):
                texts[node] = "weights are integers already"
                continue
            axis = axis if self.per_channel else None
            if (weight, axis) not in made:
                values = value_of(program, weight)
                integers = weights.to_nearest(values, weights.scales_of(values, axis, scheme), axis, scheme)
                made[weight, axis] = weights.insert(rewriter, integers, weight, str(weight.target), node)
            node.replace_input_with(weight, made[weight, axis])
            texts[node] = f"{self.bits}-bit weights, {'a scale' if axis is None else 'scales'} of their own"
        return texts

    def _report(self, placement: Placement, parameters: dict[fx.Node, Affine], stored: dict[fx.Node, str]) -> Report:
        report = Report()
        wanted: dict[fx.Node, list[fx.Node]] = {}
        for value, readers in placement.readers.items():
            for reader in readers:
                wanted.setdefault(reader, []).append(value)
        for node, (integer, text) in placement.reasons.items():
            if not integer:
                report.skipped(node, text)
                continue
            parts = [text, *(_describe(value, parameters[value]) for value in wanted.get(node, ()))]
            report.applied(node, "; ".join([*parts, stored[node]] if node in stored else parts))
        report.metrics["quantized_values"] = len(placement.readers)
        report.metrics["integer_products"] = len(placement.products)
        return report


def _describe(value: fx.Node, affine: Affine) -> str:
    return f"{value.name}: {str(affine.scheme.dtype).removeprefix('torch.')} {affine.scale:.4g}*(q-{affine.zero_point})"
