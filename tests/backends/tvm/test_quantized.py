"""Quantized graphs end to end: rewritten, lowered, built and run, against torch's own execution of the same graph."""

from __future__ import annotations

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import nn

from shave.backends import targets
from shave.backends.tvm.legalise import legalise
from shave.backends.tvm.lower import lower
from shave.backends.tvm.quantized import product_of, quantized
from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from shave.passes.manager import PassManager
from tests.backends.tvm.compiled import Compiled, host

Q = torch.ops.quantized_decomposed

needs_integers = pytest.mark.skipif(host().kind != "x86", reason="integer kernels are for x86")


def real(x, scale=0.05, zero=120, low=0, high=255, dtype=torch.uint8):
    """Quantized and dequantized."""
    codes = Q.quantize_per_tensor(x, scale, zero, low, high, dtype)
    return Q.dequantize_per_tensor(codes, scale, zero, low, high, dtype)


class Layer(nn.Module):
    """Weights of 8 bits with a scale for each output channel, or one for all."""

    def __init__(self, *shape, zero=None, dtype=torch.int8, one=False):
        super().__init__()
        generator = torch.Generator().manual_seed(sum(shape))
        low, high = (-127, 128) if dtype == torch.int8 else (0, 256)
        self.register_buffer("codes", torch.randint(low, high, shape, generator=generator).to(dtype))
        count = 1 if one else shape[0]
        fan_in = self.codes[0].numel()
        self.register_buffer("scales", (torch.rand(count, generator=generator) + 0.5) / 100 / fan_in**0.5)
        self.register_buffer("zeros", torch.full((count,), zero or 0))
        self.bias = nn.Parameter(torch.randn(shape[0], generator=generator) / 4)
        self.dtype, self.one, self.zero = dtype, one, zero or 0

    def weight(self):
        info = torch.iinfo(self.dtype)
        bounds = (info.min, info.max, self.dtype)
        if self.one:
            return Q.dequantize_per_tensor(self.codes, 0.02 / self.codes[0].numel() ** 0.5, self.zero, *bounds)
        return Q.dequantize_per_channel(self.codes, self.scales, self.zeros, 0, *bounds)


class Conv(Layer):
    def __init__(self, *shape, stride=1, padding=0, groups=1, **options):
        super().__init__(*shape, **options)
        self.options = {"stride": stride, "padding": padding, "groups": groups}

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight(), self.bias, **self.options)


class Linear(Layer):
    def forward(self, x):
        return nn.functional.linear(x, self.weight(), self.bias)


class Net(nn.Module):
    def __init__(self, forward, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.compute = forward

    def forward(self, x):
        return self.compute(x, *self.layers)


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * 2


def block(x, first, second, third):
    x = real(torch.relu(first(real(x))), 0.04, 0)
    y = real(torch.relu(second(x)), 0.03, 0)
    return real(torch.relu(third(y) + x), 0.05, 0)


def chain(x, first, second):
    return real(second(real(torch.relu(first(real(x))), 0.04, 0)), 0.06, 101)


def signed(x, first, second):
    x = real(torch.relu(first(real(x, 0.05, -8, -128, 127, torch.int8))), 0.03, -128, -128, 127, torch.int8)
    return real(second(x), 0.05, 3, -128, 127, torch.int8)


def movement(x, first, second):
    x = real(first(real(x)), 0.04, 99)
    x = nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 3, 2)
    x = torch.cat([x, x.flip(3)], 1)
    return real(second(real(x, 0.04, 99)), 0.05, 77)


def padded(x, first, second):
    x = real(torch.relu(first(nn.functional.pad(real(x), (0, 1, 0, 1)))), 0.04, 0)
    return real(second(nn.functional.pad(x, (2, 0))), 0.06, 101)


def classifier(x, first, second):
    x = real(torch.relu(first(real(x))), 0.04, 0)
    x = real(nn.functional.adaptive_avg_pool2d(x, 1), 0.02, 0)
    return second(torch.flatten(x, 1))


def gates(x, first, second):
    x = real(nn.functional.hardswish(first(real(x))), 0.03, 12)
    return real(nn.functional.silu(second(x)), 0.03, 12)


def products(x, first, second):
    x = real(torch.nn.functional.gelu(first(real(x))), 0.03, 12)
    return real(second(x) + real(x[..., :24], 0.03, 12), 0.05, 120)


CASES = {
    "residual block": (block, (2, 32, 9, 10), [Conv(32, 32, 1, 1), Conv(32, 32, 3, 3, padding=1), Conv(32, 32, 1, 1)]),
    "few channels, strides, groups": (
        chain, (1, 3, 19, 21), [Conv(20, 3, 5, 5, stride=2, padding=2), Conv(40, 10, 3, 3, stride=2, groups=2)],
    ),
    "depthwise": (chain, (1, 24, 9, 9), [Conv(24, 1, 3, 3, padding=1, groups=24), Conv(7, 24, 1, 1)]),
    "signed codes": (signed, (1, 8, 7, 7), [Conv(16, 8, 3, 3, padding=1), Conv(16, 16, 1, 1)]),
    "unsigned weights": (
        chain, (1, 8, 7, 7),
        [Conv(16, 8, 3, 3, padding=1, dtype=torch.uint8, zero=128), Conv(16, 16, 1, 1, one=True)],
    ),
    "movement of codes": (movement, (1, 16, 10, 10), [Conv(16, 16, 3, 3), Conv(24, 32, 1, 1)]),
    "uneven padding": (padded, (1, 16, 9, 9), [Conv(16, 16, 3, 3, stride=2), Conv(20, 16, 3, 3)]),
    "mean and product": (classifier, (2, 8, 12, 12), [Conv(32, 8, 3, 3, padding=1), Linear(10, 32)]),
    "activations": (gates, (1, 16, 6, 6), [Conv(16, 16, 1, 1), Conv(20, 16, 3, 3)]),
    "products of rows": (products, (3, 7, 30), [Linear(50, 30), Linear(24, 50)]),
}  # fmt: skip


def program_of(forward, shape, layers):
    return trace(Net(forward, *layers), (image(*shape),))


@needs_integers
@pytest.mark.parametrize(("forward", "shape", "layers"), CASES.values(), ids=CASES)
def test_results_are_those_of_torch_up_to_ties(forward, shape, layers):
    program, x = program_of(forward, shape, layers), image(*shape)
    compiled = Compiled(program)
    (found,), expected = compiled(x), program(x)
    step = 0.06  # the largest scale of an output
    difference = (found - expected).abs()
    assert difference.max() < 1.01 * step
    assert (difference > step / 10).float().mean() < 0.01
    products = [call for call in compiled.lowered.kernels if call.kernel is not None and call.family != "pooling"]
    assert len(products) == len(layers)
    assert all(call.kernel.shape.dtype == "uint8" for call in products)


@needs_integers
def test_nothing_is_float_between_two_layers():
    forward, shape, layers = CASES["residual block"]
    names = [call.name for call in Compiled(program_of(forward, shape, layers)).lowered.kernels]
    assert [name.partition("_")[0] for name in names] == ["fused", "conv", "conv", "conv", "fused"]
    assert "dequantize" not in names[0]


def alike(x, *layers):
    x = real(x)
    for number, layer in enumerate(layers):
        x = real(layer(x), 0.04 + number / 100, 99 + number, 0, 255 - number)
        x = real(torch.sigmoid(x) - number, 0.01 + number / 1000, 30 + number)
    return x


@needs_integers
@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((1, 16, 5, 9), [Conv(16, 16, 3, 3, padding=1) for _ in range(3)]),
        ((1, 16, 5, 9), [Conv(16, 1, 3, 3, padding=1, groups=16) for _ in range(3)]),
        ((5, 24), [Linear(24, 24) for _ in range(3)]),
    ],
    ids=["convolution", "depthwise", "linear"],
)
def test_layers_that_differ_in_numbers_share_code(shape, layers):
    compiled, x = Compiled(program_of(alike, shape, layers)), image(*shape)
    kernels = [call.name for call in compiled.lowered.kernels if call.kernel is not None]
    assert len(kernels) == 3
    assert len(set(kernels)) == 1
    (found,), expected = compiled(x), program_of(alike, shape, layers)(x)
    assert (found - expected).abs().max() < 1.01 * 0.012


def test_conversions_that_differ_in_numbers_share_code():
    def conversions(x):
        return tuple(real(x, scale, zero) for scale, zero in ((0.05, 120), (0.04, 119), (0.03, 0)))

    compiled, x = Compiled(program_of(conversions, (7, 9), ())), image(7, 9)
    assert len({call.name for call in compiled.lowered.kernels}) == 1 < len(compiled.lowered.kernels)
    for found, expected in zip(compiled(x), conversions(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("numbers", [(0.05, 256, 0, 255), (0.05, -1, 0, 255), (0.05, 3, 0, 256)])
def test_numbers_that_are_no_codes_are_left_to_floats(numbers):
    program = program_of(lambda x: Q.quantize_per_tensor(x, *numbers, torch.uint8), (2, 3), ())
    (node,) = program.calls
    assert quantized(node) is None


@needs_integers
@pytest.mark.parametrize(("forward", "shape", "layers"), CASES.values(), ids=CASES)
def test_nothing_is_stored_that_no_kernel_reads(forward, shape, layers):
    lowered = lower(program_of(forward, shape, layers), host())
    held = [array.dtype.name for _, array in lowered.weights]
    assert "int64" not in held
    assert held.count("int8") <= len(layers)


@needs_integers
@pytest.mark.parametrize(("groups", "bits"), [(1, 4), (96, 8), (96, 4)])
def test_integers_are_stored_without_the_zeros_of_kernels(groups, bits):
    layer = nn.Conv2d(96, 96, 3, padding=1, groups=groups)
    program = trace(layer.eval(), (image(1, 96, 9, 7),))
    small = PassManager(f"quantize{{bits={bits}}}").run(program, calibration=[image(1, 96, 9, 7)])
    lowered = lower(small, host())
    (name,) = (name for name, small in lowered.encoded.items() if small.encoding.kind == "integers")
    assert lowered.encoded[name].parts["codes"].nbytes == layer.weight.numel() * bits // 8
    x = image(1, 96, 9, 7)
    (found,), expected = Compiled(small)(x), small(x)
    assert (found - expected).abs().max() < 1e-4


@needs_integers
def test_padding_is_part_of_a_convolution():
    names = [call.name for call in lower(program_of(*CASES["uneven padding"]), host()).kernels]
    assert len(names) == 4
    assert not [name for name in names if "pad" in name]


def test_floats_are_multiplied_where_the_target_multiplies_no_integers():
    program = program_of(*CASES["products of rows"])
    kept = [node for node in legalise(program, True).calls if product_of(node)]
    folded = [node for node in legalise(program, False).calls if product_of(node)]
    assert (len(kept), len(folded)) == (2, 0)
    assert targets.resolve("neoverse-n1").kind == "arm"


def test_weights_that_floats_meet_are_folded():
    layer = Linear(8, 16)
    program = trace(Net(lambda x, layer: layer(x), layer), (image(4, 16),))
    assert not [n for n in legalise(program).calls if "dequantize" in op_name(n)]


def test_codes_with_unequal_parameters_are_not_joined():
    def forward(x):
        return torch.cat([real(x, 0.1, 3), real(-x, 0.2, 3)], 1)

    calls = legalise(trace(Net(forward), (image(1, 4, 5, 5),))).calls
    assert next(n for n in calls if op_name(n) == "aten.cat").meta["val"].dtype == torch.float32


def test_equal_conversions_are_one_and_opposite_ones_cancel():
    def forward(x):
        y = real(real(x, 0.1, 3), 0.1, 3)
        return real(x, 0.1, 3) + y

    names = [op_name(n).partition(".")[2] for n in legalise(trace(Net(forward), (image(1, 4, 5, 5),))).calls]
    assert names == ["quantize_per_tensor", "dequantize_per_tensor", "add"]


def test_weights_too_far_from_their_zero_point_stay_floats():
    layer = Conv(8, 4, 1, 1, dtype=torch.uint8, zero=20)
    layer.codes[0, 0] = 200
    program = trace(Net(lambda x, layer: layer(real(x)), layer), (image(1, 4, 5, 5),))
    assert not [n for n in legalise(program).calls if product_of(n)]
