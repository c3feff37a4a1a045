"""Leaves first layers in float that are small and whose integers do most of the harm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.passes.compare import outputs_of
from shave.passes.quantize.recipe import Recipe
from shave.passes.quantize.sensitivity import signal_to_noise
from shave.passes.quantize.table import PRODUCTS, Kind, kind_of

GAIN_DB = 3.0
"""By how much the signal to noise of the outputs has to rise: to half of the error."""


def spare(recipe: Recipe, inputs: Sequence[tuple[torch.Tensor, ...]], share: float) -> None:
    """Take products of the program's inputs out of a recipe whose integers do as much harm as all others together.

    Inputs come as users have them: channels may differ much in range, as in a spectrum, and one scale for all leaves
    the small ones few integers. Behind the first layer, normalisation and training have levelled them.

    Args:
        recipe: Is changed.
        inputs: Batches to run.
        share: Share of the multiply-adds that may go back to float, in all.
    """
    cost = recipe.program.cost()
    left = share * cost.macs
    first = {node.name for node in recipe.program.calls if _reads_input(node)}.intersection(recipe.products)
    small = [name for name in recipe.products if name in first and cost.macs_by_node[name] <= left]
    if not small:
        return
    wants = [outputs_of(recipe.program(*batch)) for batch in inputs]
    reached = signal_to_noise(recipe, [], inputs, wants)
    for name in sorted(small, key=lambda name: recipe.losses[name].sqnr_db):
        part = cost.macs_by_node[name]
        if part > left:
            continue
        without = signal_to_noise(recipe, [name], inputs, wants)
        if without >= reached + GAIN_DB:
            harm = f"{reached:.1f} dB of signal to noise in the outputs with its integers, {without:.1f} dB without"
            recipe.leave(name, f"in float: {100 * part / cost.macs:.2g} % of the multiply-adds, but {harm}")
            left, reached = left - part, without


def _reads_input(node: fx.Node) -> bool:
    """Whether a product reads an input of the program, as it is or moved."""
    if op_name(node) not in PRODUCTS:
        return False
    source = argument(node, PRODUCTS[op_name(node)].data)
    while isinstance(source, fx.Node) and source.op == "call_function" and kind_of(source) is Kind.MOVEMENT:
        source = source.args[0]
    return isinstance(source, fx.Node) and source.op == "placeholder"
