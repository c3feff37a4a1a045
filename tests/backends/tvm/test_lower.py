"""Lowering as a whole: regions, layouts, weights, dynamic dimensions, branches, errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shave.backends.tvm import vm
from shave.backends.tvm.lower import lower
from shave.ir.errors import UnsupportedError
from shave.ir.from_torch import trace
from tests.backends.tvm.compiled import Compiled, host, worst


class _Residual(torch.nn.Module):
    """Two blocks of a residual network with a head; channels are no multiple of any vector."""

    def __init__(self, channels: int = 20) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleList(torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)) for _ in range(2)
        )
        self.head = torch.nn.Linear(channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        for first, second in self.blocks:
            x = F.relu(x + second(F.relu(first(x))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module")
def residual() -> Compiled:
    return Compiled(trace(_Residual().eval(), (torch.randn(2, 3, 14, 10),)))


def test_a_residual_network_is_right(residual: Compiled) -> None:
    x = torch.randn(2, 3, 14, 10)
    assert worst(residual(x)[0], _Residual().eval()(x).detach()) < 1e-5


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_results(residual: Compiled, threads: int) -> None:
    x = torch.randn(2, 3, 14, 10)
    vm.use_threads(threads)
    try:
        assert worst(residual(x)[0], _Residual().eval()(x).detach()) < 1e-5
    finally:
        vm.use_threads(1)


def test_bias_addition_and_activation_are_swallowed(residual: Compiled) -> None:
    kernels = [k for k in residual.lowered.kernels if k.family == "conv"]
    assert [k.nodes for k in kernels] == [
        ("conv2d", "relu"),
        ("conv2d_1", "relu_1"),
        ("conv2d_2", "add", "relu_2"),
        ("conv2d_3", "relu_3"),
        ("conv2d_4", "add_1", "relu_4"),
    ]


def test_every_call_names_the_nodes_it_computes(residual: Compiled) -> None:
    calls = [(k.family, k.nodes) for k in residual.lowered.kernels if k.nodes and k.family != "conv"]
    assert calls == [("pooling", ("max_pool2d",)), ("pooling", ("adaptive_avg_pool2d",)), ("matmul", ("linear",))]


def test_equal_kernels_share_one_function(residual: Compiled) -> None:
    names = [k.name for k in residual.lowered.kernels if k.family == "conv"]
    assert names[1] == names[3]
    assert names[2] == names[4] != names[1]


def test_a_network_of_convolutions_stays_blocked(residual: Compiled) -> None:
    functions = residual.functions()
    assert not any(name.startswith("block") for name in functions)
    # The pooled features are the only thing that leaves the layout.
    assert sum("unblock" in name for name in functions) <= 1


def test_every_function_is_scheduled_and_holds_no_constant(residual: Compiled) -> None:
    for name in residual.functions():
        assert "shave.scheduled" in residual.lowered.module[name].attrs, name
    assert "metadata" not in residual.lowered.module.script()


def test_weights_come_in_the_order_of_the_plan(residual: Compiled) -> None:
    assert residual.lowered.plan is not None
    claimed = {span.index: span.size for span in residual.lowered.plan.spans if span.memory == "weight"}
    assert claimed == {k: array.nbytes for k, (_, array) in enumerate(residual.lowered.weights)}
    assert all(array.flags.c_contiguous for _, array in residual.lowered.weights)


def test_a_pad_ahead_of_convolutions_becomes_their_padding() -> None:
    class Padded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Conv2d(8, 8, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(F.pad(self.first(F.pad(x, (0, 1, 0, 1))), (0, 1, 0, 1)))

    lowered = lower(trace(Padded().eval(), (torch.zeros(1, 3, 16, 16),)), host())
    assert [(k.family, k.nodes) for k in lowered.kernels if k.nodes] == [("conv", ("conv2d",)), ("conv", ("conv2d_1",))]


def test_the_gate_of_an_excitation_scales_weights_instead_of_the_map() -> None:
    class Excited(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.last = (torch.nn.Conv2d(n, 16, 1) for n in (3, 16, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.last(y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1))))

    lowered = lower(trace(Excited().eval(), (torch.zeros(1, 3, 16, 16),)), host())
    assert not any("mul" in k.nodes for k in lowered.kernels)


def test_a_dynamic_batch_stays_dynamic() -> None:
    module = _Residual().eval()
    compiled = Compiled(trace(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes={"x": {0: "batch"}}))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        assert worst(compiled(x)[0], module(x).detach()) < 1e-5


class _Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(50, 24)
        self.norm = torch.nn.LayerNorm(24)
        self.qkv = torch.nn.Linear(24, 72)
        self.out = torch.nn.Linear(24, 24)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + torch.arange(tokens.shape[1])[:, None] / 10
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.out(mixed)


def test_dynamic_batch_and_length_of_a_transformer() -> None:
    module = _Attention().eval()
    program = trace(module, (torch.randint(0, 50, (2, 7)),), dynamic_shapes={"tokens": {0: "batch", 1: "length"}})
    compiled = Compiled(program)
    for shape in ((1, 3), (2, 7), (3, 20)):
        tokens = torch.randint(0, 50, shape)
        assert worst(compiled(tokens)[0], module(tokens).detach()) < 1e-5


class _Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: self.layer(v).sin() + 1, lambda v: v * 2, (x,))


def test_a_branch_is_taken_at_run_time() -> None:
    module = _Branches()
    compiled = Compiled(trace(module, (torch.ones(3, 4),)))
    for x in (torch.rand(3, 4), -torch.rand(3, 4)):
        assert worst(compiled(x)[0], module(x).detach()) < 1e-6


class _Recurrent(torch.nn.Module):
    """The operator, not the layer: torch's layers reassign their weights while they are exported."""

    def __init__(self, operator: str, gates: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operator = getattr(torch, operator)
        shapes = [(gates * 8, 6), (gates * 8, 8), (gates * 8,), (gates * 8,)]
        self.parameters_ = torch.nn.ParameterList(torch.randn(s) / 3 for s in shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = torch.zeros(1, x.shape[0], 8)
        state = (start, start) if self.operator is torch.lstm else start
        return self.operator(x, state, list(self.parameters_), True, 1, 0.0, False, False, True)[0]


@pytest.mark.parametrize(("operator", "gates"), [("lstm", 4), ("gru", 3)])
def test_recurrent_operators_are_decomposed(operator: str, gates: int) -> None:
    module = _Recurrent(operator, gates).eval()
    x = torch.randn(2, 5, 6)
    assert worst(Compiled(trace(module, (x,)))(x)[0], module(x).detach()) < 1e-5


def test_inputs_and_weights_may_be_outputs() -> None:
    class Identity(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([2.0, 3.0]))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return x, self.scale, x * self.scale

    x = torch.tensor([1.0, 5.0])
    same, scale, product = Compiled(trace(Identity(), (x,)))(x)
    np.testing.assert_array_equal(same, [1, 5])
    np.testing.assert_array_equal(scale, [2, 3])
    np.testing.assert_array_equal(product, [2, 15])


def test_all_unsupported_operators_are_named_in_one_error() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.linalg.eigvalsh(x), torch.nonzero(x), x + 1

    with pytest.raises(UnsupportedError, match=r"_linalg_eigh.*aten\.nonzero \(node nonzero\)"):
        lower(trace(Odd(), (torch.eye(3),)), host())


def test_several_threads_may_lower_at_the_same_time() -> None:
    program = trace(_Residual().eval(), (torch.zeros(1, 3, 8, 8),))
    with ThreadPoolExecutor(3) as pool:
        lowered = list(pool.map(lambda _: lower(program, host()), range(3)))
    assert len({tuple(call.name for call in each.kernels) for each in lowered}) == 1
