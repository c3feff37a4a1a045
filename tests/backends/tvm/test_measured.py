"""Programs that find the range of what they round: rewritten, lowered, built and run, against torch's execution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import nn

from shave.backends.tvm.legalise import legalise
from shave.backends.tvm.quantized import MeasuredCodes, measured, product_of
from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.manager import PassManager
from tests.backends.tvm.compiled import Compiled, host, worst

Q = torch.ops.quantized_decomposed
BOUNDS = ("tensor", "token")

pytestmark = pytest.mark.skipif(host().kind != "x86", reason="integer kernels are for x86")


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(37, 20), nn.GELU(), nn.Linear(20, 45), nn.ReLU(), nn.Linear(45, 3, bias=False))


def images() -> nn.Module:
    """Few channels, depthwise, 1x1, padding, a stride, and blocks that are not full."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 21, 1), nn.SiLU(),
        nn.Conv2d(21, 32, (3, 1), stride=2, padding=(1, 0)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 7),
    )  # fmt: skip


class Shared(nn.Module):
    """Three layers read one value, which goes on as floats too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (self.q(x) @ self.k(x).transpose(-1, -2)).softmax(-1) @ self.v(x)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "perceptron": (perceptron, (3, 5, 37), 3),
    "one row": (perceptron, (1, 37), 3),
    "a vector": (perceptron, (37,), 3),
    "images": (images, (2, 3, 13, 11), 5),
    "shared": (Shared, (2, 9, 24), 3),
}


def made(name: str, bounds: str, **options: object) -> tuple[Program, torch.Tensor]:
    torch.manual_seed(0)
    make, shape, _ = NETS[name]
    x = normal(*shape)
    program = trace(make().eval(), (x,), **options)  # type: ignore[arg-type]
    return PassManager(f"quantize-dynamic{{bounds={bounds}}}").run(program), x


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", NETS)
def test_every_layer_runs_in_integers_and_gives_what_torch_gives(name: str, bounds: str) -> None:
    program, x = made(name, bounds)
    compiled = Compiled(program)
    products = [
        call.kernel.shape
        for call in compiled.lowered.kernels
        if call.kernel is not None and call.family in ("conv", "depthwise_dot", "depthwise", "matmul")
    ]
    assert [shape.dtype for shape in products] == ["uint8"] * NETS[name][2]
    assert worst(compiled(x)[0], program(x)) < 1e-4


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("size", [0.0, 1e-3, 1e6, 1e30])
def test_inputs_of_any_size(size: float, bounds: str) -> None:
    program, x = made("perceptron", bounds)
    compiled = Compiled(program)
    for given in (x * size, torch.full_like(x, size), -x.abs() * size):
        assert worst(compiled(given)[0], program(given)) < 1e-4


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_batch_known_only_at_run_time(bounds: str) -> None:
    program, _ = made("perceptron", bounds, dynamic_shapes={"input": {0: "batch", 1: "length"}})
    compiled = Compiled(program)
    for batch, length in ((1, 1), (4, 3), (2, 31)):
        x = normal(batch, length, 37)
        assert worst(compiled(x)[0], program(x)) < 1e-4


@pytest.mark.parametrize("bounds", BOUNDS)
def test_threads_give_the_same(bounds: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(512, 96).eval(), normal(300, 512)
    program = PassManager(f"quantize-dynamic{{bounds={bounds}}}").run(trace(layer, (x,)))
    one, two = (Compiled(program, replace(host(), cores=cores)) for cores in (1, 2))
    assert torch.equal(one(x)[0], two(x)[0])
    assert worst(one(x)[0], program(x)) < 1e-4


@pytest.mark.parametrize("bounds", BOUNDS)
def test_layers_that_read_one_value_share_its_codes(bounds: str) -> None:
    program, _ = made("shared", bounds)
    assert len([node for node in legalise(program).calls if measured(node)]) == 1


class Twice(nn.Module):
    """What PT2E writes for two layers, each with an observer of its own; codes with a sign."""

    def __init__(self, read: bool = False) -> None:
        super().__init__()
        self.read = read
        generator = torch.Generator().manual_seed(3)
        for name in ("a", "b"):
            codes = torch.randint(-127, 128, (11, 19), generator=generator).to(torch.int8)
            self.register_buffer(f"{name}_codes", codes)
            self.register_buffer(f"{name}_scales", torch.rand(11, generator=generator) / 300)
        self.register_buffer("zeros", torch.zeros(11, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for name in ("a", "b"):
            scale, zero = Q.choose_qparams.tensor(x, -128, 127, 1.1920928955078125e-07, torch.int8)
            codes = Q.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8)
            real = Q.dequantize_per_tensor.tensor(codes, scale, zero, -128, 127, torch.int8)
            weight = (getattr(self, f"{name}_codes"), getattr(self, f"{name}_scales"), self.zeros)
            weight = Q.dequantize_per_channel(*weight, 0, -127, 127, torch.int8)
            total = total + nn.functional.linear(real, weight)
            if self.read:
                total = total + scale.float()
        return total


def test_signed_codes_of_others_are_one_and_run_in_integers() -> None:
    x = normal(6, 19)
    program = trace(Twice(), (x,))
    calls = legalise(program).calls
    assert len([node for node in calls if op_name(node) == "quantized_decomposed.choose_qparams"]) == 1
    found = [product for node in calls if (product := product_of(node))]
    assert len(found) == 2
    assert all(isinstance(product.x, MeasuredCodes) and product.x.offset == 0 for product in found)
    assert worst(Compiled(program)(x)[0], program(x)) < 1e-5


def test_a_scale_that_others_read_is_a_tensor_like_any() -> None:
    x = normal(6, 19)
    program = trace(Twice(read=True), (x,))
    assert not any(map(measured, legalise(program).calls))
    assert worst(Compiled(program)(x)[0], program(x)) < 1e-5


@pytest.mark.parametrize("bounds", BOUNDS)
def test_floats_are_multiplied_where_the_target_multiplies_no_integers(bounds: str) -> None:
    program, _ = made("perceptron", bounds)
    assert not [node for node in legalise(program, integers=False).calls if product_of(node)]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_codes_that_meet_no_integers_become_floats_again(bounds: str) -> None:
    module = nn.ConvTranspose2d(5, 4, 3)
    x = normal(2, 5, 6, 7)
    program = PassManager(f"quantize-dynamic{{bounds={bounds}}}").run(trace(module.eval(), (x,)))
    assert worst(Compiled(program)(x)[0], program(x)) < 1e-5
