from __future__ import annotations

import numpy as np
import pytest
import torch

from shave.ir.program import Program
from shave.passes.factorize.drift import POINTS, measured
from shave.passes.factorize.factorize import Factorize
from shave.passes.factorize.layer import Layer, is_candidate, read
from shave.passes.factorize.metric import Metric
from shave.passes.factorize.options import choices
from shave.passes.factorize.plan import Candidate, whole_costs
from shave.passes.factorize.svd import Svd
from shave.passes.statistics import input_moments
from tests.passes.contract import reasons, run_pass
from tests.passes.factorize.layers import correlated, random
from tests.passes.handmade import program_of

aten = torch.ops.aten

FIRST, SECOND = (random(24, 30, seed=seed).float() for seed in (0, 1))
SMALL = 0.01


def branches() -> Program:
    """Two layers of one input, of which the second hardly matters; and an output of integers."""

    def forward(x, first, second):
        total = aten.relu.default(aten.linear.default(x, first)) + SMALL * aten.linear.default(x, second)
        return total, aten.argmax.default(total, -1)

    x = {"x": torch.zeros(2, 30)}
    return program_of(forward, x, {"first": FIRST, "second": SECOND}, dynamic={"x": {0: "batch"}})


def batches() -> list[tuple[torch.Tensor, ...]]:
    return [(part,) for part in correlated(30, 96).float().split(40)]


def candidates(program: Program, data: bool = True) -> list[Candidate]:
    layers = [layer for node in filter(is_candidate, program.calls) if isinstance(layer := read(program, node), Layer)]
    readers = {layer.node: (layer.source, layer.features, lambda value: value) for layer in layers}
    moments = input_moments(program, readers, batches())
    metrics = [Metric.of(moments[layer.node]) if data else Metric() for layer in layers]
    return [
        Candidate(layer, [Svd(layer, metric)], whole_costs(layer, None))
        for layer, metric in zip(layers, metrics, strict=True)
    ]


def curves_of(found: list[Candidate]) -> list[list]:
    return [choices(each.methods, lambda costs: costs.macs, each.costs.macs, None, 1) for each in found]


@pytest.mark.parametrize("data", [True, False])
def test_a_drift_is_what_the_outputs_of_the_split_program_move_by(data: bool) -> None:
    program = branches()
    found = candidates(program, data)
    curves = measured(program, found, curves_of(found), batches())
    x = torch.cat([batch[0] for batch in batches()]).double().numpy()
    mean = x.mean(0)
    for place, (candidate, curve) in enumerate(zip(found, curves, strict=True)):
        for choice in (curve[0], curve[-1]):  # those are tried themselves
            weights = [FIRST.double().numpy(), SECOND.double().numpy()]
            product = candidate.fitted(choice).product.numpy()
            shift = (weights[place] - product) @ mean if data else 0.0
            wanted = np.maximum(x @ weights[0].T, 0) + SMALL * x @ weights[1].T
            weights[place] = product
            parts = [x @ weight.T for weight in weights]
            parts[place] = parts[place] + shift
            made = np.maximum(parts[0], 0) + SMALL * parts[1]
            expected = ((made - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum()
            assert choice.drift == pytest.approx(expected, rel=1e-3)


def test_between_what_was_tried_drifts_grow_with_the_error() -> None:
    program = branches()
    found = candidates(program)
    curves = curves_of(found)
    assert max(map(len, curves)) > POINTS
    for before, after in zip(curves, measured(program, found, curves, batches()), strict=True):
        assert [choice.ranks for choice in before] == [choice.ranks for choice in after]
        drifts = [choice.drift for choice in after]
        assert drifts == sorted(drifts, reverse=True)
        assert drifts[0] > 2 * drifts[-1]
        assert [choice.loss for choice in after] == drifts
        assert [choice.loss for choice in before] == [choice.error for choice in before]
    assert measured(program, found, [[] for _ in found], batches()) == [[], []]


def test_a_budget_goes_to_the_layer_that_hardly_matters() -> None:
    """By their own errors both layers would lose alike."""
    given = {"calibration": [batch[0] for batch in batches()]}
    _, report = run_pass(Factorize(macs=0.7, repair="none"), branches(), **given)
    first, second = reasons(report).values()
    assert first == "skipped: other layers save the same at a lower loss"
    assert second.startswith("applied: svd of rank ")


def test_what_gives_no_number_counts_as_the_worst() -> None:
    program = program_of(
        lambda x, w: aten.log.default(aten.linear.default(x, w) + 1.0),
        {"x": torch.zeros(2, 6)},
        {"w": torch.eye(6)},
        dynamic={"x": {0: "batch"}},
    )
    layer = read(program, program.calls[0])
    assert isinstance(layer, Layer)
    found = [Candidate(layer, [Svd(layer, Metric())], whole_costs(layer, None))]
    inputs = [(torch.full((4, 6), -0.999) + 0.5 * torch.eye(6)[:4],)]
    (curve,) = measured(program, found, curves_of(found), inputs)
    assert all(choice.drift is not None and np.isfinite(choice.drift) for choice in curve)
