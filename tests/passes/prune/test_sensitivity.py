from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from shave.ir.errors import PipelineError
from shave.passes.prune.ablation import ablate
from shave.passes.prune.groups import find_groups
from shave.passes.prune.sensitivity import scan
from shave.passes.prune.sensitivity_chart import draw
from shave.passes.prune.statistics import gather
from shave.passes.prune.surgery import cut
from tests.passes.oracle import random_inputs
from tests.passes.prune.nets import NETS, data, perceptron, residual


@pytest.mark.parametrize("name", ["residual", "separable", "perceptron"])
def test_an_ablation_gives_what_a_cut_gives(name: str) -> None:
    program = NETS[name]()
    inputs = random_inputs(program, 0)
    for group in find_groups(program):
        if group.reason:
            continue
        kept = list(range(0, group.units, 2))
        smaller = program.clone()
        cut(smaller, {group.name: kept}, "test")
        lesser = ablate(program, group, kept)
        torch.testing.assert_close(lesser(*inputs), smaller(*inputs), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(lesser(*inputs), program(*inputs), atol=1e-3)  # type: ignore[arg-type]


def test_means_do_less_harm_than_zeros() -> None:
    program = residual()
    batches = data(program)
    group = next(group for group in find_groups(program) if group.name == "conv1")
    statistics = gather(program, [group], batches)[group.name]
    kept = [0, 1, 2]
    want = torch.cat([program(*batch) for batch in batches])  # type: ignore[misc]
    errors = [
        float((torch.cat([lesser(*batch) for batch in batches]) - want).square().sum())  # type: ignore[misc]
        for lesser in (ablate(program, group, kept), ablate(program, group, kept, statistics))
    ]
    assert errors[1] < errors[0]


def test_more_gone_is_more_error_and_a_useless_layer_has_none() -> None:
    program = perceptron()
    dict(program.weights())["second.weight"].data[:, :6] = 0  # half of the first layer's units reach nothing
    found = {each.group: each for each in scan(program, criterion="fluctuation", calibration=data(program))}
    first = found["first"].points
    assert [point.units for point in first] == sorted((point.units for point in first), reverse=True)
    assert all(point.error < 1e-9 for point in first if point.units >= 6)
    assert all(point.error > 1e-3 for point in first if point.units < 6)
    assert [round(point.ratio * 12) for point in first] == [12 - point.units for point in first]


def test_quality_is_asked_for_each_cut() -> None:
    program = perceptron()
    found = scan(program, evaluate=lambda lesser: float(lesser.cost().parameters), ratios=[0.25, 0.5])
    assert [len(each.points) for each in found] == [2, 2]
    assert {point.quality for each in found for point in each.points} == {float(program.cost().parameters)}
    assert found[0].to_json()["points"][0]["quality"] == program.cost().parameters


def test_scopes_and_bad_input() -> None:
    program = residual()
    assert [each.group for each in scan(program, only=["conv1"])] == ["conv1"]
    assert "conv1" not in [each.group for each in scan(program, skip=["conv1"])]
    with pytest.raises(PipelineError, match=r"ratio 1\.5 is not between 0 and 1"):
        scan(program, ratios=[0.5, 1.5])
    with pytest.raises(PipelineError, match="criterion apoz needs calibration data"):
        scan(program, criterion="apoz")


def test_the_program_stays() -> None:
    program = residual()
    digest = program.structural_hash()
    scan(program, calibration=data(program))
    assert program.structural_hash() == digest


def test_the_chart_has_every_group_and_error() -> None:
    found = scan(residual())
    text = draw(found)
    tree = ElementTree.fromstring(text)
    words = ["".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    for each in found:
        assert each.group in words
        assert all(f"{point.error:.2g}" in words for point in each.points)
    colours = {element.get("fill") for element in tree.iter("{http://www.w3.org/2000/svg}rect")}
    assert len(colours) > 1
    assert draw(scan(residual())) == text
    assert ElementTree.fromstring(draw([])) is not None


def test_scores_of_equal_seeds_are_equal() -> None:
    first, second = (scan(residual(), criterion="random", seed=3) for _ in range(2))
    assert [each.to_json() for each in first] == [each.to_json() for each in second]
    other = scan(residual(), criterion="random", seed=4)
    assert not np.allclose([p.error for e in first for p in e.points], [p.error for e in other for p in e.points])
