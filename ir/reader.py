"""Read a model file, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shave.ir.errors import ReadError
from shave.ir.program import Program


def read(path: str | Path, *, input_shapes: Mapping[str, Sequence[int | str]] | None = None) -> Program:
    """Read an ``.onnx`` file, or a ``.pt2`` file written by ``torch.export.save`` or :meth:`Program.save`.

    Args:
        path: The file; its suffix tells the format.
        input_shapes: For ONNX: shapes that replace those of the file; a string names a dynamic dimension.

    Raises:
        ReadError: The file is missing, damaged, of an unknown kind, or holds what shave cannot represent.
    """
    path = Path(path)
    if not path.is_file():
        raise ReadError(f"{path}: no such file")
    if path.suffix == ".onnx":
        from shave.ir.from_onnx import read_onnx

        return read_onnx(path, input_shapes=input_shapes)
    if path.suffix == ".pt2":
        if input_shapes:
            raise ReadError(
                f"{path}: the shapes of a .pt2 file are fixed at export; input shapes can be given for .onnx"
            )
        from shave.ir.pt2 import load

        return load(path)
    raise ReadError(f"{path}: unknown suffix {path.suffix!r}; shave reads .onnx and .pt2")
