"""What the planner makes of programs: which copies it avoids, and which it makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from shave.backends.plan import Plan
from shave.backends.tvm.lower import lower
from shave.ir.from_torch import trace
from tests.backends.tvm.compiled import Compiled, host, worst

WIDE = torch.randn(32, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5
NARROW = torch.randn(16, 32, 1, 1, generator=torch.Generator().manual_seed(1)) / 5


class _Function(torch.nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("wide", WIDE)
        self.register_buffer("narrow", NARROW)

    def forward(self, x: torch.Tensor) -> object:
        return self.function(self, x)


def _wide(m: _Function, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, m.wide, padding=1)


def _narrow(m: _Function, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, m.narrow)


def _joined(m: _Function, x: torch.Tensor) -> torch.Tensor:
    a = _wide(m, x)
    return F.max_pool2d(torch.cat([a, _narrow(m, a)], 1), 2)


def _dense(m: _Function, x: torch.Tensor) -> torch.Tensor:
    features = [_wide(m, x)]
    for _ in range(3):
        features.append(_narrow(m, torch.cat(features, 1).relu().split(32, 1)[0]))
    return F.max_pool2d(torch.cat(features, 1), 2)


def _twice(m: _Function, x: torch.Tensor) -> torch.Tensor:
    a = _narrow(m, _wide(m, x))
    return F.max_pool2d(torch.cat([a, a], 1), 2)


def _two_homes(m: _Function, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a, b = _wide(m, x), _narrow(m, _wide(m, x))
    return F.max_pool2d(torch.cat([a, b], 1), 2), F.max_pool2d(torch.cat([b, a], 1), 2)


def _of_inputs(m: _Function, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x * 2], 1).flatten(1) @ torch.ones(384, 1)


def _parts(m: _Function, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a, b = _wide(m, x).split([16, 16], 1)
    return F.max_pool2d(b, 2), F.max_pool2d(a, 2)


def _outputs(m: _Function, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = x * 3
    return y, y, x, y.reshape(-1), m.wide


def _stacked(m: _Function, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.exp(), x.cos()])


def _kernels(plan: Plan) -> list[str]:
    return [step.kernel.rpartition("_")[0] or step.kernel for step in plan.steps]


@pytest.mark.parametrize(
    ("function", "copies"),
    [
        (_joined, 0),
        (_dense, 0),
        (_twice, 1),
        (_two_homes, 2),
        (_of_inputs, 1),
        (_parts, 0),
        (_outputs, 4),
        (_stacked, 0),
    ],
)
def test_results_are_right_and_little_is_copied(function: Callable[..., object], copies: int) -> None:
    module = _Function(function).eval()
    x = torch.rand(1, 3, 8, 8) + 0.5
    compiled = Compiled(trace(module, (x,)))
    plan = compiled.lowered.plan
    assert plan is not None
    assert _kernels(plan).count("copy") == copies, plan
    expected = module(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    results = compiled(x)
    assert len(results) == len(expected)
    assert max(worst(y, r.detach()) for y, r in zip(results, expected, strict=True)) < 1e-5
    assert not {"join", "cat", "split", "stack"} & set(_kernels(plan))


def test_a_chain_of_joins_is_one_buffer() -> None:
    plan = lower(trace(_Function(_dense).eval(), (torch.zeros(1, 3, 8, 8),)), host()).plan
    assert plan is not None
    largest = max(int(size) for size in plan.buffers)
    assert largest == (32 + 3 * 16) * 64 * 4


@pytest.mark.parametrize("function", [_joined, _dense, _parts])
def test_with_a_batch_parts_do_not_follow_each_other(function: Callable[..., object]) -> None:
    module = _Function(function).eval()
    x = torch.rand(2, 3, 8, 8)
    expected = module(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for y, r in zip(Compiled(trace(module, (x,)))(x), expected, strict=True):
        assert worst(y, r.detach()) < 1e-5


def test_memory_is_shared() -> None:
    class Chain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(20):
                x = F.max_pool2d(x, 3, 1, 1)
            return x

    x = torch.zeros(1, 16, 32, 32)
    plan = lower(trace(Chain(), (x,)), host()).plan
    assert plan is not None
    assert len(plan.buffers) >= 19
    placed = plan.at([x.shape], {"input": [4], "output": [4]}, [])
    assert placed.workspace == 2 * x.nelement() * 4


def test_branches_and_sizes_from_data_are_for_the_virtual_machine() -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    lowered = lower(trace(Branch(), (torch.ones(3),)), host())
    assert lowered.plan is None
    assert "main" in [name.name_hint for name in lowered.module.get_global_vars()]


def test_dynamic_sizes_are_formulas() -> None:
    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z = torch.cat([x, y], 1)
            return z[:, : z.shape[1] - 2].softmax(1), z.reshape(-1)

    module = Halves()
    dims = {"x": {0: "batch", 1: "long"}, "y": {0: "batch"}}
    compiled = Compiled(trace(module, (torch.zeros(2, 6), torch.zeros(2, 3)), dynamic_shapes=dims))
    plan = compiled.lowered.plan
    assert plan is not None
    assert plan.dims == ((0, 0), (0, 1))
    for batch, long in ((2, 6), (1, 1), (5, 40), (3, 2)):
        x, y = torch.randn(batch, long), torch.randn(batch, 3)
        for result, expected in zip(compiled(x, y), module(x, y), strict=True):
            assert worst(result, expected) < 1e-6
