"""Files of ONNX Runtime's ``quantize_dynamic``, read and compiled to integer kernels."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import shave
from tests.backends.tvm.compiled import Compiled, host

pytestmark = pytest.mark.skipif(host().kind != "x86", reason="integer kernels are for x86")


class Shared(nn.Module):
    """Two layers that read one value, one with a bias, and a third behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(23, 20), nn.Linear(23, 20, bias=False), nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.a(x)) * self.b(x))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 9, 1), nn.Flatten(), nn.Linear(270, 5)
    )


NETS = {"shared": (Shared, (4, 5, 23), 3, 2), "convolutions": (convolutions, (2, 3, 6, 5), 3, 3)}
"""With the number of products, and of the values that they read."""


def quantized(name: str, folder: Path, **options: object) -> tuple[Path, np.ndarray]:
    torch.manual_seed(0)
    make, shape, *_ = NETS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    files = [folder / f"{step}.onnx" for step in ("plain", "prepared", "quantized")]
    shave.trace(make().eval(), (x,)).to_onnx(files[0])
    quant_pre_process(str(files[0]), str(files[1]), skip_symbolic_shape=True)
    quantize_dynamic(str(files[1]), str(files[2]), **options)  # type: ignore[arg-type]
    return files[2], x.numpy()


@pytest.fixture(autouse=True)
def _silent():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def compare(file: Path, x: np.ndarray) -> Compiled:
    program = shave.PassManager("exact").run(shave.read(file))
    compiled = Compiled(program)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x})
    (found,) = compiled(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-3 * abs(wanted).max())
    return compiled


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_they_run_in_integers_and_give_what_onnx_runtime_gives(name: str, per_channel: bool, tmp_path: Path) -> None:
    compiled = compare(*quantized(name, tmp_path, per_channel=per_channel, weight_type=QuantType.QInt8))
    products = [call for call in compiled.lowered.kernels if call.family in ("conv", "matmul")]
    assert len(products) == NETS[name][2]
    assert all(call.kernel is not None and call.kernel.integers for call in products)
    # Those of the rows of a value and those of the whole, once for all that read it.
    values, found = NETS[name][3], [call for call in compiled.lowered.kernels if call.family == "bounds"]
    assert values <= len(found) <= 2 * values


@pytest.mark.parametrize("name", NETS)
def test_weights_too_far_from_their_zero_points_are_right_too(name: str, tmp_path: Path) -> None:
    compare(*quantized(name, tmp_path, weight_type=QuantType.QUInt8))
