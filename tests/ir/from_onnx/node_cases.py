"""The node cases of ``onnx.backend.test``: one tiny model per case with its inputs and expected outputs.

The cases feed everything through graph inputs, even shapes and axes, which a compiler must know while reading. So a
case is first read as it is; if the reader refuses, its inputs of rank 0 and 1 become initializers, as they are in files
that frameworks write.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from shave.ir.from_onnx.export import export_onnx
from shave.ir.from_onnx.values import to_torch

Status = Literal["passed", "passed with constants", "failed", "excluded"]


@dataclass(frozen=True)
class Outcome:
    """What became of a case; ``detail`` is the error or the reason for the exclusion."""

    name: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Exclusion:
    """Cases that are not attempted, and why."""

    reason: str
    applies: Callable[[TestCase], bool]


@cache
def all_cases() -> dict[str, TestCase]:
    """Every node case by name."""
    with warnings.catch_warnings():  # onnx overflows on purpose while it computes what to expect
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def in_scope(case: TestCase) -> bool:
    """Whether the case is of the default domain, opset 7 or newer."""
    return _opset(case) >= 7 and all(node.domain in ("", "ai.onnx") for node in case.model.graph.node)


def exclusion(case: TestCase) -> str | None:
    """Why a case is not attempted."""
    return next((entry.reason for entry in EXCLUSIONS if entry.applies(case)), None)


def run_case(case: TestCase) -> Outcome:
    """Read, run and compare one case."""
    reason = exclusion(case)
    if reason is not None:
        return Outcome(case.name, "excluded", reason)
    problem = None
    for first_bound, status in _ATTEMPTS[1:] if _has_narrow_input(case) else _ATTEMPTS:
        problem = _problem(case, first_bound)
        if problem is None:
            return Outcome(case.name, status)
        if problem.startswith("wrong"):
            break
    return Outcome(case.name, "failed", problem or "")


def _problem(case: TestCase, first_bound: int | None) -> str | None:
    """What is wrong with a case; an error of any kind is a case's outcome, not the end of the run."""
    try:
        for inputs, expected in case.data_sets:
            _check(case, [_array(value) for value in inputs], [_array(value) for value in expected], first_bound)
    except AssertionError as error:
        return f"wrong: {' '.join(str(error).split())}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


# From which input on those of rank 0 and 1 are bound.
_ATTEMPTS: tuple[tuple[int | None, Status], ...] = (
    (None, "passed"),
    (1, "passed with constants"),
    (0, "passed with constants"),
)


def _check(case: TestCase, inputs: list[np.ndarray], expected: list[np.ndarray], first_bound: int | None) -> None:
    model, given = onnx.ModelProto(), list(inputs)
    model.CopyFrom(case.model)
    if first_bound is not None:
        bound = [k for k, array in enumerate(inputs) if k >= first_bound and array.ndim <= 1]
        for k in reversed(bound):
            model.graph.initializer.append(numpy_helper.from_array(given.pop(k), model.graph.input[k].name))
            del model.graph.input[k]
    program = export_onnx(model)
    with torch.no_grad():
        outputs = program.module()(*(to_torch(array) for array in given))
    assert len(outputs) == len(expected), f"{len(outputs)} outputs, expected {len(expected)}"
    for index, (output, array) in enumerate(zip(outputs, expected, strict=True)):
        _compare(case, f"output {index}", output, to_torch(array))


def _compare(case: TestCase, label: str, output: torch.Tensor, expected: torch.Tensor) -> None:
    assert output.dtype == expected.dtype, f"{label} is {output.dtype}, expected {expected.dtype}"
    assert output.shape == expected.shape, f"{label} has shape {tuple(output.shape)}, expected {tuple(expected.shape)}"
    operators = {node.op_type for node in case.model.graph.node}
    if operators & RANDOM:
        return
    # Half precision is given two units in the last place, as onnx's own runner gives bfloat16.
    rtol = max(case.rtol, {torch.bfloat16: 2**-6, torch.float16: 2**-9}.get(expected.dtype, 0.0))
    if expected.dtype.is_floating_point and expected.dtype not in (torch.float16, torch.float32, torch.float64):
        output, expected = output.float(), expected.float()
    # The expected spectra carry the noise of a float32 transform where the true value is zero.
    atol = 1e-6 if "DFT" in operators else case.atol
    np.testing.assert_allclose(output.detach().numpy(), expected.numpy(), rtol=rtol, atol=atol, err_msg=label)


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _opset(case: TestCase) -> int:
    return next((entry.version for entry in case.model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _has_narrow_input(case: TestCase) -> bool:
    """Whether an input has 2 or 4 bits: as tensors they are 8 bits wide, only constants tell the width."""
    narrow = {onnx.TensorProto.DataType.Value(name) for name in ("INT2", "UINT2", "INT4", "UINT4")}
    return any(info.type.tensor_type.elem_type in narrow for info in case.model.graph.input)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _types(case: TestCase) -> Iterator[onnx.TypeProto]:
    yield from (info.type for info in (*case.model.graph.input, *case.model.graph.output))


def _has_op(*names: str) -> Callable[[TestCase], bool]:
    return lambda case: any(node.op_type in names for node in _nodes(case.model.graph))


def _has_type(kind: str) -> Callable[[TestCase], bool]:
    return lambda case: any(entry.WhichOneof("value") == kind for entry in _types(case))


def _has_element(*names: str) -> Callable[[TestCase], bool]:
    numbers = {onnx.TensorProto.DataType.Value(name) for name in names}
    return lambda case: any(entry.tensor_type.elem_type in numbers for entry in _types(case))


# Their numbers are nobody's to reproduce: shape and dtype are compared.
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}

_SEQUENCE_OPS = (
    "ConcatFromSequence",
    "SequenceAt",
    "SequenceEmpty",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
)

_TRAINING = {f"test_training_dropout{suffix}" for suffix in ("", "_default", "_mask", "_default_mask")}

# They count the output's elements before rounding (2.4 of them), so that the last one is not the input's last.
_CORNERS = {f"test_resize_downsample_scales_{mode}_align_corners" for mode in ("linear", "cubic")}

EXCLUSIONS = (
    Exclusion(
        "optional types are no tensors",
        lambda case: _has_type("optional_type")(case) or _has_op("OptionalGetElement", "OptionalHasElement")(case),
    ),
    Exclusion(
        "sequences are no tensors", lambda case: _has_type("sequence_type")(case) or _has_op(*_SEQUENCE_OPS)(case)
    ),
    Exclusion("strings", _has_element("STRING")),
    Exclusion("decodes image files", _has_op("ImageDecoder")),
    Exclusion("drops elements at random, as in training", lambda case: case.name in _TRAINING),
    Exclusion("ONNX Runtime and torch align the corners otherwise", lambda case: case.name in _CORNERS),
    Exclusion("torch cannot divide uint64", lambda case: _has_op("Div")(case) and _has_element("UINT64")(case)),
    Exclusion("torch has no 4-bit or 6-bit floats", _has_element("FLOAT4E2M1", "FLOAT6E2M3", "FLOAT6E3M2")),
    Exclusion("Scan before opset 9 is another operator", lambda case: _has_op("Scan")(case) and _opset(case) < 9),
)
