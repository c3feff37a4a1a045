from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shave.passes.problems import Conv2d, WinogradConv2d
from shave.passes.winograd.layer import Layer, is_candidate, read
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten

X = torch.zeros(2, 4, 9, 8)
W = (6, 4, 3, 3)


def first(function: Callable[..., Any], x: torch.Tensor = X, shape: tuple[int, ...] = W, **given: Any) -> Layer | str:
    weights = {name: tensor.to(x.dtype) for name, tensor in draw({"w": shape, "b": shape[:1]}).items()}
    program = program_of(function, {"x": x}, weights, **given)
    node = next(node for node in program.calls if is_candidate(node))
    return read(node)


def test_what_a_layer_is() -> None:
    layer = first(lambda x, w, b: aten.conv2d.default(x, w, b, [1, 1], [2, 1]), dynamic={"x": {0: "batch"}})
    assert isinstance(layer, Layer)
    assert (layer.source.name, layer.weight.name, layer.bias.name, layer.padding) == ("x", "w", "b", (2, 1))
    assert layer.direct == Conv2d(None, 4, 6, 9, 8, (3, 3), padding=(2, 1))
    assert layer.winograd(4) == WinogradConv2d(None, 4, 6, 9, 8, (2, 1), 4)


FORMS: dict[str, tuple[Callable[..., Any], tuple[int, int]]] = {
    "plain": (lambda x, w, b: aten.conv2d.default(x, w), (0, 0)),
    "one number": (lambda x, w, b: aten.conv2d.default(x, w, None, [1], [1]), (1, 1)),
    "same": (lambda x, w, b: aten.conv2d.padding(x, w, None, [1, 1], "same"), (1, 1)),
    "valid": (lambda x, w, b: aten.conv2d.padding(x, w, None, [1, 1], "valid"), (0, 0)),
    "general": (
        lambda x, w, b: aten.convolution.default(x, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        (1, 1),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_all_ways_to_write_it(name: str) -> None:
    function, padding = FORMS[name]
    layer = first(function)
    assert isinstance(layer, Layer)
    assert layer.padding == padding
    assert layer.direct.batch == 2


REASONS: dict[str, tuple[Callable[..., Any], tuple[int, ...], str]] = {
    "kernel": (lambda x, w, b: aten.conv2d.default(x, w), (6, 4, 5, 3), "its kernel is 5x3, not 3x3"),
    "even kernel, same": (
        lambda x, w, b: aten.conv2d.padding(x, w, None, [1, 1], "same"), (6, 4, 2, 2), "its kernel is 2x2, not 3x3"
    ),
    "stride": (lambda x, w, b: aten.conv2d.default(x, w, None, [2, 2]), W, "its stride is 2, not 1"),
    "uneven stride": (lambda x, w, b: aten.conv2d.default(x, w, None, [1, 2]), W, "its stride is 1x2, not 1"),
    "dilation": (
        lambda x, w, b: aten.conv2d.default(x, w, None, [1, 1], [0, 0], [2, 2]), W, "its dilation is 2, not 1"
    ),
    "groups": (
        lambda x, w, b: aten.conv2d.default(x, w, None, [1, 1], [0, 0], [1, 1], 2), (6, 2, 3, 3), "it has 2 groups"
    ),
    "padding": (
        lambda x, w, b: aten.conv2d.default(x, w, None, [1, 1], [3, 0]), W, "its padding is 3x0, more than 2"
    ),
    "transposed": (
        lambda x, w, b: aten.convolution.default(x, w, None, [1, 1], [1, 1], [1, 1], True, [0, 0], 1),
        (4, 6, 3, 3),
        "it is transposed",
    ),
    "computed weight": (
        lambda x, w, b: aten.conv2d.default(x, aten.neg.default(w)), W, "its weights are computed"
    ),
    "computed bias": (
        lambda x, w, b: aten.conv2d.default(x, w, aten.neg.default(b)), W, "its weights are computed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_for_it(name: str) -> None:
    function, shape, reason = REASONS[name]
    assert first(function, shape=shape) == reason


def test_other_dtypes_and_sizes_are_not_for_it() -> None:
    def function(x: Any, w: Any, b: Any) -> Any:
        return aten.conv2d.default(x, w)

    assert first(function, X.half()) == "it computes in float16, not float32"
    assert first(function, X[0]) == "it has no batch axis"
    assert first(function, dynamic={"x": {3: "width"}}) == "its height or width is dynamic"


def test_what_nothing_reads_stays() -> None:
    def function(x: Any, w: Any, b: Any) -> Any:
        aten.conv2d.default(x, w)
        return aten.relu.default(x)

    assert first(function) == "nothing reads it"


def test_other_operators_are_no_candidates() -> None:
    def function(x: Any, w: Any, v: Any) -> Any:
        y = aten.conv1d.default(aten.flatten.using_ints(x, 2, 3), v)
        z = aten.convolution.default(aten.flatten.using_ints(x, 2, 3), v, None, [1], [0], [1], False, [0], 1)
        return y, z, aten.conv_transpose2d.input(x, w)

    weights = draw({"w": (4, 6, 3, 3), "v": (6, 4, 3)})
    assert not any(map(is_candidate, program_of(function, {"x": X}, weights).calls))
