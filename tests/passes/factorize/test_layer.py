from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from shave.passes.factorize.layer import POSITIONS, Layer, Window, is_candidate, read
from tests.passes.factorize.layers import convolution, linear, only_layer, random
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten


def why_not(function, inputs, weights) -> str:
    program = program_of(function, inputs, weights)
    reason = read(program, program.calls[-1])
    assert isinstance(reason, str)
    return reason


@pytest.mark.parametrize(
    ("call", "weight"),
    [
        (lambda x, w: aten.linear.default(x, w), (5, 7)),
        (lambda x, w: aten.matmul.default(x, w), (7, 5)),
        (lambda x, w: aten.mm.default(x, w), (7, 5)),
    ],
)
def test_products_of_every_kind_become_one_matrix(call, weight) -> None:
    program = program_of(call, {"x": torch.zeros(3, 7)}, draw({"w": weight}))
    layer = only_layer(program)
    x = random(3, 7).float()
    assert (x.double() @ layer.weight.T).numpy() == pytest.approx(program(x).numpy(), abs=1e-5)
    assert (layer.channels, layer.rows, layer.window, layer.bias_node) == ((5, 7), 3, None, None)


def test_a_product_with_a_bias_keeps_it() -> None:
    program = program_of(
        lambda x, b, w: aten.addmm.default(b, x, w), {"x": torch.zeros(3, 7)}, draw({"b": (5,), "w": (7, 5)})
    )
    layer = only_layer(program)
    assert layer.bias_node is not None
    assert (layer.bias_node.target, layer.channels) == ("b", (5, 7))


def test_a_dynamic_batch_counts_as_one() -> None:
    program = linear(random(5, 7), lead=(4, 9), dynamic={"x": {0: "batch"}})
    assert only_layer(program).rows == 9


def test_integers_behind_a_dequantize_call_are_unpacked() -> None:
    def forward(x, packed, scale, zero):
        weight = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            packed, scale, zero, 0, -128, 127, torch.int8
        )
        return aten.linear.default(x, weight)

    import torch.ao.quantization.fx._decomposed

    packed = torch.randint(-100, 100, (5, 7), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scale, zero = torch.rand(5), torch.zeros(5, dtype=torch.int64)
    weights = {"packed": packed, "scale": scale, "zero": zero}
    program = program_of(forward, {"x": torch.zeros(3, 7)}, weights)
    (_, node) = program.calls
    layer = read(program, node)
    assert isinstance(layer, Layer)
    assert layer.weight.numpy() == pytest.approx((packed * scale[:, None]).numpy())


X, IMAGE = {"x": torch.zeros(3, 7)}, {"x": torch.zeros(2, 8, 6, 6)}


@pytest.mark.parametrize(
    ("function", "inputs", "weights", "reason"),
    [
        (
            lambda x, w: aten.conv2d.default(x, w, None, [1, 1], [0, 0], [1, 1], 4),
            IMAGE,
            {"w": (8, 2, 3, 3)},
            "4 groups",
        ),
        (lambda x, w: aten.conv2d.padding(x, w, None, [1, 1], "same"), IMAGE, {"w": (8, 8, 2, 3)}, "from side to side"),
        (lambda x, w: aten.conv_transpose2d.input(x, w), IMAGE, {"w": (8, 8, 3, 3)}, "conv_transpose2d"),
        (lambda x, w: aten.conv1d.default(x, w), {"x": torch.zeros(2, 8, 9)}, {"w": (8, 8, 3)}, "conv1d"),
        (
            lambda x, w: aten.convolution.default(x, w, None, [1], [0], [1], False, [0], 1),
            {"x": torch.zeros(2, 8, 9)},
            {"w": (8, 8, 3)},
            "convolution in 1 dimensions",
        ),
        (
            lambda x, w: aten.convolution.default(x, w, None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1),
            IMAGE,
            {"w": (8, 8, 3, 3)},
            "transposed",
        ),
        (lambda x, w: aten.conv2d.default(x, aten.abs.default(w)), IMAGE, {"w": (8, 8, 3, 3)}, "weights are computed"),
        (lambda x, w: aten.conv2d.default(x, w), {"x": torch.zeros(8, 6, 6)}, {"w": (8, 8, 3, 3)}, "no batch axis"),
        (lambda x, b, w: aten.addmm.default(b, x, w, beta=2), X, {"b": (5,), "w": (7, 5)}, "its sum is scaled"),
        (lambda x, b, w: aten.addmm.default(b, x, w), X, {"b": (3, 5), "w": (7, 5)}, "no bias"),
    ],
)
def test_what_cannot_be_split_is_told(function, inputs, weights, reason: str) -> None:
    assert reason in why_not(function, inputs, draw(weights))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = random(5, 7)
    weight[2, 3] = value
    program = linear(weight)
    assert read(program, program.calls[0]) == "its weights are not finite"
    program = linear(torch.zeros(5, 7))
    assert read(program, program.calls[0]) == "its weights are zero"


def test_a_shared_weight_is_named_with_its_readers() -> None:
    def forward(x, w):
        return aten.linear.default(aten.linear.default(x, w), w)

    program = program_of(forward, X, draw({"w": (7, 7)}))
    first, second = program.calls
    assert read(program, first) == f"its weight is shared with {second.name}"


def test_products_of_activations_do_not_come_into_question() -> None:
    program = program_of(lambda x, w: aten.matmul.default(x, aten.abs.default(w)), X, draw({"w": (7, 7)}))
    assert not any(map(is_candidate, program.calls))


@pytest.mark.parametrize(
    "window",
    [{}, {"stride": (2, 1), "padding": (0, 2)}, {"dilation": (2, 1)}, {"stride": (3, 2), "padding": (2, 1)}],
)
def test_rows_are_windows_of_the_input(window) -> None:
    """The reference is torch's own unfold; the smaller image has few enough windows that all are drawn."""
    layer = only_layer(convolution(random(4, 3, 3, 2), size=(8, 7), **window))
    w = layer.window
    assert w is not None
    x = random(2, 3, 8, 7).float()
    every = functional.unfold(x, w.kernel, w.dilation, w.padding, w.stride).transpose(1, 2).flatten(0, 1)
    rows = layer.sampler(0)(x)
    assert rows.shape == (min(len(every), 2 * POSITIONS), layer.features)
    known = {tuple(row.tolist()) for row in every}
    assert all(tuple(row.tolist()) in known for row in rows)
    if len(rows) == len(every):
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, every.tolist()))


def test_rows_of_tokens_are_drawn_without_repetition() -> None:
    layer = only_layer(linear(random(5, 7), lead=(2, 200)))
    x = random(2, 200, 7)
    rows = layer.sampler(0)(x)
    assert rows.shape == (2 * POSITIONS, 7)
    assert len({tuple(row.tolist()) for row in rows}) == 2 * POSITIONS
    assert torch.equal(rows, layer.sampler(0)(x))
    assert not torch.equal(rows, layer.sampler(1)(x))


def test_windows_along_one_axis() -> None:
    window = Window((3, 5), (2, 1), (1, 2), (1, 3))
    assert window.along(0) == Window((3, 1), (2, 1), (1, 0), (1, 1))
    assert window.along(1) == Window((1, 5), (1, 1), (0, 2), (1, 3))
