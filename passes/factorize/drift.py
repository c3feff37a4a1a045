"""What the error of one layer does to the outputs of the program: measured on data, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from shave.ir.program import Program
from shave.passes.compare import outputs_of
from shave.passes.factorize.options import Choice
from shave.passes.factorize.plan import Candidate
from shave.passes.factorize.surgery import bias_of

POINTS = 4
"""Choices of a layer that are tried; what lies between them is interpolated."""
LEAST, MOST = 1e-12, 1e12
"""Errors and drifts beyond count as these: what is left below is rounding, and what is above is no output."""

Curve = list[Choice]


def measured(
    program: Program,
    candidates: Sequence[Candidate],
    curves: Sequence[Curve],
    batches: Sequence[tuple[torch.Tensor, ...]],
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Curve]:
    """Give the choices of all layers the drift of the program's outputs, on one scale over all layers.

    The errors of two layers say little of each other: what one of them gets wrong may be the answer itself, or may
    vanish in the next softmax. So a few choices of each layer are put in its place, the rest of the program as it is.
    The drift is the squared difference of the outputs over their squared distance from their mean, of several outputs
    that of the worst; between the choices that were tried it is interpolated, as a power of the error.

    Args:
        program: Stays as it is.
        candidates: Layers that can be split.
        curves: The choices of each, from the cheapest to the most exact.
        batches: What to run; memory for all values of one of them is taken.
        track: Shows progress over the batches.

    Returns:
        The same choices with :attr:`Choice.drift`.
    """
    places = [sorted({round(k) for k in np.linspace(0, len(curve) - 1, POINTS)}) if curve else [] for curve in curves]
    power = _power(program, batches)
    sums = [np.zeros((len(tried), len(power))) for tried in places]
    for batch in track(batches):
        replay = _Replay(program, batch)
        for candidate, curve, tried, total in zip(candidates, curves, places, sums, strict=True):
            for row, place in zip(total, tried, strict=True):
                value = _split_value(program, candidate, curve[place], replay)
                row += replay.squared_errors(candidate.layer.node, value)
    errors = [np.nan_to_num((total / power).max(1, initial=0.0), nan=np.inf) for total in sums]
    return [_interpolated(*each) for each in zip(candidates, curves, places, errors, strict=True)]


def _interpolated(candidate: Candidate, curve: Curve, places: Sequence[int], drifts: np.ndarray[Any, Any]) -> Curve:
    """The choices with a drift each, which never falls as they get cheaper."""
    if not curve:
        return curve
    known = np.maximum.accumulate(np.clip(drifts, LEAST, MOST)[::-1])
    fitted = [candidate.fitted(curve[place]).error for place in reversed(places)]
    at = np.maximum.accumulate(np.log(np.maximum(fitted, LEAST)))
    found = np.exp(np.interp(np.log(np.maximum([c.error for c in curve], LEAST)), at, np.log(known)))
    return [replace(choice, drift=float(drift)) for choice, drift in zip(curve, found, strict=True)]


def _split_value(program: Program, candidate: Candidate, choice: Choice, replay: _Replay) -> torch.Tensor:
    """What a layer gives with the weight that a choice amounts to."""
    layer, fitted = candidate.layer, candidate.fitted(choice)
    x, bias = replay.value(layer.source), bias_of(program, candidate, choice, fitted)
    with torch.no_grad():
        return layer.run(x, fitted.product.to(x.dtype), bias)


def _power(program: Program, batches: Sequence[tuple[torch.Tensor, ...]]) -> np.ndarray[Any, Any]:
    """Squared distances from the mean, over all batches, of each output; of those that are no floats, endless."""
    with torch.no_grad():
        outputs = [outputs_of(program(*batch)) for batch in batches]
    found = []
    for several in zip(*outputs, strict=True):
        values = torch.cat([each.double().reshape(-1) for each in several])
        power = float((values - values.mean()).square().sum())
        found.append(max(power, 1e-30) if several[0].is_floating_point() else np.inf)
    return np.array(found)


class _Replay:
    """One batch, run once and kept, and run again behind nodes that give another value."""

    def __init__(self, program: Program, batch: Sequence[torch.Tensor]) -> None:
        interpreter = fx.Interpreter(program.module, garbage_collect_values=False)
        with torch.no_grad():
            self._outputs = outputs_of(interpreter.run(*batch))
        self._values = dict(interpreter.env)
        self._order = list(program.graph.nodes)
        self._place = {node: place for place, node in enumerate(self._order)}

    def value(self, node: fx.Node) -> torch.Tensor:
        """What a node gives."""
        return cast(torch.Tensor, self._values[node])

    def squared_errors(self, node: fx.Node, value: torch.Tensor) -> list[float]:
        """By how much the outputs move where a node gives another value; 0 for those that are no floats."""
        fresh: dict[fx.Node, Any] = {node: value}

        def load(each: fx.Node) -> Any:
            return fresh.get(each, self._values.get(each))

        outputs = self._outputs
        with torch.no_grad():
            for each in self._order[self._place[node] + 1 :]:
                if not any(read in fresh for read in each.all_input_nodes):
                    continue
                args, kwargs = fx.map_arg((each.args, each.kwargs), load)
                if each.op == "output":
                    outputs = outputs_of(args[0])
                else:
                    fresh[each] = cast("Callable[..., Any]", each.target)(*args, **kwargs)
        pairs = zip(outputs, self._outputs, strict=True)
        return [
            float((got.double() - want.double()).square().sum()) if want.is_floating_point() else 0.0
            for got, want in pairs
        ]
