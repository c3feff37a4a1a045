"""The precisions of the table: who has it, and what makes each engine's model of it.

In 8-bit integers everybody quantizes the same float model with its own tool, as its documentation advises, from the
same samples: ONNX Runtime by ``quantize_static``, OpenVINO by NNCF, shave by its pass ``quantize``. Dynamic integers
need no samples: ONNX Runtime has ``quantize_dynamic``, shave ``quantize-dynamic``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx

import shave
from benchmarks.real_models import Array
from shave.ir.program import Program

Samples = Sequence[Sequence[Array]]
"""Inputs of one call each."""


@dataclass(frozen=True)
class Precision:
    """One of them.

    Attributes:
        engines: Those that have it, in the order of the table.
        tolerance: Largest relative difference from the float model that is accepted by default.
        weight_bytes: Of one weight, for the limit of the machine.
        integers: Whether that limit is of integer multiply-adds.
        rewrite: Makes the program of an engine of ours from the float program.
        convert: Makes the file of a peer from ``model.onnx`` in a folder; who is not named takes that file as it is.
    """

    engines: tuple[str, ...]
    tolerance: float
    weight_bytes: int
    integers: bool
    rewrite: Mapping[str, Callable[[Program, Samples], Program]] = field(default_factory=dict)
    convert: Mapping[str, Callable[[Path, Samples], None]] = field(default_factory=dict)


def in_float(program: Program) -> Program:
    """Unpack the weights that lie as integers behind a dequantize call, so that every engine gets them in float."""
    program = program.clone()
    with program.rewrite("in-float") as rewriter:
        for node in program.calls:
            if not _is_packed_weight(node):
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), program.weight)
            weight = cast(Callable[..., torch.Tensor], node.target)(*args, **kwargs)
            rewriter.replace(node, rewriter.weight(f"{node.name}_float", weight.contiguous(), sources=[node]))
    return program


def _is_packed_weight(node: fx.Node) -> bool:
    return "dequantize" in str(node.target) and all(source.op == "get_attr" for source in node.all_input_nodes)


def _quantize(program: Program, samples: Samples) -> Program:
    batches = [tuple(torch.from_numpy(array) for array in sample) for sample in samples]
    return shave.PassManager("quantize", check=False).run(program, calibration=batches, target="cpu")


def _quantize_dynamic(bounds: str) -> Callable[[Program, Samples], Program]:
    def rewrite(program: Program, samples: Samples) -> Program:
        return shave.PassManager(f"quantize-dynamic{{bounds={bounds}}}", check=False).run(program, target="cpu")

    return rewrite


def _quantize_dynamic_for_onnxruntime(folder: Path, samples: Samples) -> None:
    """The same weights; its activations are unsigned."""
    from onnxruntime.quantization import QuantType, quantize_dynamic, shape_inference

    prepared = folder / "prepared.onnx"
    shape_inference.quant_pre_process(str(folder / "model.onnx"), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(folder / "ONNX Runtime.onnx"), per_channel=True, weight_type=QuantType.QInt8)


def _quantize_for_onnxruntime(folder: Path, samples: Samples) -> None:
    """Per-channel weights of 8 bits with a sign, activations without: what its documentation advises for VNNI."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static, shape_inference

    class Reader(CalibrationDataReader):
        def __init__(self, names: Sequence[str]) -> None:
            self._feeds = iter([dict(zip(names, sample, strict=True)) for sample in samples])

        def get_next(self) -> dict[str, Array] | None:
            return next(self._feeds, None)

    prepared = folder / "prepared.onnx"
    shape_inference.quant_pre_process(str(folder / "model.onnx"), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(folder / "ONNX Runtime.onnx"),
        Reader(_input_names(folder / "model.onnx")),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _quantize_for_openvino(folder: Path, samples: Samples) -> None:
    """NNCF's default, which is its fastest; with its settings for transformers where there is attention."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(folder / "model.onnx"))
    attention = sum(operation.get_type_name() == "Softmax" for operation in model.get_ops()) > 1
    quantized = nncf.quantize(
        model,
        nncf.Dataset([list(sample) for sample in samples]),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if attention else None,
    )
    ov.save_model(quantized, str(folder / "OpenVINO.xml"), compress_to_fp16=False)


def _input_names(path: Path) -> list[str]:
    import onnx

    graph: Any = onnx.load(str(path), load_external_data=False).graph
    return [value.name for value in graph.input]


PRECISIONS = {
    "fp32": Precision(
        engines=("torch eager", "torch.compile", "ONNX Runtime", "OpenVINO", "ncnn", "shave", "shave tuned"),
        tolerance=1e-3,
        weight_bytes=4,
        integers=False,
    ),
    "int8": Precision(
        engines=("ONNX Runtime", "OpenVINO", "shave", "shave tuned", "shave fp32"),
        # Random weights lose more than trained ones; what is wrong, and not merely rounded, is off by about 1.
        tolerance=0.5,
        weight_bytes=1,
        integers=True,
        rewrite={"shave": _quantize, "shave tuned": _quantize},
        convert={"ONNX Runtime": _quantize_for_onnxruntime, "OpenVINO": _quantize_for_openvino},
    ),
    "int8-dynamic": Precision(
        engines=("ONNX Runtime", "shave", "shave per token", "shave fp32"),
        tolerance=0.5,
        weight_bytes=1,
        integers=True,
        rewrite={"shave": _quantize_dynamic("tensor"), "shave per token": _quantize_dynamic("token")},
        convert={"ONNX Runtime": _quantize_dynamic_for_onnxruntime},
    ),
}
