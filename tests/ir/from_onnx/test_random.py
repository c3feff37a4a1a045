"""Random numbers: shape, dtype, range and moments; drawn anew on each run."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from shave.ir.from_onnx.export import export_onnx
from tests.ir.from_onnx.runtime import graph_model, one_node_model

LIKE = np.zeros((40, 50), np.float32)


def draw(op_type: str, inputs: dict[str, np.ndarray], **attributes) -> tuple[torch.Tensor, torch.Tensor]:
    """Two runs of one program."""
    program = export_onnx(one_node_model(op_type, inputs, {}, order=list(inputs), **attributes)).module()
    arguments = [torch.from_numpy(array) for array in inputs.values()]
    return program(*arguments)[0], program(*arguments)[0]


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("RandomNormal", {}, {"shape": [40, 50], "mean": 3.0, "scale": 0.5}),
        ("RandomNormalLike", {"x": LIKE}, {"mean": 3.0, "scale": 0.5}),
        ("RandomUniform", {}, {"shape": [40, 50], "low": 2.0, "high": 4.0}),
        ("RandomUniformLike", {"x": LIKE}, {"low": 2.0, "high": 4.0}),
    ],
)
@pytest.mark.parametrize("dtype", [None, TensorProto.DOUBLE])
def test_moments(op_type, inputs, attributes, dtype):
    first, second = draw(op_type, inputs, **attributes, **({} if dtype is None else {"dtype": dtype}))
    assert first.shape == (40, 50)
    assert first.dtype == (torch.float32 if dtype is None else torch.float64)
    assert not torch.equal(first, second)
    normal = "Normal" in op_type
    assert abs(first.mean().item() - 3) < 0.1
    assert abs(first.std().item() - (0.5 if normal else 2 / 12**0.5)) < 0.05
    if not normal:
        assert first.min() >= 2
        assert first.max() < 4


def test_bernoulli_follows_each_probability():
    p = np.repeat(np.array([0.0, 0.3, 1.0], np.float32), 3000).reshape(3, 3000)
    first, second = draw("Bernoulli", {"p": p}, dtype=TensorProto.INT32)
    assert first.dtype == torch.int32
    assert not torch.equal(first, second)
    means = first.float().mean(1).tolist()
    assert means[0] == 0
    assert means[2] == 1
    assert abs(means[1] - 0.3) < 0.05


def test_multinomial_takes_log_probabilities():
    logits = np.log(np.array([[0.7, 0.1, 0.2], [1e-30, 5.0, 5.0]])).astype(np.float32)
    first, _ = draw("Multinomial", {"x": logits}, sample_size=4000)
    assert first.shape == (2, 4000)
    assert first.dtype == torch.int32
    shares = [[(row == k).float().mean().item() for k in range(3)] for row in first]
    np.testing.assert_allclose(shares, [[0.7, 0.1, 0.2], [0, 0.5, 0.5]], atol=0.04)


def test_random_numbers_are_not_folded():
    nodes = [
        onnx.helper.make_node("RandomNormal", [], ["noise"], shape=[3]),
        onnx.helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    x = np.zeros(3, np.float32)
    program = export_onnx(graph_model(nodes, {"x": x}, {}, ["y"])).module()
    assert not torch.equal(program(torch.from_numpy(x))[0], program(torch.from_numpy(x))[0])
