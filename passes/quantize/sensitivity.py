"""Which layer hurts: what integers cost, product by product."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from shave.ir.names import names_of
from shave.ir.program import Program
from shave.passes.base import Context
from shave.passes.compare import difference, outputs_of

if TYPE_CHECKING:
    from shave.passes.quantize.recipe import Recipe

Track = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True)
class Damage:
    """What one product costs.

    Attributes:
        node: Its name.
        names: Under which the user may know it.
        sqnr_db: Signal to noise of its own result, on what it reads in the float program, dB.
        alone_db: That of the outputs if it alone computes in integers; of several outputs the worst.
        without_db: That of the outputs if all the others do.
        cumulative_db: That of the outputs if it and all that are worse are in float.
        quality: What ``evaluate`` says of the program without it in integers; None if it was not asked.
    """

    node: str
    names: tuple[str, ...]
    sqnr_db: float
    alone_db: float
    without_db: float
    cumulative_db: float
    quality: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Give plain data; infinite ratios become null."""
        data = {**vars(self), "names": list(self.names)}
        return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in data.items()}


def ranking(recipe: Recipe, inputs: Sequence[tuple[torch.Tensor, ...]], track: Track = iter) -> dict[str, float]:
    """The signal to noise of the outputs with each product alone in integers, dB; the worst first."""
    wants = [outputs_of(recipe.program(*batch)) for batch in inputs]
    found = {}
    for name in track(recipe.products):
        found[name] = signal_to_noise(recipe, [each for each in recipe.products if each != name], inputs, wants)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def sensitivity(
    recipe: Recipe,
    inputs: Sequence[tuple[torch.Tensor, ...]],
    *,
    evaluate: Callable[[Program], float] | None = None,
    track: Track = iter,
) -> list[Damage]:
    """Scan every product of a recipe.

    Args:
        recipe: How to quantize.
        inputs: Batches to run.
        evaluate: Quality of a program, larger is better.
        track: Shows progress over the products.

    Returns:
        The worst first, by the outputs' error if a product alone computes in integers.
    """
    wants = [outputs_of(recipe.program(*batch)) for batch in inputs]
    nodes = {node.name: node for node in recipe.program.calls}
    alone = ranking(recipe, inputs, track)
    found = []
    for place, (name, ratio) in enumerate(alone.items(), 1):
        quality = None
        if evaluate is not None:
            trial = recipe.program.clone()
            recipe.apply(trial, [name])
            quality = float(evaluate(trial))
        found.append(
            Damage(
                name,
                tuple(names_of(nodes[name])),
                recipe.losses[name].sqnr_db,
                ratio,
                signal_to_noise(recipe, [name], inputs, wants),
                signal_to_noise(recipe, list(alone)[:place], inputs, wants),
                quality,
            )
        )
    return found


def scan(
    program: Program,
    options: str = "quantize",
    *,
    calibration: Iterable[Any],
    samples: int = 16,
    evaluate: Callable[[Program], float] | None = None,
    track: Track = iter,
) -> list[Damage]:
    """Scan a program.

    Args:
        program: In float; stays as it is. The preset ``simplify`` should have run.
        options: The pass, as pipeline text: ``quantize{calibrate=minmax}``.
        calibration: Input tuples.
        samples: How many of them the outputs are compared on, rounded up to whole batches.
        evaluate: Quality of a program, larger is better.
        track: Shows progress over the products.

    Raises:
        PipelineError: The text is no ``quantize``, or what it needs is missing.
    """
    from shave.ir.errors import PipelineError
    from shave.passes.pipeline import parse
    from shave.passes.quantize.quantize import Quantize

    passes = parse(options)
    if len(passes) != 1 or not isinstance(passes[0], Quantize):
        raise PipelineError(f"{options!r} is not the pass quantize")
    context = Context(calibration=list(calibration))
    recipe = passes[0].recipe(program.clone(), context)
    return sensitivity(recipe, first(recipe, context, passes[0], samples), evaluate=evaluate, track=track)


def first(recipe: Recipe, context: Context, by: Any, samples: int) -> list[tuple[torch.Tensor, ...]]:
    """As many batches of the calibration data as hold so many samples."""
    found: list[tuple[torch.Tensor, ...]] = []
    count = 0
    for batch in context.batches(recipe.program, by):
        found.append(batch)
        count += len(batch[0]) if batch and batch[0].dim() else 1
        if count >= samples:
            break
    return found


def signal_to_noise(
    recipe: Recipe, but: Sequence[str], inputs: Sequence[tuple[torch.Tensor, ...]], wants: Sequence[list[Any]]
) -> float:
    """The signal to noise of the outputs with some products in float, dB; of several outputs the worst."""
    trial = recipe.program.clone()
    recipe.apply(trial, but)
    gots = [outputs_of(trial(*batch)) for batch in inputs]
    worst = math.inf
    for want, got in zip(zip(*wants, strict=True), zip(*gots, strict=True), strict=True):
        if want[0].is_floating_point():
            one, other = (torch.cat([each.reshape(-1) for each in side]) for side in (want, got))
            worst = min(worst, difference(one, other).sqnr_db)
    return worst
