from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from shave.passes.quantize.placement import place, selectable


class Fixed(nn.Module):
    """Calls a function with some layers at hand."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)  # type: ignore[no-any-return]


def quantized(function) -> list[str]:  # type: ignore[no-untyped-def]
    """Operators whose values are quantized, in order; an input is ``x``."""
    program = trace(Fixed(function), (torch.randn(2, 4, 6, 6),))
    placement = place(program, set(selectable(program.calls)))
    return [op_name(value).removeprefix("aten.") if value.op == "call_function" else "x" for value in placement.readers]


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        pytest.param(lambda m, x: m.conv(x), ["x"], id="nothing behind a product that is the output"),
        pytest.param(lambda m, x: m.other(m.conv(x).relu()), ["x", "relu"], id="behind the activation, not before"),
        pytest.param(lambda m, x: functional.max_pool2d(x, 2), [], id="nothing where no product is"),
        pytest.param(lambda m, x: m.conv(x).mean((2, 3)), ["x"], id="no pair that leads nowhere"),
        pytest.param(
            lambda m, x: m.other(functional.max_pool2d(m.conv(x), 2)), ["x", "conv2d", "max_pool2d"], id="pooling"
        ),
        pytest.param(
            lambda m, x: m.other(functional.max_pool2d(m.conv(x), 2).relu()),
            ["x", "conv2d", "relu"],
            id="pooling ahead of an activation",
        ),
        pytest.param(
            lambda m, x: m.other(x + m.conv(x)), ["x", "add"], id="a sum takes the result of its product unrounded"
        ),
        pytest.param(
            lambda m, x: m.other(m.conv(x) + m.other(x)),
            ["x", "conv2d", "add"],
            id="of two products the earlier is rounded",
        ),
        pytest.param(lambda m, x: x + m.conv(x), ["x"], id="a sum that is the output stays in float"),
        pytest.param(
            lambda m, x: m.other(y * torch.sigmoid(y)) if (y := m.conv(x)) is not None else None,
            ["x", "mul"],
            id="swish in pieces belongs to its product",
        ),
        pytest.param(
            lambda m, x: m.linear(x + m.norm(m.linear(x))), ["x", "add"], id="a sum behind a norm takes it unrounded"
        ),
        pytest.param(lambda m, x: m.norm(x + m.linear(x)), ["x"], id="a sum ahead of a norm stays in float"),
        pytest.param(
            lambda m, x: m.other(functional.pad(x, (1, 1), value=0.0)), ["x", "pad"], id="zeros are integers, too"
        ),
        pytest.param(lambda m, x: m.other(functional.pad(x, (1, 1), value=2.0)), ["pad"], id="other padding is not"),
        pytest.param(
            lambda m, x: m.linear(m.conv(x).permute(0, 2, 3, 1).reshape(-1, 6)),
            ["x", "conv2d", "permute", "reshape"],
            id="movement of integers",
        ),
        pytest.param(lambda m, x: x @ x.transpose(-1, -2), ["x", "transpose"], id="both factors of a product"),
        pytest.param(lambda m, x: functional.scaled_dot_product_attention(x, x, x), [], id="attention is one operator"),
        pytest.param(lambda m, x: m.conv(x.double().float()), ["to"], id="what is cast is a float value like others"),
    ],
)
def test_where_pairs_go(function, wanted: list[str]) -> None:  # type: ignore[no-untyped-def]
    found = quantized(function)
    assert [name.replace("_to_copy", "to") for name in found] == wanted


def test_every_call_has_a_reason_and_scales_are_shared() -> None:
    def function(m: Fixed, x: torch.Tensor) -> torch.Tensor:
        parts = torch.cat([m.conv(x).relu(), m.other(x)], 1)
        return m.other(functional.max_pool2d(parts, 2)[:, :4])

    program = trace(Fixed(function), (torch.randn(2, 4, 6, 6),))
    placement = place(program, set(selectable(program.calls)))
    assert set(placement.reasons) == set(program.calls)
    assert all(text for _, text in placement.reasons.values())
    sizes = sorted(len(group) for group in placement.groups())
    assert sizes == [1, 5]  # the input; both parts, what joins them, pools them and takes some


def test_what_a_scope_leaves_out_breaks_the_way() -> None:
    program = trace(Fixed(lambda m, x: m.other(functional.max_pool2d(m.conv(x), 2))), (torch.randn(2, 4, 6, 6),))
    chosen = {node for node in selectable(program.calls) if "max_pool" not in node.name}
    placement = place(program, chosen)
    names = [value.name for value in placement.readers]
    assert names == ["x", "max_pool2d"]
    assert [placement.reasons[node] for node in program.calls if "max_pool" in node.name] == [
        (False, "left out by its scope")
    ]
