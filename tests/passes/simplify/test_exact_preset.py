"""The passes of the exact preset together: each makes way for the next."""

from __future__ import annotations

import torch
from torch import nn

import shave
from shave.ir.program import Program
from tests.modules import Attention
from tests.passes.contract import run_pass
from tests.passes.handmade import draw, program_of
from tests.passes.oracle import assert_equivalent, random_inputs

aten = torch.ops.aten

X = torch.zeros(2, 4, 7, 5)


def exact(program: Program) -> Program:
    result, _ = run_pass("exact", program)
    assert_equivalent(program, result, random_inputs(program, 1, size=5))
    return result


def test_a_decomposed_norm_with_computed_constants_goes_into_the_convolution() -> None:
    def forward(x, w, mean, variance, gamma, beta):
        y = aten.sub.Tensor(aten.conv2d.default(x, w), aten.reshape.default(mean, [1, 6, 1, 1]))
        deviation = aten.sqrt.default(aten.add.Tensor(aten.mul.Tensor(variance, variance), 0.01))
        y = aten.div.Tensor(y, aten.reshape.default(deviation, [6, 1, 1]))
        y = aten.mul.Tensor(y, aten.unsqueeze.default(aten.unsqueeze.default(gamma, -1), -1))
        return aten.relu.default(aten.add.Tensor(y, aten.reshape.default(beta, [-1, 1, 1])))

    weights = draw({"w": (6, 4, 3, 3), "mean": (6,), "variance": (6,), "gamma": (6,), "beta": (6,)})
    result = exact(program_of(forward, {"x": X}, weights, dynamic={"x": {0: "batch"}}))
    assert [node.target for node in result.calls] == [aten.conv2d.default, aten.relu.default]
    assert len(list(result.weights())) == 2


def test_no_ops_do_not_hide_a_norm_from_its_layer() -> None:
    def forward(x, w, gamma):
        y = aten.dropout.default(aten.conv2d.default(x, aten.to.dtype(w, torch.float32)), 0.5, False)
        y = aten.reshape.default(aten.reshape.default(y, [2, -1]), [2, 6, 5, 3])
        return aten.mul.Tensor(aten.cat.default([y]), aten.reshape.default(gamma, [6, 1, 1]))

    weights = draw({"w": (6, 4, 3, 3), "gamma": (6,)})
    weights["w"] = weights["w"].to(torch.float16)
    result = exact(program_of(forward, {"x": X}, weights))
    assert [node.target for node in result.calls] == [aten.conv2d.default]


def test_layers_that_folding_makes_equal_are_merged() -> None:
    def forward(x, w, scale, other):
        first = aten.relu.default(aten.mul.Tensor(aten.conv2d.default(x, w), scale))
        second = aten.relu.default(aten.mul.Tensor(aten.conv2d.default(x, w), other))
        return aten.add.Tensor(first, second)

    weights = draw({"w": (6, 4, 3, 3), "scale": (6, 1, 1)})
    weights["other"] = weights["scale"].clone()
    result = exact(program_of(forward, {"x": X}, weights))
    assert [node.target for node in result.calls] == [aten.conv2d.default, aten.relu.default, aten.add.Tensor]
    assert len(list(result.weights())) == 1


def test_a_transformer_block_that_holds_nothing_in_vain_stays_whole() -> None:
    torch.manual_seed(0)
    program = shave.trace(Attention(), (torch.zeros(2, 6, 16),), dynamic_shapes={"x": {0: "batch", 1: "length"}})
    result = exact(program)
    kinds = [node.target for node in result.calls]
    assert kinds.count(aten.linear.default) == 2
    assert kinds.count(aten.layer_norm.default) == 1
    assert aten.scaled_dot_product_attention.default in kinds
    assert len(result.calls) <= len(program.calls)


def test_the_preset_runs_on_a_model_without_any_layer() -> None:
    program = shave.trace(nn.Identity(), (torch.zeros(2, 3),))
    assert exact(program).calls == []
