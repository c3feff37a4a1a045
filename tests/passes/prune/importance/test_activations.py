"""Criteria on activations, against NumPy on values that torch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import shave
from shave.ir.program import Program
from shave.passes.prune.groups import find_groups
from shave.passes.prune.importance import CRITERIA
from shave.passes.prune.importance.criterion import Evidence
from tests.passes.contract import run_pass
from tests.passes.prune.nets import data, perceptron, residual


def scores(program: Program, criterion: str) -> dict[str, np.ndarray]:
    groups = [group for group in find_groups(program) if not group.reason]
    evidence = Evidence(program, lambda: iter(data(program)), torch.Generator().manual_seed(0))
    return {name: score.values.numpy() for name, score in CRITERIA[criterion]().score(evidence, groups).items()}


def hidden(program: Program) -> np.ndarray:
    """What the second layer of the perceptron reads, [samples, units], float64."""
    weights = {name: tensor.detach() for name, tensor in program.weights()}
    inputs = torch.cat([batch[0] for batch in data(program)])
    return torch.relu(inputs @ weights["first.weight"].T + weights["first.bias"]).double().numpy()


def test_simple_statistics() -> None:
    program = perceptron()
    values = hidden(program)
    np.testing.assert_allclose(scores(program, "variance")["first"], values.var(0), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(scores(program, "magnitude")["first"], np.abs(values).mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores(program, "apoz")["first"], (values != 0).mean(0))


def test_fluctuation_weighs_variance_with_its_readers() -> None:
    program = perceptron()
    readers = np.square(dict(program.weights())["second.weight"].detach().numpy()).sum(0)
    np.testing.assert_allclose(
        scores(program, "fluctuation")["first"], hidden(program).var(0) * readers, rtol=1e-4, atol=1e-9
    )


def test_correlation_finds_the_duplicate() -> None:
    program = perceptron()
    weights = dict(program.weights())
    weights["first.weight"].data[2] = 0.5 * weights["first.weight"].data[5]
    weights["first.bias"].data[2] = 0.5 * weights["first.bias"].data[5]
    found = scores(program, "correlation")["first"]
    assert found.argmin() == 2
    assert found[2] == pytest.approx(0, abs=1e-6)


def test_duplicates_are_merged_without_loss() -> None:
    program = perceptron()
    weights = dict(program.weights())
    for one, other in ((0, 5), (2, 5), (4, 9)):
        for name in ("first.weight", "first.bias"):
            weights[name].data[one] = weights[name].data[other]
    inputs = data(program, 1)[0]
    for text in ("correlation repair=none", "weight-correlation"):
        result, _ = run_pass(
            f"prune-channels{{ratio=0.25 only=[first] criterion={text}}}",
            program,
            calibration=data(program) if "repair" in text else None,
        )
        assert result.cost().macs < program.cost().macs
        torch.testing.assert_close(result(*inputs), program(*inputs), rtol=1e-4, atol=1e-5)


def test_constants_go_into_the_bias_behind() -> None:
    """Units whose inputs are cut off give their bias alone; their removal changes nothing."""
    program = perceptron()
    weights = dict(program.weights())
    weights["first.weight"].data[[1, 6, 8]] = 0
    weights["first.bias"].data[[1, 6, 8]] = torch.tensor([2.0, 3.0, 4.0])
    inputs = data(program, 1)[0]
    result, _ = run_pass(
        "prune-channels{ratio=0.25 only=[first] criterion=variance repair=none}", program, calibration=data(program)
    )
    torch.testing.assert_close(result(*inputs), program(*inputs), rtol=1e-4, atol=1e-5)
    without, _ = run_pass("prune-channels{ratio=0.25 only=[first] criterion=l1}", program)
    assert not torch.allclose(without(*inputs), program(*inputs), atol=0.1)


def test_taylor_predicts_the_change_of_a_linear_model() -> None:
    """Without activations the first order is the whole truth: the mean squared change of the outputs."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = torch.nn.Linear(7, 6), torch.nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.first(x))

    program = shave.trace(Linear().eval(), (torch.randn(2, 7),), dynamic_shapes={"x": {0: "N"}})
    weights = {name: tensor.detach() for name, tensor in program.weights()}
    batches = data(program, 200, 16)
    groups = [group for group in find_groups(program) if not group.reason]
    evidence = Evidence(program, lambda: iter(batches), torch.Generator().manual_seed(0))
    found = CRITERIA["taylor"]().score(evidence, groups)["first"].values.numpy()
    inputs = torch.cat([batch[0] for batch in batches])
    values = inputs @ weights["first.weight"].T + weights["first.bias"]
    lost = (values[:, None, :] * weights["head.weight"]).square().sum((0, 1)).numpy()
    np.testing.assert_allclose(found / found.sum(), lost / lost.sum(), rtol=0.15)


def test_taylor_leaves_the_program_and_its_gradients_alone() -> None:
    program = residual()
    before = program.structural_hash()
    scores(program, "taylor")
    assert program.structural_hash() == before
    assert all(tensor.grad is None for _, tensor in program.weights())
