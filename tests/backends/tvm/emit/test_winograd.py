from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from shave.backends.tvm.lower import lower
from shave.ir.errors import UnsupportedError
from shave.ir.from_torch import trace
from shave.ir.winograd import transform_weight, winograd_conv2d
from tests.backends.tvm.compiled import Compiled, host, worst


class _Block(torch.nn.Module):
    """A residual block whose convolution has its weights transformed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("weight", transform_weight(torch.randn(20, 20, 3, 3) / 13, 4).float())
        self.register_buffer("bias", torch.randn(20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(winograd_conv2d(x, self.weight, self.bias, (1, 1), 4) + x)


def test_the_kernel_adds_the_bias_and_the_residual_and_applies_the_activation() -> None:
    lowered = lower(trace(_Block(), (torch.zeros(1, 20, 8, 8),)), host())
    (kernel,) = [kernel for kernel in lowered.kernels if kernel.family == "winograd"]
    assert len(kernel.nodes) == 3


def test_a_dynamic_batch_stays_dynamic() -> None:
    module = _Block()
    compiled = Compiled(trace(module, (torch.zeros(2, 20, 9, 7),), dynamic_shapes={"x": {0: "batch"}}))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 20, 9, 7)
        assert worst(compiled(x)[0], module(x)) < 5e-6


def test_computed_weights_are_refused_by_name() -> None:
    class Computed(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return winograd_conv2d(x, weight, None, (1, 1), 2)

    program = trace(Computed(), (torch.zeros(1, 4, 8, 8), torch.zeros(16, 4, 4)))
    with pytest.raises(UnsupportedError, match=r"winograd_conv2d.*weights and bias must be constants"):
        lower(program, host())
