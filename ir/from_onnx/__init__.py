"""The ONNX reader: an interpreter of small torch functions, traced by ``torch.export``.

`loader` loads a file and finds what is wrong with it; `graph` is its content as plain data; `interpreter` runs the
nodes by the table of operators (`registry`, filled by one module for each family); `export` traces the interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shave.ir.errors import ReadError
from shave.ir.from_onnx import tables as _tables  # noqa: F401  (fills the table of operators)
from shave.ir.from_onnx.export import export_onnx, trace
from shave.ir.from_onnx.loader import load, prepare
from shave.ir.from_torch import from_exported
from shave.ir.program import Program

__all__ = ["export_onnx", "read_onnx"]


def read_onnx(
    path: str | os.PathLike[str], *, input_shapes: Mapping[str, Sequence[int | str]] | None = None
) -> Program:
    """Read an ONNX file as a program.

    Names of inputs, outputs, weights, nodes and dynamic dimensions are those of the file.

    Args:
        path: The file; external data beside it is loaded too.
        input_shapes: Shapes of inputs, for those that shall differ from what the file declares; a string names a
            dynamic dimension.

    Raises:
        ReadError: The file is damaged, incomplete or unsafe, uses unknown operators, or cannot be traced; the message
            names the file and what is at fault in it.
    """
    model = load(path)
    try:
        prepared = prepare(model)
        exported, dim_names = trace(prepared, input_shapes or {})
        return from_exported(
            exported,
            input_names=[spec.name for spec in prepared.graph.inputs],
            output_names=[spec.name for spec in prepared.graph.outputs],
            dim_names=dim_names,
        )
    except ReadError as error:
        raise ReadError(f"{path}: {error}") from error
