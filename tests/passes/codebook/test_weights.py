from __future__ import annotations

from typing import Any

import pytest
import torch

from shave.ir.program import Program
from shave.passes.codebook.weights import Weight, is_candidate, read
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten


def one(layer: Any, weight: tuple[int, ...], x: tuple[int, ...]) -> tuple[Program, Weight | str]:
    program = program_of(layer, {"x": torch.zeros(x)}, draw({"layer.weight": weight}))
    chosen = list(filter(is_candidate, program.calls))
    return program, read(program, chosen[0], chosen)


@pytest.mark.parametrize(
    ("layer", "weight", "x", "axis"),
    [
        (lambda x, w: aten.conv1d.default(x, w), (4, 3, 5), (2, 3, 9), 0),
        (lambda x, w: aten.conv2d.default(x, w), (4, 3, 5, 2), (2, 3, 9, 9), 0),
        (lambda x, w: aten.conv_transpose2d.input(x, w), (3, 4, 5, 2), (2, 3, 9, 9), 1),
        (lambda x, w: aten.linear.default(x, w), (4, 3), (2, 3), 0),
        (lambda x, w: aten.mm.default(x, w), (3, 4), (2, 3), 1),
        (lambda x, w: aten.matmul.default(x, w), (2, 3, 4), (2, 5, 3), 2),
    ],
)
def test_rows_are_output_channels(layer: Any, weight: tuple[int, ...], x: tuple[int, ...], axis: int) -> None:
    _, found = one(layer, weight, x)
    assert isinstance(found, Weight)
    assert found.axis == axis
    matrix = found.matrix
    assert matrix.shape == (weight[axis], found.tensor.numel() // weight[axis])
    for channel in range(weight[axis]):
        torch.testing.assert_close(matrix[channel], found.tensor.select(axis, channel).reshape(-1).double())
    assert torch.equal(found.restored(matrix).float(), found.tensor)


def test_products_of_activations_and_vectors_are_no_layers() -> None:
    program = program_of(
        lambda x, v: aten.matmul.default(aten.matmul.default(x, x), v), {"x": torch.zeros(3, 3)}, draw({"v": (3,)})
    )
    assert not any(map(is_candidate, program.calls))


@pytest.mark.parametrize(
    ("layer", "weight", "x", "reason"),
    [
        (
            lambda x, w: aten.linear.default(aten.linear.default(x, w), aten.t.default(w)),
            (3, 3),
            (2, 3),
            "shared with t_",
        ),
        (lambda x, w: aten.addmm.default(w, x, w), (3, 3), (3, 3), "another operand too"),
        (lambda x, w: aten.mm.default(aten.linear.default(x, w), w), (3, 3), (2, 3), "other output channels"),
        (lambda x, w: aten.linear.default(x, aten.neg.default(w)), (3, 3), (2, 3), "run fold-constants first"),
        (lambda x, w: aten.linear.default(x, w), (0, 3), (2, 3), "empty"),
    ],
)
def test_why_some_stay(layer: Any, weight: tuple[int, ...], x: tuple[int, ...], reason: str) -> None:
    _, found = one(layer, weight, x)
    assert isinstance(found, str)
    assert reason in found
