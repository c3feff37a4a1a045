"""Mixed precision: as many layers in integers as quality allows."""

from __future__ import annotations

from collections.abc import Callable

from shave.ir.program import Program
from shave.passes.base import Context
from shave.passes.probe import probe_inputs
from shave.passes.quantize.recipe import Recipe
from shave.passes.quantize.sensitivity import ranking
from shave.passes.report import Report


def mixed(
    recipe: Recipe, program: Program, evaluate: Callable[[Program], float], max_drop: float, context: Context
) -> Report:
    """Quantize a clone of the recipe's program in place, with as few products in float as quality asks for.

    Products are ranked by what each does to the outputs by itself. The least number of them that must go back to
    float, worst first, is searched by bisection; with all of them in float the program is the one given, so something
    is always found.

    Args:
        recipe: How to quantize.
        program: Is changed.
        evaluate: Quality of a program, larger is better.
        max_drop: How far it may fall below that of the float program.
        context: Shows progress.
    """
    least = float(evaluate(recipe.program)) - max_drop

    def quality(but: list[str]) -> float:
        trial = recipe.program.clone()
        recipe.apply(trial, but)
        return float(evaluate(trial))

    reached = {0: quality([])}
    order: list[str] = []
    if not reached[0] >= least:
        inputs = [probe_inputs(recipe.program, context.calibration, context.seed)]
        order = list(ranking(recipe, inputs, lambda names: context.track(names, "quantize: sensitivity")))
        low, high = 0, len(order)
        reached[high] = least + max_drop
        while high - low > 1:
            middle = (low + high) // 2
            reached[middle] = quality(order[:middle])
            low, high = (low, middle) if reached[middle] >= least else (middle, high)
    count = min(count for count, value in reached.items() if value >= least)
    report = recipe.apply(program, order[:count])
    report.metrics["quality_before"] = least + max_drop
    report.metrics["quality_after"] = reached[count]
    report.metrics["products_in_float"] = count
    return report
