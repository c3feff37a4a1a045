"""Compute 3x3 convolutions by Winograd's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from shave.ir.cook_toom import POINTS
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter, as_trainable
from shave.ir.winograd import transform_weight
from shave.passes.base import Context, Exactness, Pass, option
from shave.passes.problems import Convolution, Measured
from shave.passes.report import Report
from shave.passes.stages import Stage
from shave.passes.winograd.accuracy import Sample, bound, direct_error, winograd_error
from shave.passes.winograd.activations import samples
from shave.passes.winograd.layer import Layer, is_candidate, read
from shave.passes.winograd.operations import operations

MIN_GAIN = 1.05
"""Estimates are no better than that, and Winograd's method costs accuracy and memory."""
MIN_MEASURED_GAIN = 1.02
"""Measurements are better than that."""


@dataclass(frozen=True)
class Winograd(Pass):
    """Compute 3x3 convolutions by Winograd's method, with a half to a quarter of the multiplications.

    A float32 convolution of stride 1, without groups, becomes ``shave::winograd_conv2d``; its weights are transformed
    ahead, in float64, and rounded once. Of the tile sizes that the cost oracle holds for faster than the direct
    convolution, the fastest is taken whose error is within ``max_error``. The error is measured against a direct
    convolution in float64, on what the layer reads from the first batch of calibration data or else on random numbers,
    relative to the largest magnitude of its output. See :mod:`shave.passes.winograd.accuracy` for the bound beside it.

    Without an oracle the multiply-adds decide (:mod:`shave.passes.winograd.operations`).
    """

    name = "winograd"
    exactness = Exactness.EXACT
    ensures = Stage.LOWERED

    tile: Literal["auto", 2, 4, 6] = option("auto", help="outputs along one axis of a tile; auto: by cost, per layer")
    max_error: float = option(
        1e-5, search=(1e-6, 1e-5, 1e-4), help="largest error of a layer, relative to the largest magnitude it gives"
    )

    def __post_init__(self) -> None:
        if not 0 < self.max_error < 1:
            raise ValueError(f"max-error is {self.max_error}, but lies between 0 and 1")

    @property
    def tolerance(self) -> float:  # type: ignore[override]
        """Ten times what a layer may err: as much as the errors of a hundred layers add up to, being random."""
        return max(super().tolerance, 10 * self.max_error)

    def apply(self, program: Program, context: Context) -> Report:
        """See the class."""
        report = Report()
        order = {node.name: position for position, node in enumerate(program.graph.nodes)}
        choices = self._by_cost(program, context, report)
        measured = samples(program, [choice.layer for choice in choices], context)
        transformed: dict[tuple[fx.Node, int], fx.Node] = {}
        largest = 0.0
        with program.rewrite(by=self.name) as rewriter:
            for choice in context.track(choices, f"{self.name}: layers"):
                node = choice.layer.node
                if node not in measured:
                    report.skipped(node, "its output is zero or not finite, so that its error cannot be measured")
                    continue
                tile, error, rejected = self._within(choice, measured[node])
                if tile is None:
                    report.skipped(node, f"{rejected}; the limit is {self.max_error:.2g}")
                    continue
                weight = program.weight(choice.layer.weight)
                report.applied(
                    node,
                    f"tile {tile}: {choice.costs(tile)}; error {error:.2g} (direct {direct_error(measured[node]):.2g}, "
                    f"bound {bound(weight, tile):.2g})" + (f"; {rejected}" if rejected else ""),
                )
                _rewrite(program, rewriter, choice.layer, tile, transformed)
                largest = max(largest, error)
        report.entries.sort(key=lambda entry: order[entry.node])
        report.metrics["largest_error"] = largest
        return report

    def _by_cost(self, program: Program, context: Context, report: Report) -> list[_Choice]:
        """The layers that some tile makes faster, each with those tiles, fastest first."""
        cost: Callable[[Convolution], float | None] = context.oracle or operations
        text = _milliseconds if context.oracle else _multiply_adds
        choices = []
        for node in filter(is_candidate, program.calls):
            layer = read(node)
            if isinstance(layer, str):
                report.skipped(node, layer)
                continue
            direct = cost(layer.direct)
            tiles = {tile: cost(layer.winograd(tile)) for tile in (POINTS if self.tile == "auto" else [self.tile])}
            known = {tile: value for tile, value in tiles.items() if value is not None}
            if direct is None or not known:
                report.skipped(node, "the target has no kernel for it")
                continue
            by_cost = dict(sorted(known.items(), key=lambda item: item[1]))
            choice = _Choice(layer, direct, by_cost, text)
            if not choice.faster:
                report.skipped(node, f"no faster: tile {choice.best}: {choice.costs(choice.best)}")
                continue
            choices.append(choice)
        return choices

    def _within(self, choice: _Choice, given: Sample) -> tuple[int | None, float, str]:
        """The fastest tile whose error is within the limit, its error, and what was rejected before it."""
        rejected: list[str] = []
        for tile in choice.faster:
            error = winograd_error(given, tile)
            if error <= self.max_error:
                return tile, error, "; ".join(rejected)
            rejected.append(f"tile {tile} errs by {error:.2g}")
        return None, 0.0, "; ".join(rejected)


@dataclass(frozen=True)
class _Choice:
    """A layer with the costs of its methods.

    Attributes:
        layer: The layer.
        direct: Cost of the direct convolution.
        tiles: Cost by tile size, lowest first.
        text: Writes a cost.
    """

    layer: Layer
    direct: float
    tiles: dict[int, float]
    text: Callable[[float], str]

    @property
    def best(self) -> int:
        return next(iter(self.tiles))

    @property
    def faster(self) -> list[int]:
        gain = MIN_MEASURED_GAIN if isinstance(self.direct, Measured) else MIN_GAIN
        return [tile for tile, cost in self.tiles.items() if cost * gain < self.direct]

    def costs(self, tile: int) -> str:
        measured = "measured " * isinstance(self.direct, Measured)
        return f"{measured}{self.text(self.tiles[tile])} instead of {self.text(self.direct)}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _multiply_adds(operations: float) -> str:
    return f"{1e-6 * operations:.3g} M multiply-adds"


def _rewrite(
    program: Program, rewriter: Rewriter, layer: Layer, tile: int, transformed: dict[tuple[fx.Node, int], fx.Node]
) -> None:
    """Put the operator in the place of a layer; a weight that layers share is transformed once for each tile size."""
    key = (layer.weight, tile)
    if key not in transformed:
        old = program.weight(layer.weight)
        new = as_trainable(transform_weight(old, tile).to(old.dtype), old)
        transformed[key] = rewriter.weight(str(layer.weight.target), new, sources=[layer.weight])
    arguments = (layer.source, transformed[key], layer.bias, list(layer.padding), tile)
    operator = torch.ops.shave.winograd_conv2d.default
    rewriter.replace(layer.node, rewriter.call(operator, arguments, before=layer.node, sources=[layer.node]))
    rewriter.erase(layer.node)
