"""Where the elements of a chain of views lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._guards import detect_fake_mode

from shave.backends.tvm.views import asking, follow, follow_rows
from shave.ir.from_torch import trace

Tensor = torch.Tensor


class _Call(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        # The chain must not be the result itself: a result is copied out of its view.
        return self.function(x) + 0.5


def _followed(function: Callable[[Tensor], Tensor], rows: bool = False) -> tuple[str, Tensor, Tensor, float]:
    """Source, what following finds of a range of numbers, what the function gives, and the factor."""
    x = torch.arange(120.0).view(2, 3, 4, 5)
    program = trace(_Call(function), (x,))
    (node,) = (n for n in program.calls if n.name.startswith("add"))
    mode = detect_fake_mode([n.meta["val"] for n in program.graph.nodes if "val" in n.meta])
    assert mode is not None
    with asking(mode):
        found = (follow_rows if rows else follow)(node.args[0])  # type: ignore[arg-type]
    t = found.tensor
    return found.source.op, x.as_strided(t.shape, t.stride(), t.storage_offset()), function(x), found.factor


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(2, 0, 3, 1),
        lambda x: x.view(6, 20)[1:5, 3:11].unsqueeze(0),
        lambda x: x.unbind(1)[2].transpose(0, 1),
        lambda x: x.split([1, 3], dim=2)[1].expand(2, 3, 3, 5),
        lambda x: x.chunk(2, -1)[1].flatten(0, 1).select(0, 4),
        lambda x: x.transpose(0, 3).squeeze().movedim(0, 2),
    ],
)
def test_views_lead_to_the_input(function: Callable[[Tensor], Tensor]) -> None:
    source, found, expected, factor = _followed(function)
    assert source == "placeholder"
    assert torch.equal(found, expected)
    assert factor == 1


def test_numbers_are_collected_on_the_way() -> None:
    _, found, expected, factor = _followed(lambda x: (x.transpose(1, 2) * 3.0)[:, 1] / 2)
    assert torch.equal(found * factor, expected)
    assert factor == 1.5


def test_a_reshape_that_copies_is_a_source() -> None:
    source, found, expected, _ = _followed(lambda x: (x * 2).transpose(0, 1).reshape(6, 20).T)
    assert source == "call_function"
    assert found.shape == expected.shape == (20, 6)
    assert found.stride() == (1, 20)


def test_rows_with_gaps_are_a_source() -> None:
    source, found, expected, _ = _followed(lambda x: x.transpose(2, 3), rows=True)
    assert source == "call_function"
    assert found.shape == expected.shape
    assert found.is_contiguous()
