"""All that is found out of a program once, so that it can be quantized in whole or in part at no further cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from shave.ir.ops import argument
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter
from shave.passes.quantize.affine import Affine, Scheme
from shave.passes.quantize.by_cost import Verdict
from shave.passes.quantize.calibrate import observe
from shave.passes.quantize.correct_bias import correct
from shave.passes.quantize.insertion import insert_pairs
from shave.passes.quantize.integers import insert, is_integer, scales_of, to_nearest, weight_axis
from shave.passes.quantize.layerwise import Loss, losses
from shave.passes.quantize.observers.observer import Observer
from shave.passes.quantize.placement import Placement, place, selectable
from shave.passes.quantize.products import product_of
from shave.passes.report import Report
from shave.passes.weights import value_of

Batches = Callable[[], Iterable[tuple[torch.Tensor, ...]]]


@dataclass(frozen=True)
class Form:
    """What values become.

    Attributes:
        activations: Integers of activations.
        weights: Integers of the weights of each product, by its name.
        per_channel: Whether each output of a weight has its own scale.
    """

    activations: Scheme
    weights: Mapping[str, Scheme]
    per_channel: bool = True


class Recipe:
    """How to quantize one program.

    Args:
        program: In float; stays as it is.
        chosen: Names of the calls that may compute in integers.
        form: What values become.
        verdict: Which of their products stay in float, for their cost.
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
        verdict: Verdict,
        observer: Callable[[], Observer],
        batches: Batches,
        *,
        corrected: bool,
        by: str,
    ) -> None:
        self.program = program
        self._chosen = frozenset(chosen).difference(verdict.slower)
        self._verdict = verdict
        self._left: dict[str, str] = {}
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
        if self.products or verdict.stored:
            whole = program.clone()
            self._rewrite(whole, self._chosen)
            self.losses = losses(whole, program, batches())

    def leave(self, product: str, reason: str) -> None:
        """Let a product compute in float from now on."""
        self._chosen -= {product}
        self.products.remove(product)
        self._left[product] = reason

    def apply(self, program: Program, but: Collection[str] = ()) -> Report:
        """Quantize a clone of the recipe's program in place; products named in ``but`` stay in float."""
        placement, parameters, texts = self._rewrite(program, self._chosen - frozenset(but))
        if self._corrected:
            with program.rewrite(by=self._by) as rewriter:
                for node in dict.fromkeys([*placement.products, *texts]):
                    done = correct(program, rewriter, node, self.losses.get(node.name), self.program)
                    if done.startswith("mean"):
                        texts.setdefault(node, []).append(done)
        for node in placement.products:
            if node.name in self._verdict.faster:
                texts.setdefault(node, []).append(self._verdict.faster[node.name])
        back = dict.fromkeys(but, "back in float, since it costs too much quality in integers")
        return _report(placement, parameters, texts, self._verdict.slower | self._left | back)

    def _rewrite(
        self, program: Program, chosen: Collection[str]
    ) -> tuple[Placement, dict[fx.Node, Affine], dict[fx.Node, list[str]]]:
        placement = place(program, _named(program, chosen))
        parameters = {}
        for group in placement.groups():
            ranges = [self._ranges[value.name] for value in group]
            affine = self._form.activations.fit(min(low for low, _ in ranges), max(high for _, high in ranges))
            parameters.update(dict.fromkeys(group, affine))
        with program.rewrite(by=self._by) as rewriter:
            insert_pairs(rewriter, placement.readers, parameters)
            texts = self._store_weights(program, rewriter, placement.weights | self._weights_of_floats(program))
        return placement, parameters, texts

    def _weights_of_floats(self, program: Program) -> dict[fx.Node, fx.Node]:
        """The products that compute in float for their cost alone: their weights become integers all the same."""
        nodes = [node for node in program.calls if node.name in self._verdict.stored]
        products = [product for node in nodes if (product := product_of(program, node)) is not None]
        weights = {product.node: argument(product.node, product.weight) for product in products}
        return {node: weight for node, weight in weights.items() if weight.op == "get_attr"}

    def _store_weights(
        self, program: Program, rewriter: Rewriter, weights: Mapping[fx.Node, fx.Node]
    ) -> dict[fx.Node, list[str]]:
        """Turn the weights of products into integers; tells of each product in what form they are."""
        made: dict[tuple[fx.Node, int | None, Scheme], fx.Node] = {}
        texts = {}
        for node in [node for node in program.calls if node in weights]:
            weight = weights[node]
            axis = weight_axis(node, weight)
            if is_integer(program, weight, axis):
                texts[node] = ["weights are integers already"]
                continue
            axis, scheme = axis if self._form.per_channel else None, self._form.weights[node.name]
            if (weight, axis, scheme) not in made:
                values = value_of(program, weight)
                rounded = to_nearest(values, scales_of(values, axis, scheme), axis, scheme)
                stored = weight if weight.op == "get_attr" else weight.all_input_nodes[0]
                made[weight, axis, scheme] = insert(rewriter, rounded, weight, str(stored.target), node)
            node.replace_input_with(weight, made[weight, axis, scheme])
            how = "with one scale" if axis is None else "with a scale for each output"
            texts[node] = [f"weights from {scheme.low} to {scheme.high} {how}"]
        return texts


def _named(program: Program, names: Collection[str]) -> set[fx.Node]:
    return {node for node in selectable(program.calls) if node.name in names}


def _report(
    placement: Placement,
    parameters: dict[fx.Node, Affine],
    texts: dict[fx.Node, list[str]],
    left: Mapping[str, str],
) -> Report:
    report = Report()
    wanted: dict[fx.Node, list[fx.Node]] = {}
    for value, readers in placement.readers.items():
        for reader in readers:
            wanted.setdefault(reader, []).append(value)
    for node, (integer, text) in placement.reasons.items():
        text = left.get(node.name, text)
        if integer or node in texts:
            ranges = [_describe(value, parameters[value]) for value in wanted.get(node, ())]
            report.applied(node, "; ".join([text, *ranges, *texts.get(node, ())]))
        else:
            report.skipped(node, text)
    report.metrics["quantized_values"] = len(placement.readers)
    report.metrics["integer_products"] = len(placement.products)
    return report


def _describe(value: fx.Node, affine: Affine) -> str:
    return f"{value.name}: {str(affine.scheme.dtype).removeprefix('torch.')} {affine.scale:.4g}*(q-{affine.zero_point})"
