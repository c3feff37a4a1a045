"""Programs with shave's own operators, written in torch's and in ONNX's."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch

from shave.ir.errors import UnsupportedError
from shave.ir.program import Program
from shave.ir.standard import standard
from shave.ir.winograd import transform_weight
from tests.passes.handmade import draw, program_of
from tests.passes.oracle import assert_equivalent, random_inputs

aten = torch.ops.aten
winograd = torch.ops.shave.winograd_conv2d.default

X = torch.zeros(2, 3, 7, 5)
WEIGHT = draw({"w": (4, 3, 3, 3)})["w"]


def convolution(padding: list[int]) -> Program:
    weights = {"first.weight": WEIGHT, **draw({"bias": (4,)})}
    return program_of(
        lambda x, w, b: aten.relu.default(aten.conv2d.default(x, w, b, [1, 1], padding)),
        {"x": X},
        weights,
        dynamic={"x": {0: "batch"}},
    )


def transformed(tile: int, padding: list[int], kind: type = torch.Tensor) -> Program:
    weight = transform_weight(WEIGHT, tile).float()
    if kind is torch.nn.Parameter:
        weight = torch.nn.Parameter(weight)
    weights = {"first.weight": weight, **draw({"bias": (4,)})}
    return program_of(
        lambda x, w, b: aten.relu.default(winograd(x, w, b, padding, tile)),
        {"x": X},
        weights,
        dynamic={"x": {0: "batch"}},
    )


@pytest.mark.parametrize("tile", [2, 4, 6])
@pytest.mark.parametrize("padding", [[1, 1], [0, 2]])
def test_transformed_weights_become_what_they_were(tile: int, padding: list[int]) -> None:
    result = standard(transformed(tile, padding))
    result.verify(full=True)
    assert [node.target for node in result.calls] == [aten.conv2d.default, aten.relu.default]
    weights = dict(result.weights())
    assert set(weights) == {"first.weight", "bias"}
    assert (weights["first.weight"] - WEIGHT).abs().max() < 2**-22 * WEIGHT.abs().max()
    assert_equivalent(convolution(padding), result, random_inputs(result, 0, 3), rtol=1e-6)


def test_the_program_given_stays_as_it_is() -> None:
    program = transformed(4, [1, 1])
    digest = program.structural_hash()
    standard(program)
    assert program.structural_hash() == digest
    plain = convolution([1, 1])
    assert standard(plain) is plain


def test_weights_stay_trainable() -> None:
    weights = dict(standard(transformed(4, [1, 1], torch.nn.Parameter)).weights())
    assert isinstance(weights["first.weight"], torch.nn.Parameter)


@pytest.mark.parametrize("tile", [2, 4, 6])
def test_onnx_files_hold_plain_convolutions(tile: int, tmp_path) -> None:
    program = transformed(tile, [1, 0])
    program.to_onnx(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]
    assert sorted(list(tensor.dims) for tensor in model.graph.initializer) == [[4], [4, 3, 3, 3]]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (x,) = random_inputs(program, 0, 5)
    (given,) = session.run(None, {"x": x.numpy()})
    wanted = program(x)
    assert (torch.from_numpy(given) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_computed_weights_have_no_standard_form() -> None:
    weights = {"w": transform_weight(WEIGHT, 4).float()}
    program = program_of(lambda x, w: winograd(x, aten.mul.Tensor(w, 2.0), None, [1, 1], 4), {"x": X}, weights)
    with pytest.raises(UnsupportedError, match=r"winograd_conv2d \(node \w+\): its weight is computed"):
        standard(program)
