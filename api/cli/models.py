"""What the arguments of commands mean: models, inputs, data files."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from shave.ir.errors import ReadError, SignatureError
from shave.ir.signature import Signature

if TYPE_CHECKING:
    from shave.ir.program import Program

_INPUT = re.compile(r"(?P<name>[^=]+)=(?P<shape>[\w,x*]*?)(:(?P<dtype>\w+))?")

Run = Callable[[Sequence[np.ndarray[Any, Any]]], tuple[np.ndarray[Any, Any], ...]]
"""Inputs in the order of the signature, to outputs in its order."""


def input_shapes(options: Sequence[str]) -> dict[str, list[int | str]]:
    """Read ``NAME=SHAPE[:DTYPE]`` options; sizes are split by ``x`` or ``,``; a word names a dynamic dimension.

    Raises:
        typer.BadParameter: An option is not of that form.
    """
    shapes: dict[str, list[int | str]] = {}
    for option in options:
        match = _INPUT.fullmatch(option)
        if match is None:
            raise typer.BadParameter(f"{option!r} is not NAME=SHAPE (image=1x3x224x224 or tokens=batch,128)")
        text = match["shape"]
        parts = text.split(",") if "," in text else re.split(r"(?<=\d)x|x(?=\d)", text)
        shapes[match["name"]] = [int(part) if part.isdigit() else part for part in parts if part]
    return shapes


def input_dtypes(options: Sequence[str]) -> dict[str, str]:
    """The dtypes in ``NAME=SHAPE:DTYPE`` options, by input name."""
    matches = [_INPUT.fullmatch(option) for option in options]
    return {match["name"]: match["dtype"] for match in matches if match is not None and match["dtype"]}


def read_model(path: Path, inputs: Sequence[str] = ()) -> Program:
    """Read an ``.onnx`` or ``.pt2`` file, with shapes and expected dtypes as the user gave them.

    Raises:
        ReadError: The file cannot be read.
        SignatureError: A given dtype is not the model's.
    """
    from shave.ir.reader import read

    program = read(path, input_shapes=input_shapes(inputs) or None)
    for name, dtype in input_dtypes(inputs).items():
        spec = next((spec for spec in program.signature.inputs if spec.name == name), None)
        if spec is None or spec.dtype != dtype:
            raise SignatureError(f"{path}: --input says {name} is {dtype}, but the model takes {program.signature}")
    return program


def load_arrays(path: Path, signature: Signature) -> list[np.ndarray[Any, Any]]:
    """Read the inputs from an ``.npz`` (by name) or ``.npy`` (a lone input) file, in the order of the signature.

    Raises:
        ReadError: The file is missing, damaged or pickled.
        SignatureError: The arrays do not fit.
    """
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        arrays = signature.bind([loaded], {})
    elif len(signature.inputs) == len(loaded) == 1:
        arrays = list(loaded.values())
    else:
        arrays = signature.bind([], loaded)
    signature.check([array.shape for array in arrays], [array.dtype.name for array in arrays])
    return arrays


def load_batches(path: Path, signature: Signature) -> list[tuple[np.ndarray[Any, Any], ...]]:
    """Read calibration data: the arrays of :func:`load_arrays`' file, cut along their first axis into inputs.

    A model with a fixed batch takes as many samples per input as its batch holds; what is left over is dropped.

    Raises:
        ReadError: The file is missing, damaged, pickled or empty.
        SignatureError: Names, ranks or dtypes do not fit.
    """
    loaded = _load(path)
    arrays = signature.bind([loaded], {}) if isinstance(loaded, np.ndarray) else signature.bind([], loaded)
    first = signature.inputs[0].shape[0] if signature.inputs and signature.inputs[0].shape else 1
    size = first if isinstance(first, int) else 1
    count = min(len(array) for array in arrays) // size
    if count == 0:
        raise ReadError(f"{path}: holds fewer samples than one batch of {size}")
    batches = [tuple(array[i * size : (i + 1) * size] for array in arrays) for i in range(count)]
    signature.check([array.shape for array in batches[0]], [array.dtype.name for array in batches[0]])
    return batches


def random_inputs(signature: Signature, seed: int = 0, size: int = 1) -> list[np.ndarray[Any, Any]]:
    """Random inputs: normal floats, small integers; every dynamic dimension has ``size`` or its least allowed size."""
    generator = np.random.default_rng(seed)
    arrays = []
    for spec in signature.inputs:
        shape = [_size(dim, signature.dims, size) for dim in spec.shape]
        if spec.dtype == "bool":
            arrays.append(generator.random(shape) < 0.5)
        elif "int" in spec.dtype:
            arrays.append(generator.integers(0, 2, shape).astype(spec.dtype))
        else:
            arrays.append(generator.standard_normal(shape).astype(spec.dtype))
    return arrays


def open_runner(path: Path, threads: int | None = None) -> tuple[Signature, Run]:
    """Make whatever file it is runnable: ``.shave`` by its runtime, ``.onnx`` and ``.pt2`` by torch.

    Raises:
        ReadError: The file cannot be read.
        ArtifactError: The artifact is damaged or for another machine.
    """
    if path.suffix == ".shave":
        from shave.backends.runtime import load

        artifact = load(path, threads=threads)
        return artifact.signature, lambda inputs: _as_tuple(artifact(*inputs))
    from shave.backends.reference import Reference

    reference = Reference(read_model(path))
    return reference.signature, lambda inputs: _as_tuple(reference(*inputs))


def _as_tuple(value: Any) -> tuple[np.ndarray[Any, Any], ...]:
    return value if isinstance(value, tuple) else (value,)


def _size(dim: int | str, dims: Mapping[str, tuple[int, int | None]], size: int) -> int:
    if isinstance(dim, int):
        return dim
    low, high = dims.get(dim, (1, None))
    return int(min(max(low, size), high if high is not None else math.inf))


def _load(path: Path) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
    if not path.is_file():
        raise ReadError(f"{path}: no such file")
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ReadError(f"{path}: not an .npy or .npz file without pickles: {error}") from error
