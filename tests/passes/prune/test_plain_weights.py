from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators

from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.prune.plain_weights import unpack
from tests.passes.contract import run_pass
from tests.passes.handmade import program_of

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed


def packed(activations: bool = False) -> Program:
    """A layer whose weight is kept in 8 bits with a scale for each output, then another one."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        "first.weight": torch.randint(-127, 128, (6, 4), generator=generator, dtype=torch.int8),
        "first.scale": torch.rand(6, generator=generator) * 0.02,
        "first.zero": torch.zeros(6, dtype=torch.int64),
        "second.weight": torch.randn(3, 6, generator=generator),
    }

    def forward(x: Any, w: Any, scale: Any, zero: Any, second: Any) -> Any:
        if activations:
            x = decomposed.quantize_per_tensor.default(x, 0.1, 0, -128, 127, torch.int8)
            x = decomposed.dequantize_per_tensor.default(x, 0.1, 0, -128, 127, torch.int8)
        w = decomposed.dequantize_per_channel.default(w, scale, zero, 0, -127, 127, torch.int8)
        return aten.linear.default(aten.relu.default(aten.linear.default(x, w)), second)

    return program_of(forward, {"x": torch.zeros(2, 4)}, weights)


def test_weights_behind_a_dequantize_become_plain() -> None:
    program = packed()
    x = torch.randn(2, 4)
    want = program(x)
    made = unpack(program, "test")
    assert [node.target for node in made] == ["first.weight"]
    assert torch.equal(program(x), want)  # type: ignore[arg-type]
    assert {name: tensor.dtype for name, tensor in program.weights()} == {
        "first.weight": torch.float32, "second.weight": torch.float32,
    }  # fmt: skip
    program.verify(full=True)
    assert unpack(program, "test") == []


def test_packed_weights_are_ranked_by_what_they_mean() -> None:
    """The integers of a filter say nothing without its scale."""
    program = packed()
    result, report = run_pass("prune-channels{ratio=0.5 criterion=l1}", program)
    meaning = dict(program.weights())["first.weight"].float() * dict(program.weights())["first.scale"][:, None]
    best = meaning.abs().sum(1).topk(3).indices.sort().values
    torch.testing.assert_close(dict(result.weights())["first.weight"].detach(), meaning[best])
    assert "computed once, as a weight of its own" in [entry.text for entry in report.applied]


def test_quantized_activations_are_refused() -> None:
    with pytest.raises(PipelineError, match="put it before quantize"):
        run_pass("prune-channels{ratio=0.5}", packed(activations=True))
