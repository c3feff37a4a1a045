"""Let a program compute in small integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.quantize.affine import ACTIVATIONS, check_bits, weight_scheme
from shave.passes.quantize.by_cost import Verdict, weigh
from shave.passes.quantize.calibrate import samples_of
from shave.passes.quantize.mixed import mixed
from shave.passes.quantize.observers import OBSERVERS
from shave.passes.quantize.observers.observer import Observer
from shave.passes.quantize.observers.percentile import Percentile
from shave.passes.quantize.placement import selectable
from shave.passes.quantize.recipe import Form, Recipe
from shave.passes.quantize.sensitivity import first
from shave.passes.quantize.spare import spare
from shave.passes.quantize.table import is_product
from shave.passes.report import Report
from shave.passes.scope import select, values_of
from shave.passes.stages import Stage

SPARE_SAMPLES = 32
"""Calibration samples on which products are tried in float."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Compute products, and what lies between them, in 8-bit integers.

    Ranges of activations come from calibration data; weights get a scale for each output. Normalisations, softmax and
    all that integers would spoil stay in float. With ``max_drop``, layers go back to float, worst first, until
    ``evaluate`` is content. See ``docs/quantization.md``.
    """

    name = "quantize"
    exactness = Exactness.LOSSY
    requires = Stage.FLOAT | Stage.QUANTIZED
    ensures = Stage.QUANTIZED

    calibrate: Literal["minmax", "moving-average", "entropy", "mse", "percentile"] = option(
        "mse", search=("mse", "minmax", "percentile", "entropy"), help="what tells the range of an activation"
    )
    percentile: float = option(99.999, help="for calibrate=percentile: how many percent lie below the upper end")
    samples: int = option(300, help="calibration samples to use at most")
    activations: Literal["uint8", "int8", "int16"] = option(
        "uint8", help="what activations become: uint8 with a zero point, or symmetric"
    )
    bits: int = option(8, help="bits of a weight, 2 to 8")
    layer_bits: Mapping[str, int] = option({}, help="bits for scopes, in place of bits; the last that matches counts")
    per_channel: bool = option(True, help="whether each output of a weight has a scale, or one serves all")
    reduce_range: bool = option(
        False, help="one bit less for weights, so that 16-bit sums of two products cannot overflow"
    )
    correct_bias: bool = option(True, help="whether the mean error of each product is taken out of its bias")
    by_cost: bool = option(
        True, help="with a target: whether products stay in float that integers, with all conversions, make no faster"
    )
    spare: float = option(
        0.01, help="share of the multiply-adds that first layers may keep in float, where that halves the error"
    )
    max_drop: float | None = option(None, help="how far evaluate may fall; layers go back to float until it holds")
    layers: tuple[str, ...] = option((), help="scopes that may compute in integers; all by default")
    skip: tuple[str, ...] = option((), help="scopes to leave in float")

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, but is 1 at least")
        check_bits(self.bits, self.layer_bits)
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}, but lies above 50 and is 100 at most")
        if not 0 <= self.spare <= 1:
            raise ValueError(f"spare is {self.spare}, but lies from 0 to 1")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise ValueError(f"max-drop is {self.max_drop}, but is 0 at least")

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        evaluate = context.need("evaluate", self) if self.max_drop is not None else None
        simplified = _simplify(program, context)
        recipe = self.recipe(program.clone(), context)
        if evaluate is None or self.max_drop is None:
            report = recipe.apply(program)
        else:
            report = mixed(recipe, program, evaluate, self.max_drop, context)
        if getattr(context.target, "int8_dot", None) == "none":
            what = "has no dot product of 8-bit integers: they are widened, and save bytes more than time"
            report.skipped("target", f"{context.target.name} {what}")
        if simplified:
            report.applied("program", f"made ready by {', '.join(simplified)}: integer weights can no longer be folded")
        return report

    def recipe(self, program: Program, context: Context) -> Recipe:
        """All that calibration tells of a program, which stays as it is.

        Raises:
            PipelineError: A scope matches nothing, or the calibration data is missing or spoiled.
        """
        chosen = select(program, selectable(program.calls), self.layers, self.skip)
        verdict = Verdict()
        if self.by_cost and context.oracle is not None and self.activations != "int16":
            verdict = weigh(program, chosen, context.oracle)
        bits = values_of(program, filter(is_product, chosen), self.bits, self.layer_bits)
        most = 7 if self.reduce_range else 8
        schemes = {node.name: weight_scheme(min(number, most)) for node, number in bits.items()}
        form = Form(ACTIVATIONS[self.activations], schemes, self.per_channel)
        recipe = Recipe(
            program,
            {node.name for node in chosen},
            form,
            verdict,
            self._observer,
            lambda: samples_of(context.batches(program, self), program, self.samples),
            corrected=self.correct_bias,
            by=self.name,
        )
        if self.spare and recipe.products:
            spare(recipe, first(recipe, context, self, SPARE_SAMPLES), self.spare)
        return recipe

    def _observer(self) -> Observer:
        return Percentile(self.percentile) if self.calibrate == Percentile.name else OBSERVERS[self.calibrate]()


def _simplify(program: Program, context: Context) -> list[str]:
    """Run the preset ``simplify`` in place; the names of the passes that had something to do.

    A program whose activations are quantized is left as it is.
    """
    from shave.passes.pipeline import parse

    if any(op_name(node).startswith("quantized_decomposed.quantize") for node in program.calls):
        return []
    reports = {each.name: each.apply(program, context) for each in parse("simplify")}
    return [name for name, report in reports.items() if any(entry.verdict == "applied" for entry in report.entries)]
