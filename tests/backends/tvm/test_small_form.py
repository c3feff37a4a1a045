"""What is stored small: the same weights as without it, and the artifact computes what the program does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators

import shave
from shave.backends.targets import resolve
from shave.backends.tvm.lower import Lowered, lower
from shave.ir.lookup import pack_codes
from shave.ir.ops import op_name
from shave.ir.program import Program
from tests.backends.tvm.compiled import worst
from tests.passes.handmade import program_of

aten = torch.ops.aten
shave_lookup = torch.ops.shave.lookup.default
quantized = torch.ops.quantized_decomposed
TARGET = resolve("x86-64-v4")


def conv(padding: int, groups: int) -> Any:
    return lambda x, w: aten.conv2d.default(x, w, None, [1, 1], [padding, padding], [1, 1], groups)


LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any]] = {
    "conv": ((40, 24, 3, 3), (2, 24, 7, 5), lambda x, w: aten.conv2d.default(x, w, None, [2, 1], [1, 1])),
    "first conv": ((40, 3, 5, 5), (2, 3, 9, 9), lambda x, w: aten.conv2d.default(x, w)),
    "grouped conv": ((40, 20, 3, 3), (2, 40, 7, 5), conv(1, 2)),
    "small groups": ((64, 4, 3, 3), (2, 64, 7, 5), conv(1, 16)),
    "depthwise": ((90, 1, 5, 5), (2, 90, 7, 6), conv(2, 90)),
    "transposed conv": ((24, 40, 3, 3), (2, 24, 5, 4), lambda x, w: aten.conv_transpose2d.input(x, w, None, [2, 2])),
    "linear": ((45, 70), (3, 70), lambda x, w: aten.linear.default(x, w)),
    "deep linear": ((32, 2000), (3, 2000), lambda x, w: aten.linear.default(x, w)),
    "matmul": ((70, 45), (3, 70), lambda x, w: aten.matmul.default(x, w)),
    "transposed matmul": ((45, 70), (3, 70), lambda x, w: aten.mm.default(x, aten.t.default(w))),
    "permuted": ((45, 7, 10), (3, 70), lambda x, w: aten.mm.default(
        x, aten.reshape.default(aten.permute.default(w, [1, 2, 0]), [70, 45]))),
    "elementwise": ((45, 70), (45, 70), lambda x, w: aten.mul.Tensor(x, w)),
}  # fmt: skip


def lookup(
    shape: tuple[int, ...], axis: int | None, bits: int = 3
) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """What decodes a weight, the weights it reads, and the values."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    codebook = torch.randn(*([] if axis is None else [shape[axis]]), 2**bits, generator=generator)
    packed = pack_codes(codes, bits)
    given = {"layer.codes": packed, "layer.codebook": codebook}
    values = shave_lookup(packed, codebook, bits, shape, axis)
    return lambda c, t: shave_lookup(c, t, bits, list(shape), axis), given, values


def dequantize(shape: tuple[int, ...], axis: int | None) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
    if axis is None:
        made = lambda c: quantized.dequantize_per_tensor.default(c, 0.013, 3, -128, 127, torch.int8)  # noqa: E731
        return made, {"layer.codes": codes}, made(codes)
    scales = torch.rand(shape[axis], generator=generator) / 50
    zeros = torch.randint(-3, 4, (shape[axis],), generator=generator)
    made = lambda c, s, z: quantized.dequantize_per_channel.default(c, s, z, axis, -128, 127, torch.int8)  # noqa: E731
    return made, {"layer.codes": codes, "layer.scales": scales, "layer.zeros": zeros}, made(codes, scales, zeros)


def lowered(name: str, weights: dict[str, torch.Tensor], made: Any) -> tuple[Program, Lowered]:
    _, x, layer = LAYERS[name]
    program = program_of(lambda x, *ws: layer(x, made(*ws)), {"x": torch.zeros(x)}, weights)
    return program, lower(program, TARGET)


def check(name: str, storage: Any, axis: int | None) -> Lowered:
    made, weights, values = storage(LAYERS[name][0], axis)
    _, small = lowered(name, weights, made)
    _, plain = lowered(name, {"layer.weight": values}, lambda w: w)
    assert len(small.weights) == len(plain.weights) == 1
    np.testing.assert_array_equal(small.weights[0][1], plain.weights[0][1])
    assert not plain.encoded
    (encoded,) = small.encoded.values()
    np.testing.assert_array_equal(encoded.encoding.decode(encoded.parts), plain.weights[0][1])
    assert encoded.nbytes < 0.45 * 4 * values.numel()
    return small


@pytest.mark.parametrize("name", LAYERS)
def test_codes_and_tables_are_stored_in_the_order_of_the_program(name: str) -> None:
    encoded = check(name, lookup, None).encoded
    (form,) = encoded.values()
    assert form.encoding.kind == "lookup"
    assert form.parts["codes"].nbytes == -(-np.prod(LAYERS[name][0]) * 3 // 8)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_integers_and_scales(name: str, axis: int | None) -> None:
    (form,) = check(name, dequantize, axis).encoded.values()
    assert form.encoding.kind == "affine"


@pytest.mark.parametrize("name", ["conv", "linear", "transposed conv"])
def test_tables_of_channels(name: str) -> None:
    made, weights, values = lookup(LAYERS[name][0], 1, bits=1)
    _, small = lowered(name, weights, made)
    (form,) = small.encoded.values()
    _, plain = lowered(name, {"layer.weight": values}, lambda w: w)
    np.testing.assert_array_equal(form.encoding.decode(form.parts), plain.weights[0][1])


def test_four_bits_in_groups_take_half_a_byte_each() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (48, 96), generator=generator).to(torch.int8)
    scales, zeros = torch.rand(48, 3, generator=generator), torch.zeros(48, 3)

    def made(c: Any, s: Any, z: Any) -> Any:
        return quantized.dequantize_per_channel_group.default(c, s, z, -8, 7, torch.int8, 32, torch.float32)

    program = program_of(
        lambda x, *ws: aten.linear.default(x, made(*ws)),
        {"x": torch.zeros(3, 96)},
        {"codes": codes, "scales": scales, "zeros": zeros},
    )
    small = lower(program, TARGET)
    (form,) = small.encoded.values()
    assert form.parts["codes"].nbytes == 48 * 96 // 2
    plain = program_of(
        lambda x, w: aten.linear.default(x, w), {"x": torch.zeros(3, 96)}, {"w": made(codes, scales, zeros)}
    )
    np.testing.assert_array_equal(form.encoding.decode(form.parts), lower(plain, TARGET).weights[0][1])


@pytest.mark.parametrize(("text", "bits"), [("bits=4 group=32", 4), ("bits=3 group=24", 3), ("bits=4", 4)])
def test_weights_alone_in_few_bits_are_packed_in_artifacts(text: str, bits: int, tmp_path: Path) -> None:
    layer = torch.nn.Linear(96, 40)
    program = shave.trace(layer.eval(), (torch.randn(3, 96),))
    small = shave.PassManager(f"quantize-weights{{{text}}}").run(program)
    (form,) = lower(small, TARGET).encoded.values()
    assert form.encoding.kind == "affine"
    assert form.parts["codes"].nbytes == layer.weight.numel() * bits // 8
    path = tmp_path / "small.shave"
    shave.compile(small).save(path)
    x = torch.randn(3, 96)
    np.testing.assert_allclose(shave.load(path)(x.numpy()), small(x).detach().numpy(), rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_floats_stay_half(dtype: torch.dtype) -> None:
    # Out of float16's range, what fits bfloat16 fits nothing else.
    scale = 1 if dtype == torch.float16 else 1e9
    weight = (scale * torch.randn(45, 70, generator=torch.Generator().manual_seed(0))).to(dtype)
    made = lambda w: aten._to_copy.default(w, dtype=torch.float32)  # noqa: E731
    _, small = lowered("linear", {"w": weight}, made)
    (form,) = small.encoded.values()
    assert form.encoding.kind == "narrow"
    assert form.parts["values"].dtype.name == str(dtype).removeprefix("torch.")


def test_what_is_computed_from_decoded_weights_is_stored_in_full() -> None:
    made, weights, _ = lookup((45, 70), None)
    _, small = lowered("linear", weights, lambda *ws: aten.mul.Tensor(made(*ws), 1 / 3))
    assert not small.encoded


class Net(torch.nn.Module):
    """Layers of several kinds behind one another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 40, 3, stride=2)
        self.groups = torch.nn.Conv2d(40, 40, 3, groups=10)
        self.head = torch.nn.Linear(40, 50)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.groups(torch.relu(self.first(x)))).mean((2, 3)))


def test_artifacts_compute_what_the_program_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = shave.trace(Net().eval(), (torch.zeros(2, 3, 13, 13),), dynamic_shapes={"x": {0: "batch"}})
    small = shave.PassManager("codebook{bits=5}").run(program)
    assert [op_name(node) for node in small.calls].count("shave.lookup") == 3
    path, whole = tmp_path / "small.shave", tmp_path / "whole.shave"
    shave.compile(small).save(path)
    shave.compile(program).save(whole)
    artifact = shave.load(path)
    assert len(artifact.manifest.encodings) == 3
    assert path.stat().st_size < whole.stat().st_size
    x = torch.randn(3, 3, 13, 13)
    wanted = small(x)
    assert isinstance(wanted, torch.Tensor)
    assert worst(torch.from_numpy(artifact(x.numpy())), wanted) < 1e-5
