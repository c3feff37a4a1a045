"""The engines that are timed: how each one loads a model, in the configuration that suits batch 1 best.

Each function runs in a process of its own (:mod:`benchmarks.latency.process`), so an engine's package is imported where
it is used, and one that is not installed says so. It is given a folder with the model (``model.pt2``, ``model.onnx``,
or a file named after the engine where the precision needs its own) and gives a call that takes no arguments and returns
the outputs. Inputs and outputs of ONNX Runtime and OpenVINO are bound ahead, since a call of a small model is else
mostly Python and copies; an artifact is called plainly, which is as fast as binding.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Call = Callable[[], Sequence[Any]]
Load = Callable[[Path, list[Array], int], Call]


class UnavailableError(Exception):
    """An engine cannot run this model here; the text says why."""


def torch_eager(folder: Path, inputs: list[Array], threads: int) -> Call:
    """The exported graph, operator by operator."""
    return _torch(folder, inputs, threads, lambda module: module)


def torch_compile(folder: Path, inputs: list[Array], threads: int) -> Call:
    """Inductor with weights frozen into the code, as its documentation advises for inference on a CPU."""
    import torch
    from torch._inductor import config

    config.freezing = True
    return _torch(folder, inputs, threads, lambda module: torch.compile(module, dynamic=False))


def _torch(folder: Path, inputs: list[Array], threads: int, prepare: Callable[[Any], Callable[..., Any]]) -> Call:
    import torch

    import shave

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in inputs]
    module = prepare(shave.read(folder / "model.pt2").module.requires_grad_(False))

    def call() -> Sequence[Any]:
        with torch.inference_mode():
            return tuple(module(*tensors))

    return call


def onnxruntime(folder: Path, inputs: list[Array], threads: int) -> Call:
    """ONNX Runtime; its threads may spin, which helps it, since this process is stopped when its turn is over."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(_file(folder, "ONNX Runtime.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = dict(zip([value.name for value in session.get_inputs()], inputs, strict=True))
    outputs = session.run(None, feeds)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for value, array in zip(session.get_outputs(), outputs, strict=True):
        array.fill(0)  # what is in there later is what the bound calls wrote
        binding.bind_ortvalue_output(value.name, ort.OrtValue.ortvalue_from_numpy(array))

    def call() -> Sequence[Any]:
        session.run_with_iobinding(binding)
        return outputs  # type: ignore[no-any-return]

    return call


def openvino(folder: Path, inputs: list[Array], threads: int) -> Call:
    """OpenVINO for latency; what the model has in float is computed in float32."""
    import openvino as ov

    compiled = ov.Core().compile_model(
        _file(folder, "OpenVINO.xml"),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    lent = [ov.Tensor(array, shared_memory=True) for array in inputs]
    for position, tensor in enumerate(lent):
        request.set_input_tensor(position, tensor)
    count = len(compiled.outputs)

    def call() -> Sequence[Any]:
        assert len(lent) == len(inputs)  # OpenVINO borrows the arrays: they must live as long as this function
        request.infer(share_outputs=True)
        return [request.get_output_tensor(k).data for k in range(count)]

    return call


def _file(folder: Path, own: str) -> str:
    """The engine's own form of the model, or the one for all."""
    return str(folder / own if (folder / own).exists() else folder / "model.onnx")


def ncnn(folder: Path, inputs: list[Array], threads: int) -> Call:
    """What pnnx makes of the ONNX file, in ncnn, without reduced precision."""
    import ncnn as runtime
    import pnnx

    command = [pnnx.EXEC_PATH, "model.onnx", "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    model = folder / "model.ncnn.param"
    if done.returncode or not model.exists():
        raise UnavailableError(f"pnnx does not convert it (exit status {done.returncode})")
    unknown = [line.split()[0] for line in model.read_text().splitlines()[2:] if "." in line.split()[0]]
    if unknown:
        raise UnavailableError(f"pnnx leaves operators that ncnn lacks: {', '.join(sorted(set(unknown))[:3])}")
    net = runtime.Net()
    net.opt.num_threads = threads
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
        if hasattr(net.opt, f"use_{option}"):
            setattr(net.opt, f"use_{option}", False)
    if net.load_param(str(model)) or net.load_model(str(model.with_suffix(".bin"))):
        raise UnavailableError("ncnn does not load what pnnx wrote")
    # ncnn knows no batch; pnnx drops that axis.
    arrays = [np.ascontiguousarray(x[0]) if x.dtype == np.float32 else x[0].astype(np.int32) for x in inputs]
    mats = [runtime.Mat(array).clone() for array in arrays]  # a Mat of an array does not keep it alive

    def call() -> Sequence[Any]:
        with net.create_extractor() as extractor:
            for name, mat in zip(net.input_names(), mats, strict=True):
                extractor.input(name, mat)
            results = []
            for name in net.output_names():
                status, mat = extractor.extract(name)
                if status:
                    raise UnavailableError(f"ncnn does not compute {name} (status {status})")
                results.append(np.asarray(mat)[None])
            return results

    return call


def shave(folder: Path, inputs: list[Array], threads: int) -> Call:
    """The artifact of a plain ``shave.compile``."""
    return _artifact(folder / "shave.shave", inputs, threads)


def shave_tuned(folder: Path, inputs: list[Array], threads: int) -> Call:
    """The artifact compiled with a database of ``shave tune``."""
    return _artifact(folder / "shave tuned.shave", inputs, threads)


def shave_float(folder: Path, inputs: list[Array], threads: int) -> Call:
    """The artifact of the float model, beside those in a smaller precision."""
    return _artifact(folder / "shave fp32.shave", inputs, threads)


def shave_per_token(folder: Path, inputs: list[Array], threads: int) -> Call:
    """The artifact of dynamic integers with bounds for each token, beside that with bounds for tensors."""
    return _artifact(folder / "shave per token.shave", inputs, threads)


def _artifact(path: Path, inputs: list[Array], threads: int) -> Call:
    from shave.backends.runtime import load

    artifact = load(path, threads=threads)

    def call() -> Sequence[Any]:
        outputs = artifact(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return call


ENGINES: dict[str, Load] = {
    "torch eager": torch_eager,
    "torch.compile": torch_compile,
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
    "ncnn": ncnn,
    "shave": shave,
    "shave tuned": shave_tuned,
    "shave per token": shave_per_token,
    "shave fp32": shave_float,
}
"""By the name in the table, in its order."""

OURS = ("shave", "shave tuned", "shave per token", "shave fp32")

PACKAGES = {
    "torch eager": "torch",
    "torch.compile": "torch",
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
    "ncnn": "ncnn",
    "shave": "shave",
    "shave tuned": "shave",
    "shave per token": "shave",
    "shave fp32": "shave",
}
"""The distribution whose version decides what an engine does."""
