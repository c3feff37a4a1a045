"""The operator: against plain indexing in NumPy, and held to what torch asks of operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import shave
from shave.ir.lookup import codes_of, pack_codes
from shave.ir.program import Program
from shave.ir.standard import standard
from shave.passes.stages import Stage, stage_of
from tests.passes.handmade import program_of
from tests.passes.oracle import assert_equivalent, random_inputs

aten = torch.ops.aten
lookup = torch.ops.shave.lookup.default

SHAPE = (5, 3, 7)


def drawn(bits: int, axis: int | None, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Packed codes, a codebook that is not full, and the values wanted."""
    rng = np.random.default_rng(bits)
    values = max(1, 2**bits - 1)
    codes = rng.integers(0, values, SHAPE)
    codebook = rng.normal(size=(values,) if axis is None else (SHAPE[axis], values))
    wanted = np.empty(SHAPE)
    for index in np.ndindex(*SHAPE):
        wanted[index] = codebook[codes[index]] if axis is None else codebook[index[axis], codes[index]]
    table = torch.from_numpy(codebook).to(dtype)
    return pack_codes(torch.from_numpy(codes), bits), table, torch.from_numpy(wanted).to(dtype)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_each_element_is_that_of_its_code(bits: int, axis: int | None) -> None:
    codes, codebook, wanted = drawn(bits, axis)
    assert torch.equal(lookup(codes, codebook, bits, SHAPE, axis), wanted)
    assert torch.equal(pack_codes(codes_of(codes, bits, SHAPE), bits), codes)


@pytest.mark.parametrize("axis", [None, 1])
def test_torch_accepts_the_operator(axis: int | None) -> None:
    codes, codebook, _ = drawn(3, axis, torch.float64)
    torch.library.opcheck(lookup, (codes, codebook.requires_grad_(), 3, SHAPE, axis))


@pytest.mark.parametrize("axis", [None, 0, 2])
def test_gradients_are_summed_over_the_elements_of_a_value(axis: int | None) -> None:
    codes, codebook, _ = drawn(2, axis, torch.float64)
    codebook.requires_grad_()
    weights = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (lookup(codes, codebook, 2, SHAPE, axis) * weights).sum().backward()
    numbers, wanted = codes_of(codes, 2, SHAPE), torch.zeros_like(codebook)
    for index in np.ndindex(*SHAPE):
        place = (int(numbers[index]),) if axis is None else (index[axis], int(numbers[index]))
        wanted[place] += weights[index]
    torch.testing.assert_close(codebook.grad, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "bits is 0, but lies between 1 and 8"),
        ({"bits": 9}, "bits is 9, but lies between 1 and 8"),
        ({"bits": 4}, r"codes is torch.uint8 \[40\], not 4 bits for each of \[5, 3, 7\]"),
        ({"shape": (5, 3)}, r"not 3 bits for each of \[5, 3\]"),
        ({"axis": 3}, "axis is 3, but shape has 3 axes"),
        ({"axis": 1}, r"codebook is \[7\], not \[3, values\]"),
        ({"codebook": torch.zeros(9)}, "codebook has 9 values, but 3 bits tell 1 to 8 apart"),
        ({"codebook": torch.zeros(0)}, "codebook has 0 values"),
        ({"codebook": torch.zeros(2)}, "a code is beyond the 2 values of the codebook"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    codes, codebook, _ = drawn(3, None)
    given = {"codes": codes, "codebook": codebook, "bits": 3, "shape": SHAPE, "axis": None} | arguments
    with pytest.raises(ValueError, match=message):
        lookup(*given.values())


def program(bits: int, axis: int | None) -> Program:
    codes, codebook, _ = drawn(bits, axis)
    return program_of(
        lambda x, codes, codebook: aten.add.Tensor(x, lookup(codes, codebook, bits, list(SHAPE), axis)),
        {"x": torch.zeros(2, *SHAPE)},
        {"codes": codes, "codebook": torch.nn.Parameter(codebook)},
        dynamic={"x": {0: "batch"}},
    )


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_onnx_files_gather(axis: int | None, tmp_path: Any) -> None:
    given = program(3, axis)
    assert_equivalent(given, standard(given), random_inputs(given, 0, 3), rtol=0.0)
    given.to_onnx(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert any(node.op_type in ("Gather", "GatherElements") for node in model.graph.node)
    sizes = {tensor.data_type: list(tensor.dims) for tensor in model.graph.initializer}
    assert np.prod(sizes[onnx.TensorProto.UINT8]) == np.prod(SHAPE)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (x,) = random_inputs(given, 0, 3)
    (found,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(found, given(x).numpy())
    assert_equivalent(given, shave.read(tmp_path / "model.onnx"), (x,), rtol=0.0)


def test_programs_with_it_are_saved_costed_and_staged(tmp_path: Any) -> None:
    given = program(3, None)
    given.save(tmp_path / "model.pt2")
    read = shave.read(tmp_path / "model.pt2")
    assert_equivalent(given, read, random_inputs(given, 0, 3), rtol=0.0)
    cost = read.cost()
    assert cost.weight_bytes == 40 + 4 * 7
    assert cost.parameters == 105 + 7
    assert stage_of(read) is Stage.QUANTIZED


def test_simplifying_keeps_it() -> None:
    given = program(3, None)
    result = shave.PassManager("simplify").run(given)
    assert [node.target for node in result.calls] == [lookup, aten.add.Tensor]
