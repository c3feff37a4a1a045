"""Products of two quantized activations end to end, against torch's own execution of the same graph."""

from __future__ import annotations

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import nn

from shave.backends import targets
from shave.backends.tvm.lower import lower
from shave.ir.from_torch import trace
from tests.backends.tvm.compiled import Compiled, host

Q = torch.ops.quantized_decomposed

needs_integers = pytest.mark.skipif(host().kind != "x86", reason="integer kernels are for x86")


def real(x, scale=0.05, zero=120):
    """Quantized and dequantized."""
    codes = Q.quantize_per_tensor(x, scale, zero, 0, 255, torch.uint8)
    return Q.dequantize_per_tensor(codes, scale, zero, 0, 255, torch.uint8)


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.compute = forward

    def forward(self, *inputs):
        return self.compute(*inputs)


def attention(q, k, v):
    q, k, v = real(q), real(k, 0.04, 101), real(v, 0.03, 140)
    weights = torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1)
    return real(real(weights, 1 / 255, 0) @ v, 0.02, 127)


def heads(q, k, v):
    """Heads are brought forward by views, as exporters write them."""
    q, k, v = (real(x, s, z) for x, s, z in ((q, 0.05, 99), (k, 0.04, 101), (v, 0.03, 140)))
    q, k, v = (x.view(x.shape[0], x.shape[1], 2, -1).permute(0, 2, 1, 3) for x in (q, k, v))
    weights = torch.softmax(q @ k.permute(0, 1, 3, 2) / 4, -1)
    made = (real(weights, 0.00413, 0) @ v).permute(0, 2, 1, 3)
    return real(made.reshape(*made.shape[:2], -1), 0.0203, 127)


CASES = {
    "attention": (attention, [(2, 3, 19, 32), (2, 3, 21, 32), (2, 3, 21, 24)], 2),
    "heads": (heads, [(2, 13, 40), (2, 13, 40), (2, 13, 40)], 2),
    "one matrix for all": (lambda a, b: real(a) @ real(b, 0.03, 7), [(2, 3, 5, 9), (9, 18)], 1),
    "matrices repeated": (lambda a, b: real(a) @ real(b, 0.03, 7), [(3, 1, 5, 9), (2, 9, 18)], 1),
    "bmm": (lambda a, b: torch.bmm(real(a), real(b, 0.03, 7)), [(3, 5, 9), (3, 9, 18)], 1),
    "matrix and vector": (lambda a, b: real(a) @ real(b, 0.03, 7), [(5, 37), (37,)], 1),
    "weights that are computed": (
        lambda a, w, b: nn.functional.linear(real(a), real(w, 0.03, 7), b), [(4, 5, 9), (18, 9), (18,)], 1,
    ),
    "a sum besides": (lambda s, a, b: torch.baddbmm(s, real(a), real(b)), [(3, 5, 18), (3, 5, 9), (3, 9, 18)], 1),
    "codes read twice": (lambda a: (lambda c: real(c @ c.mT / 9, 0.02, 90) + c.mean())(real(a)), [(2, 12, 12)], 1),
}  # fmt: skip


def inputs_of(shapes):
    return [torch.randn(s, generator=torch.Generator().manual_seed(k)) * 2 for k, s in enumerate(shapes)]


def products(lowered):
    return [call for call in lowered.kernels if call.family == "batch_dot"]


def close(found, expected, step):
    """Equal but for values next to a tie, which differ by a step."""
    difference = (found - expected).abs()
    assert difference.max() < 1.01 * step
    assert (difference > step / 10).float().mean() < 0.01


@needs_integers
@pytest.mark.parametrize(("forward", "shapes", "count"), CASES.values(), ids=CASES)
def test_results_are_those_of_torch_up_to_ties(forward, shapes, count):
    inputs = inputs_of(shapes)
    program = trace(Net(forward), tuple(inputs))
    compiled = Compiled(program)
    (found,) = compiled(*inputs)
    assert len(products(compiled.lowered)) == count
    close(found, program(*inputs), 0.02)


@needs_integers
def test_lengths_known_only_at_run_time():
    length = torch.export.Dim("length", min=2, max=100)
    shapes = {name: {1: length} for name in ("q", "k", "v")}
    given = inputs_of([(2, 13, 40)] * 3)
    program = trace(Heads(), tuple(given), dynamic_shapes=shapes)
    compiled = Compiled(program)
    assert len(products(compiled.lowered)) == 2
    for count in (13, 2, 67):
        inputs = inputs_of([(2, count, 40)] * 3)
        close(compiled(*inputs)[0], program(*inputs), 0.02)


class Heads(nn.Module):
    def forward(self, q, k, v):
        return heads(q, k, v)


@needs_integers
def test_factors_and_roundings_are_part_of_the_kernel():
    program = trace(Net(attention), tuple(inputs_of(CASES["attention"][1])))
    first, second = products(lower(program, host()))
    assert "mul" in first.nodes
    assert second.kernel.epilogue.quantize is not None


def test_floats_are_multiplied_where_the_target_multiplies_no_integers():
    program = trace(Net(attention), tuple(inputs_of(CASES["attention"][1])))
    assert not products(lower(program, targets.resolve("neoverse-n1")))
