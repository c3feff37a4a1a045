"""Criteria on weights, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shave.ir.program import Program
from shave.passes.prune.groups import find_groups
from shave.passes.prune.importance import CRITERIA
from shave.passes.prune.importance.criterion import Evidence
from tests.passes.contract import run_pass
from tests.passes.prune.nets import perceptron, residual, separable


def scores(program: Program, criterion: str, reduction: Any = "mean") -> dict[str, np.ndarray]:
    groups = [group for group in find_groups(program) if not group.reason]
    found = CRITERIA[criterion](reduction).score(Evidence(program, None, torch.Generator().manual_seed(0)), groups)
    return {name: score.values.numpy() for name, score in found.items()}


def rows(program: Program, name: str) -> np.ndarray:
    weight = dict(program.weights())[name].detach().numpy().astype(np.float64)
    return weight.reshape(len(weight), -1)


def test_norms_of_filters() -> None:
    program = residual()
    np.testing.assert_allclose(scores(program, "l1")["conv1"], np.abs(rows(program, "conv1.weight")).sum(1))
    np.testing.assert_allclose(scores(program, "l2")["conv1"], np.linalg.norm(rows(program, "conv1.weight"), axis=1))


@pytest.mark.parametrize(
    ("reduction", "combine"), [("mean", np.mean), ("max", np.max), ("sum", np.sum), ("first", lambda x, axis: x[0])]
)
def test_several_layers_of_one_group(reduction: str, combine: Any) -> None:
    program = residual()
    each = np.stack([np.abs(rows(program, name)).sum(1) for name in ("stem.weight", "conv2.weight")])
    np.testing.assert_allclose(scores(program, "l1", reduction)["stem"], combine(each, axis=0))


def test_the_geometric_median() -> None:
    program = residual()
    filters = rows(program, "down.weight")
    distances = np.array([[np.linalg.norm(one - other) for other in filters] for one in filters])
    np.testing.assert_allclose(scores(program, "fpgm")["down"], distances.sum(1), rtol=1e-6)


def test_lamp() -> None:
    program = perceptron()
    squares = np.square(rows(program, "first.weight")).sum(1)
    want = [square / squares[squares >= square].sum() for square in squares]
    np.testing.assert_allclose(scores(program, "lamp")["first"], want)


def test_scales_of_norms_and_what_stands_for_folded_ones() -> None:
    program = residual()
    gamma = dict(program.weights())["norm1.weight"].detach().numpy()
    np.testing.assert_allclose(scores(program, "bn-scale")["conv1"], np.abs(gamma), rtol=1e-6)
    folded, _ = run_pass("fold-batchnorm", program)
    np.testing.assert_allclose(
        scores(folded, "bn-scale")["conv1"], np.linalg.norm(rows(folded, "conv1.weight"), axis=1)
    )
    _, report = run_pass("prune-channels{ratio=0.5 criterion=bn-scale}", folded)
    assert "no norm with a scale (any more)" in next(entry.text for entry in report.applied if "conv1" in entry.text)


def test_depthwise_filters_count_as_filters_of_no_layer() -> None:
    program = separable()
    np.testing.assert_allclose(scores(program, "l1")["expand"], np.abs(rows(program, "expand.weight")).sum(1))


def test_duplicates_rank_lowest_by_correlation() -> None:
    program = perceptron()
    weight = dict(program.weights())["first.weight"].data
    weight[3] = 0.5 * weight[7]  # the smaller of two that point the same way
    found = scores(program, "weight-correlation")["first"]
    assert found.argmin() == 3
    assert found[3] == pytest.approx(0, abs=1e-6)
    assert found[7] > 0.01


def test_chance_is_fair_and_repeatable() -> None:
    program = residual()
    first, second = scores(program, "random"), scores(program, "random")
    assert all((first[name] == second[name]).all() for name in first)
    assert len({tuple(np.argsort(values[:6])) for values in first.values()}) > 1
