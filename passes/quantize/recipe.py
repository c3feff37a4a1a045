"""All that is found out of a program once, so that it can be quantized in whole or in part at no further cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.quantize.affine import Affine, Scheme
from shave.passes.quantize.calibrate import observe
from shave.passes.quantize.correct_bias import correct
from shave.passes.quantize.insertion import insert_pairs
from shave.passes.quantize.integers import insert, is_integer, scales_of, to_nearest, weight_axis
from shave.passes.quantize.layerwise import Loss, losses
from shave.passes.quantize.observers.observer import Observer
from shave.passes.quantize.placement import Placement, place, selectable
from shave.passes.report import Report
from shave.passes.weights import value_of

Batches = Callable[[], Iterable[tuple[torch.Tensor, ...]]]


@dataclass(frozen=True)
class Form:
    """What values become.

    Attributes:
        activations: Integers of activations.
        weights: Integers of weights.
        per_channel: Whether each output of a weight has its own scale.
    """

    activations: Scheme
    weights: Scheme
    per_channel: bool = True


class Recipe:
    """How to quantize one program.

    Args:
        program: In float; stays as it is.
        chosen: Names of the calls that may compute in integers.
        form: What values become.
        observer: Makes an observer of one activation.
        batches: Gives the calibration data anew each time.
        corrected: Whether mean errors are taken out of biases.
        by: The pass on whose behalf.
    """

    def __init__(
        self,
        program: Program,
        chosen: Collection[str],
        form: Form,
        observer: Callable[[], Observer],
        batches: Batches,
        *,
        corrected: bool,
        by: str,
    ) -> None:
        self.program = program
        self._chosen = frozenset(chosen)
        self._form = form
        self._corrected = corrected
        self._by = by
        placement = place(program, _named(program, self._chosen))
        self.products = [node.name for node in placement.products]
        observers = {value: observer() for value in placement.readers}
        if observers:
            observe(program, observers, batches())
        self._ranges = {value.name: each.range(form.activations) for value, each in observers.items()}
        self.losses: dict[str, Loss] = {}
        if self.products:
            whole = program.clone()
            self._rewrite(whole, self._chosen)
            self.losses = losses(whole, program, batches())

    def apply(self, program: Program, but: Collection[str] = ()) -> Report:
        """Quantize a clone of the recipe's program in place; products named in ``but`` stay in float."""
        placement, parameters, texts = self._rewrite(program, self._chosen - frozenset(but))
        if self._corrected:
            with program.rewrite(by=self._by) as rewriter:
                for node in placement.products:
                    done = correct(program, rewriter, node, self.losses.get(node.name), self.program)
                    if done.startswith("mean"):
                        texts[node] = "; ".join([*([texts[node]] if node in texts else []), done])
        return _report(placement, parameters, texts, but)

    def _rewrite(
        self, program: Program, chosen: Collection[str]
    ) -> tuple[Placement, dict[fx.Node, Affine], dict[fx.Node, str]]:
        placement = place(program, _named(program, chosen))
        parameters = {}
        for group in placement.groups():
            ranges = [self._ranges[value.name] for value in group]
            affine = self._form.activations.fit(min(low for low, _ in ranges), max(high for _, high in ranges))
            parameters.update(dict.fromkeys(group, affine))
        with program.rewrite(by=self._by) as rewriter:
            insert_pairs(rewriter, placement.readers, parameters)
            texts = self._store_weights(program, rewriter, placement)
        return placement, parameters, texts

    def _store_weights(self, program: Program, rewriter: Rewriter, placement: Placement) -> dict[fx.Node, str]:
        """Turn the weights of products into integers; tells of each product in what form they are."""
        scheme = self._form.weights
        made: dict[tuple[fx.Node, int | None], fx.Node] = {}
        texts = {}
        for node in placement.products:
            weight = placement.weights.get(node)
            if weight is None:
                continue
            axis = weight_axis(node, weight)
            if is_integer(program, weight, axis):
                texts[node] = "weights are integers already"
                continue
            axis = axis if self._form.per_channel else None
            if (weight, axis) not in made:
                values = value_of(program, weight)
                rounded = to_nearest(values, scales_of(values, axis, scheme), axis, scheme)
                stored = weight if weight.op == "get_attr" else weight.all_input_nodes[0]
                made[weight, axis] = insert(rewriter, rounded, weight, str(stored.target), node)
            node.replace_input_with(weight, made[weight, axis])
            how = "with one scale" if axis is None else "with a scale for each output"
            texts[node] = f"weights from {scheme.low} to {scheme.high} {how}"
        return texts


def _named(program: Program, names: Collection[str]) -> set[fx.Node]:
    return {node for node in selectable(program.calls) if node.name in names}


def _report(
    placement: Placement, parameters: dict[fx.Node, Affine], texts: dict[fx.Node, str], but: Collection[str]
) -> Report:
    report = Report()
    wanted: dict[fx.Node, list[fx.Node]] = {}
    for value, readers in placement.readers.items():
        for reader in readers:
            wanted.setdefault(reader, []).append(value)
    for node, (integer, text) in placement.reasons.items():
        if node.name in but:
            report.skipped(node, "back in float, since it costs too much quality in integers")
        elif not integer:
            report.skipped(node, text)
        else:
            parts = [text, *(_describe(value, parameters[value]) for value in wanted.get(node, ()))]
            report.applied(node, "; ".join([*parts, texts[node]] if node in texts else parts))
    report.metrics["quantized_values"] = len(placement.readers)
    report.metrics["integer_products"] = len(placement.products)
    return report


def _describe(value: fx.Node, affine: Affine) -> str:
    return f"{value.name}: {str(affine.scheme.dtype).removeprefix('torch.')} {affine.scale:.4g}*(q-{affine.zero_point})"
