"""A layer's rows of features times its matrix are its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shave.passes.repair.layer import layer_of
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten

LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], int]] = {
    "linear": (lambda x, w, b: aten.linear.default(x, w, b), (3, 5, 4), (6, 4), 6),
    "linear, no bias": (lambda x, w, b: aten.linear.default(x, w), (3, 4), (6, 4), 6),
    "conv1d": (lambda x, w, b: aten.conv1d.default(x, w, b, [2], [1]), (2, 4, 9), (6, 4, 3), 6),
    "conv2d": (lambda x, w, b: aten.conv2d.default(x, w, b, [2, 1], [1, 2]), (2, 4, 7, 5), (6, 4, 3, 2), 6),
    "conv2d, short": (lambda x, w, b: aten.conv2d.default(x, w), (2, 4, 7, 5), (6, 4, 3, 2), 6),
    "dilated": (lambda x, w, b: aten.conv2d.default(x, w, b, [1, 1], [1], [2, 1]), (2, 4, 7, 5), (6, 4, 3, 2), 6),
    "same": (lambda x, w, b: aten.conv2d.padding(x, w, b, [1, 1], "same"), (2, 4, 7, 5), (6, 4, 4, 3), 6),
    "valid": (lambda x, w, b: aten.conv2d.padding(x, w, b, [1, 1], "valid"), (2, 4, 7, 5), (6, 4, 4, 3), 6),
    "grouped": (
        lambda x, w, b: aten.conv2d.default(x, w, b, [1, 1], [1, 1], [1, 1], 2), (2, 4, 7, 5), (6, 2, 3, 3), 6
    ),
    "depthwise": (
        lambda x, w, b: aten.conv2d.default(x, w, b, [2, 2], [1, 1], [1, 1], 4), (2, 4, 7, 5), (8, 1, 3, 3), 8
    ),
    "conv3d": (lambda x, w, b: aten.conv3d.default(x, w, b, [1, 2, 1]), (2, 4, 3, 5, 4), (6, 4, 2, 3, 1), 6),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_rows(name: str) -> None:
    call, shape, weight, out = LAYERS[name]
    program = program_of(call, {"x": torch.zeros(shape)}, draw({"l.weight": weight, "l.bias": (out,)}))
    layer = layer_of(program, program.calls[-1])
    assert layer is not None
    x = torch.randn(shape)
    y = layer.outputs(program(x))  # type: ignore[arg-type]
    assert y.shape[1] == out
    rows = torch.randperm(len(y))[: len(y) // 2 + 1]
    features = layer.features(x, rows)
    assert (features[..., -1] == 1).all()
    matrix = layer.matrix(program)
    assert features.shape[2] == matrix.shape[1]
    got = (features.double() @ matrix).transpose(0, 1).reshape(len(rows), out)
    torch.testing.assert_close(got.float(), y[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_another_matrix(name: str) -> None:
    call, shape, weight, out = LAYERS[name]
    program = program_of(call, {"x": torch.zeros(shape)}, draw({"l.weight": weight, "l.bias": (out,)}))
    node = program.calls[-1]
    layer = layer_of(program, node)
    assert layer is not None
    matrix = layer.matrix(program) * 2 + 0.1
    with program.rewrite(by="test") as rewriter:
        layer.set_matrix(program, rewriter, matrix)
    program.verify(full=True)
    again = layer_of(program, node)
    assert again is not None
    torch.testing.assert_close(again.matrix(program), matrix, rtol=1e-6, atol=1e-6)


def test_what_is_no_layer() -> None:
    weights = draw({"w": (6, 4, 3, 3), "t": (4, 6, 3, 3)})

    def calls(x: Any, w: Any, t: Any) -> Any:
        y = aten.relu.default(x)
        y = aten.conv2d.default(y, aten.neg.default(w))
        return y, aten.conv_transpose2d.input(x, t)

    program = program_of(calls, {"x": torch.zeros(2, 4, 7, 5)}, weights)
    assert all(layer_of(program, node) is None for node in program.calls)
