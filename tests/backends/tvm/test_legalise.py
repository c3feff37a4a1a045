"""What is folded before emission."""

from __future__ import annotations

import torch

from shave.backends.tvm.legalise import legalise
from shave.ir.from_torch import trace
from shave.ir.ops import op_name


def test_tensors_that_ask_another_for_its_shape_alone_are_folded() -> None:
    class Masked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = x.new_zeros(3, 4)
            mask[1:, :2] = -100.0
            return x + mask + torch.ones_like(x)

    program = trace(Masked(), (torch.randn(3, 4),))
    assert [op_name(node) for node in legalise(program).calls] == ["aten.add", "aten.add"]
    x = torch.randn(3, 4)
    assert torch.equal(legalise(program)(x), Masked()(x))


def test_tensors_of_dynamic_shape_are_not_folded() -> None:
    class Ones(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.new_ones(x.shape[0], 4)

    program = trace(Ones(), (torch.randn(3, 4),), dynamic_shapes={"x": {0: torch.export.Dim("n", min=2, max=9)}})
    assert "aten.new_ones" in [op_name(node) for node in legalise(program).calls]
