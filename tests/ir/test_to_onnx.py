import onnx
import onnxruntime
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import nn

import shave
from shave.ir.errors import UnsupportedError
from tests.modules import Attention, ConvNet, Named

Q = torch.ops.quantized_decomposed


def run(path, feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})


@pytest.mark.parametrize(
    ("module", "shape", "dynamic", "other"),
    [
        (ConvNet(), (2, 3, 7, 5), {"x": {0: "batch"}}, (5, 3, 7, 5)),
        (Attention(), (2, 6, 16), {"x": {0: "batch", 1: "length"}}, (1, 9, 16)),
        (
            nn.Sequential(
                nn.Conv3d(2, 4, (1, 3, 2), (1, 2, 1), (0, 1, 1), (1, 1, 2), 2, bias=False), nn.Conv3d(4, 3, 1)
            ),
            (2, 2, 3, 5, 6),
            {"input": {0: "batch"}},
            (1, 2, 3, 5, 6),
        ),
    ],
    ids=["conv", "attention", "conv3d"],
)
def test_onnx_runtime_gives_the_same(tmp_path, module, shape, dynamic, other):
    program = shave.trace(module, (torch.randn(*shape),), dynamic_shapes=dynamic)
    program.to_onnx(tmp_path / "model.onnx")
    for size in (shape, other):
        x = torch.randn(*size)
        session, (output,) = run(tmp_path / "model.onnx", {program.signature.inputs[0].name: x})
        torch.testing.assert_close(torch.from_numpy(output), program(x), rtol=1e-5, atol=1e-5)
    assert tuple(session.get_inputs()[0].shape) == program.signature.inputs[0].shape
    assert [o.name for o in session.get_outputs()] == ["output"]


def test_names_survive_even_where_an_output_is_an_input(tmp_path):
    program = shave.trace(Named(), (torch.randn(3), torch.randn(3)))
    program.to_onnx(tmp_path / "model.onnx")
    left, right = torch.randn(3), torch.randn(3)
    session, outputs = run(tmp_path / "model.onnx", {"left": left, "right": right})
    assert [i.name for i in session.get_inputs()] == ["left", "right"]
    assert [o.name for o in session.get_outputs()] == ["sum", "parts.0", "parts.1"]
    for got, expected in zip(outputs, program(left, right), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), expected)


def test_an_output_may_be_a_weight_or_another_output(tmp_path):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.arange(3.0))

        def forward(self, x):
            y = x * 2
            return self.table, y, y

    program = shave.trace(Constant(), (torch.zeros(2),))
    program.to_onnx(tmp_path / "model.onnx")
    x = torch.randn(2)
    _, outputs = run(tmp_path / "model.onnx", {program.signature.inputs[0].name: x})
    for got, expected in zip(outputs, (torch.arange(3.0), x * 2, x * 2), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), expected)


def test_unused_inputs_stay(tmp_path):
    class Ignores(nn.Module):
        def forward(self, x, unused):
            return x + 1

    shave.trace(Ignores(), (torch.zeros(2), torch.zeros(3))).to_onnx(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert [i.name for i in model.graph.input] == ["x", "unused"]


def test_large_models_keep_their_weights_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("shave.ir.to_onnx._PROTOBUF_LIMIT", 100)
    program = shave.trace(nn.Linear(300, 40), (torch.randn(2, 300),))
    program.to_onnx(tmp_path / "model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    x = torch.randn(2, 300)
    _, (output,) = run(tmp_path / "model.onnx", {program.signature.inputs[0].name: x})
    torch.testing.assert_close(torch.from_numpy(output), program(x), rtol=1e-5, atol=1e-5)


def test_an_operator_without_onnx_form_is_named(tmp_path):
    class Rare(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    program = shave.trace(Rare(), (torch.randn(3),))
    with pytest.raises(UnsupportedError, match="bessel_j0"):
        program.to_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    program = shave.trace(nn.Linear(3, 4), (torch.randn(2, 3),))
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        program.to_onnx(tmp_path / "nowhere" / "model.onnx")


def test_attention_with_a_mask_that_is_computed_is_written(tmp_path):
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(16, 48)
            self.bias = nn.Parameter(torch.randn(1, 4, 5, 5))

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
            mask = torch.where(x[:, None, :, :1] > 0, self.bias, -1.0)
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return y.transpose(1, 2).reshape(*x.shape[:2], -1)

    x = torch.randn(2, 5, 16)
    program = shave.trace(Biased(), (x,))
    program.to_onnx(tmp_path / "model.onnx")
    _, (output,) = run(tmp_path / "model.onnx", {"x": x})
    torch.testing.assert_close(torch.from_numpy(output), program(x), rtol=1e-5, atol=1e-5)


class Measured(nn.Module):
    """A tensor rounded within bounds that are found in it, as PT2E writes it."""

    def __init__(self, low, high, dtype):
        super().__init__()
        self.how = (low, high, dtype)

    def forward(self, x):
        scale, zero = Q.choose_qparams.tensor(x, *self.how[:2], 1e-9, self.how[2])
        codes = Q.quantize_per_tensor.tensor(x, scale, zero, *self.how)
        return Q.dequantize_per_tensor.tensor(codes, scale, zero, *self.how), scale.float(), zero


@pytest.mark.parametrize("low", [0, -128, -100])
def test_bounds_found_at_run_time_are_those_of_torch(tmp_path, low):
    high, dtype = (255, torch.uint8) if low == 0 else (127, torch.int8)
    program = shave.trace(Measured(low, high, dtype), (torch.randn(3, 5),))
    program.to_onnx(tmp_path / "model.onnx")
    for x in (torch.randn(3, 5), torch.rand(3, 5) + 1, -torch.rand(3, 5), torch.full((3, 5), 0.3)):
        _, outputs = run(tmp_path / "model.onnx", {"x": x})
        for found, wanted in zip(outputs, program(x), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-6, atol=1e-6)
