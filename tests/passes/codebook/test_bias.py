from __future__ import annotations

from typing import Any

import pytest
import torch

from shave.passes.codebook.bias import bias_of
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten
SHIFT = torch.tensor([1.0, -2.0, 3.0, 0.5])


@pytest.mark.parametrize(
    ("layer", "weight", "x"),
    [
        (lambda x, w, b: aten.linear.default(x, w, b), (4, 3), (2, 3)),
        (lambda x, w, b: aten.linear.default(x, w), (4, 3), (2, 3)),
        (lambda x, w, b: aten.conv2d.default(x, w, b), (4, 3, 1, 1), (2, 3, 5, 5)),
        (lambda x, w, b: aten.conv2d.default(x, w, None, [2, 2]), (4, 3, 1, 1), (2, 3, 5, 5)),
        (lambda x, w, b: aten.addmm.default(b, x, w), (3, 4), (2, 3)),
    ],
)
def test_every_channel_of_the_output_moves_by_its_shift(
    layer: Any, weight: tuple[int, ...], x: tuple[int, ...]
) -> None:
    program = program_of(layer, {"x": torch.zeros(x)}, draw({"layer.weight": weight, "layer.bias": (4,)}))
    inputs = torch.randn(x)
    before = program(inputs)
    (node,) = program.calls
    bias = bias_of(node)
    assert bias is not None
    with program.rewrite(by="test") as rewriter:
        bias.shift(rewriter, SHIFT, program.graph.find_nodes(op="get_attr")[0])
    program.verify(full=True)
    moved = program(inputs)
    assert isinstance(moved, torch.Tensor)
    assert isinstance(before, torch.Tensor)
    wanted = before + SHIFT.reshape([1, 4] + [1] * (before.dim() - 2))
    torch.testing.assert_close(moved, wanted)


@pytest.mark.parametrize(
    "layer",
    [
        lambda x, w, b: aten.mm.default(x, w),
        lambda x, w, b: aten.linear.default(x, w, aten.neg.default(b)),
        lambda x, w, b: aten.conv_transpose2d.input(
            aten.reshape.default(x, [4, 4, 1, 1]), aten.reshape.default(w, [4, 4, 1, 1])
        ),
    ],
)
def test_others_have_no_place_for_one(layer: Any) -> None:
    program = program_of(layer, {"x": torch.zeros(4, 4)}, draw({"w": (4, 4), "b": (4,)}))
    assert bias_of(program.calls[-1]) is None
