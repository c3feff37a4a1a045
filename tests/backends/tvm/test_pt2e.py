"""Programs as torch's PT2E flow writes them: saved, read, and compiled to integer kernels.

PT2E (``prepare_pt2e``, ``convert_pt2e``; now in torchao) leaves float operators between pairs of quantize and
dequantize, with weights frozen as integers. Two of its quantizers are followed here, by what they are documented to
write: XNNPACK's (activations int8 from -128 on, with a zero point; weights int8 by channel) and Inductor's for x86
(activations uint8, weights int8 by channel, zero points int64); neither rounds a convolution ahead of a sum.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import nn

import shave
from shave.backends.tvm.lower import lower
from tests.backends.tvm.compiled import Compiled, host

Q = torch.ops.quantized_decomposed
STYLES = {"xnnpack": (torch.int8, -128, 127, -14), "x86": (torch.uint8, 0, 255, 114)}

pytestmark = pytest.mark.skipif(host().kind != "x86", reason="integer kernels are for x86")


class Frozen(nn.Module):
    """A weight as ``convert_pt2e`` freezes it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(sum(shape))
        codes = torch.randint(-127, 128, shape, generator=generator)
        self.register_buffer("_frozen_param", codes.to(torch.int8))
        self.register_buffer("scale", (torch.rand(shape[0], generator=generator) + 0.5) / 127 / codes[0].numel() ** 0.5)
        self.register_buffer("zero_point", torch.zeros(shape[0], dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(shape[0], generator=generator))

    def forward(self) -> torch.Tensor:
        return Q.dequantize_per_channel(self._frozen_param, self.scale, self.zero_point, 0, -127, 127, torch.int8)


class Pt2e(nn.Module):
    """A stem, a depthwise and a pointwise convolution around a sum, a pooling and a head; odd sizes."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.stem, self.depthwise, self.pointwise = Frozen(20, 3, 3, 3), Frozen(20, 1, 3, 3), Frozen(20, 20, 1, 1)
        self.head = Frozen(7, 20)

    def pair(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        dtype, low, high, zero = STYLES[self.style]
        codes = Q.quantize_per_tensor(x, scale, zero, low, high, dtype)
        return Q.dequantize_per_tensor(codes, scale, zero, low, high, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv = torch.ops.aten.conv2d.default
        x = self.pair(x, 0.03)
        x = conv(x, self.stem(), self.stem.bias, [2, 2], [1, 1]).relu()
        x = self.pair(x, 0.02)
        y = conv(x, self.depthwise(), self.depthwise.bias, [1, 1], [1, 1], [1, 1], 20)
        y = self.pair(torch.ops.aten.hardtanh.default(y, 0.0, 6.0), 0.025)
        y = conv(y, self.pointwise(), self.pointwise.bias)
        y = self.pair(y + x, STEP)
        y = self.pair(torch.ops.aten.adaptive_avg_pool2d.default(y, [1, 1]), STEP)
        return self.pair(torch.ops.aten.linear.default(y.flatten(1), self.head(), self.head.bias), STEP)


STEP = 0.03


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_program_runs_in_integers_and_gives_what_torch_gives(style: str, tmp_path: Path) -> None:
    module, x = Pt2e(style).eval(), torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(1))
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "pt2e.pt2")
    program = shave.read(tmp_path / "pt2e.pt2")
    compiled = Compiled(program)
    products = [call for call in compiled.lowered.kernels if call.kernel is not None and call.family != "pooling"]
    assert len(products) == 4
    assert all(call.kernel.shape.dtype == "uint8" for call in products if call.kernel is not None)
    (found,), wanted = compiled(x), module(x).detach()
    steps = ((found - wanted) / STEP).abs()
    assert wanted.unique().numel() > 5
    assert steps.max() < 1.01
    assert (steps > 0.01).float().mean() < 0.2  # one step, where codes on the way were ties


@pytest.mark.parametrize("style", STYLES)
def test_convolutions_hand_on_codes(style: str) -> None:
    lowered = lower(shave.trace(Pt2e(style).eval(), (torch.randn(2, 3, 13, 11),)), host())
    kinds = [call.family for call in lowered.kernels if call.family != "tail"]
    assert [call.family for call in lowered.kernels][1:5] == kinds[:4]  # the input is quantized first
    assert kinds[0] == kinds[2] == "conv"
    assert kinds[3:] == ["pooling", "matmul"]


def test_quantizing_it_again_changes_nothing() -> None:
    program = shave.trace(Pt2e("x86").eval(), (torch.randn(2, 3, 13, 11),))
    again = shave.PassManager("quantize").run(program, calibration=[torch.randn(2, 3, 13, 11)])
    assert not again.report[-1].changed
