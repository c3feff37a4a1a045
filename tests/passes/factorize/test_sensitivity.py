from __future__ import annotations

import pytest
import torch

from shave.passes.factorize.sensitivity import output_error
from tests.passes.factorize.layers import only_layer, random
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten


@pytest.mark.parametrize("with_mean", [True, False])
def test_it_is_the_error_of_the_program_with_the_other_weight(with_mean: bool) -> None:
    """The reference runs the layers in torch by hand."""
    weights = draw({"w": (8, 6, 3, 3), "b": (8,)})
    program = program_of(
        lambda x, w, b: aten.tanh.default(aten.conv2d.default(x, w, b)), {"x": torch.zeros(4, 6, 7, 7)}, weights
    )
    layer = only_layer(program)
    x, product, mean = (
        random(4, 6, 7, 7, seed=1).float(),
        layer.weight + 0.1 * random(8, 54, seed=2),
        random(54, seed=3),
    )
    bias = weights["b"].double()
    if with_mean:
        bias = bias + (layer.weight - product) @ mean
    wanted = torch.tanh(torch.nn.functional.conv2d(x.double(), layer.tensor, weights["b"].double()))
    made = torch.tanh(torch.nn.functional.conv2d(x.double(), product.reshape(8, 6, 3, 3), bias))
    share = (made - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    found = output_error(program, layer, product, mean if with_mean else None, [x])
    assert found == pytest.approx(float(share), rel=1e-3)
    assert output_error(program, layer, layer.weight, None, [x]) < 1e-10
