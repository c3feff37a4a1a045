"""Engines in processes of their own, on a small network."""

import importlib
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import shave
from benchmarks.latency.engines import UnavailableError
from benchmarks.latency.measure import Prepared, difference, measure
from benchmarks.latency.models import Model, models, settle
from benchmarks.latency.precisions import in_float
from benchmarks.latency.process import Engine
from shave.backends.tvm.roofline import Roofline
from tests.modules import ConvNet

ROOFLINE = Roofline(1, 1e12, 4e12, ((1 << 20, 1e12), (1 << 22, 1e11)))
LIMIT = 120


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 7, 5)
    model = Model("net", lambda: (shave.trace(ConvNet(), (image,)), [image.numpy()]), lambda: [[image.numpy()]])
    with Prepared(model, "fp32") as files:
        files.write("shave", 1, None)
        yield files


def state(pid: int) -> str:
    """The letter of the kernel: S sleeping, T stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def need(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.parametrize(
    "name",
    [
        "torch eager",
        pytest.param("ONNX Runtime", marks=need("onnxruntime")),
        pytest.param("OpenVINO", marks=need("openvino")),
        pytest.param("ncnn", marks=[need("ncnn"), need("pnnx")]),
        "shave",
    ],
)
def test_engines_agree_take_turns_and_sleep_in_between(prepared, name):
    with Engine(name, prepared.folder, 1) as engine:
        assert difference(prepared.expected, engine.prepare(LIMIT)) < 1e-5
        assert state(engine.pid) == "T"
        assert 0 < engine.turn(0.0, 0.001, LIMIT) < 1
        assert 0 < engine.turn(0.001, 0.0, LIMIT) < 1
        assert state(engine.pid) == "T"
        pid = engine.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ONNX Runtime", marks=need("onnxruntime")),
        pytest.param("OpenVINO", marks=[need("openvino"), need("nncf")]),
        "shave",
        "shave fp32",
    ],
)
def test_everybody_quantizes_with_its_own_tool(name):
    torch.manual_seed(0)
    image, samples = torch.randn(1, 3, 7, 5), [[torch.randn(1, 3, 7, 5).numpy()] for _ in range(4)]
    model = Model("net", lambda: (shave.trace(ConvNet(), (image,)), [image.numpy()]), lambda: samples)
    with Prepared(model, "int8") as files:
        files.write(name, 1, None)
        with Engine(name, files.folder, 1) as engine:
            error = difference(files.expected, engine.prepare(LIMIT))
    assert error < 1e-5 if name == "shave fp32" else 1e-5 < error < 0.1


def test_an_engine_that_cannot_load_says_why(tmp_path):
    np.savez(tmp_path / "inputs.npz", np.zeros(1, np.float32))
    with Engine("shave", tmp_path, 1) as engine, pytest.raises(UnavailableError, match="no such file"):
        engine.prepare(LIMIT)


def test_an_engine_that_dies_says_of_what(prepared):
    with Engine("shave", prepared.folder, 1) as engine:
        engine.prepare(LIMIT)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="SIGKILL"):
            engine.turn(0.0, 0.0, LIMIT)


def test_an_engine_that_takes_too_long_is_given_up(prepared):
    with Engine("torch eager", prepared.folder, 1) as engine, pytest.raises(UnavailableError, match="within 0 s"):
        engine.prepare(0.01)


def test_a_row_has_times_of_those_that_agree(prepared):
    row = measure("net", "fp32", prepared, ROOFLINE, ["shave"], rounds=2, tolerance=1e-4, limit=LIMIT)
    result = row.engines["shave"]
    assert result.reason == ""
    assert 0 < result.minimum <= result.median < 1
    assert result.error < 1e-5
    assert row.macs == prepared.program.cost().macs > 0
    assert row.bytes == prepared.program.cost().weight_bytes + 4 * (3 * 7 * 5 + 5)
    assert row.limit == max(row.macs / 1e12, row.bytes / 1e12)


def test_who_is_off_is_reported_and_not_timed(prepared, monkeypatch):
    monkeypatch.setattr(prepared, "expected", [2 * array for array in prepared.expected])
    row = measure("net", "fp32", prepared, ROOFLINE, ["shave"], rounds=1, tolerance=0.1, limit=LIMIT)
    assert row.engines["shave"].minimum is None
    assert row.engines["shave"].error == pytest.approx(0.5, abs=1e-4)
    assert "off by 5.0e-01" in row.engines["shave"].reason


def test_models_have_names_of_their_own():
    names = [model.name for model in models()]
    assert len(set(names)) == len(names)
    assert {"ResNet-18", "VGG-16", "Swin-tiny", "BERT-base (128 tokens)"} <= set(names)


def test_settled_weights_pass_differences_on():
    """What reaches a deep, untrained network without it fades out."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(12) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    module = nn.Sequential(*blocks)
    x = torch.randn(4, 8, 6, 6)
    settle(module, x)
    assert not any(layer.training for layer in module.modules())
    with torch.no_grad():
        result = module(x)
        assert 0.1 < result.std() < 10
        assert (module(x * 1.01) - result).abs().max() > 1e-4
    assert module[1].running_var.std() > 0


def test_packed_weights_are_unpacked():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Buffer(torch.randint(-127, 127, (4, 6), dtype=torch.int8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            op = torch.ops.quantized_decomposed.dequantize_per_tensor.default
            return nn.functional.linear(x, op(self.weight, 0.1, 0, -128, 127, torch.int8))

    importlib.import_module("torch.ao.quantization.fx._decomposed")  # defines the operator
    x = torch.randn(1, 6)
    program = shave.trace(Packed(), (x,))
    unpacked = in_float(program)
    assert any("dequantize" in str(node.target) for node in program.calls)
    assert not any("dequantize" in str(node.target) for node in unpacked.calls)
    assert [weight.dtype for _, weight in unpacked.weights()] == [torch.float32]
    assert torch.equal(unpacked(x), program(x))
