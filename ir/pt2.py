"""Programs as ``.pt2`` files, torch's own archive of exported programs."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from shave.ir.dtypes import torch_dtype
from shave.ir.errors import ReadError
from shave.ir.files import atomic_write
from shave.ir.from_torch import from_exported, quiet_torch
from shave.ir.program import Program
from shave.ir.shapes import hints

_SIDECAR = "shave.json"
"""Extra file in the archive: what torch's format has no place for."""


def save(program: Program, path: Path) -> None:
    """Write the program; ``torch.export.load`` reads the file too. An existing file is replaced only at the end."""
    names = {
        "inputs": [spec.name for spec in program.signature.inputs],
        "outputs": [spec.name for spec in program.signature.outputs],
        "dims": program.signature.to_json()["dims"],
        "shapes": [list(spec.shape) for spec in program.signature.inputs],
    }
    exported = to_exported(program)
    with atomic_write(path) as file, quiet_torch():
        torch.export.save(exported, file, extra_files={_SIDECAR: json.dumps(names)})


def load(path: Path) -> Program:
    """Read a file that :meth:`Program.save` or ``torch.export.save`` wrote.

    Raises:
        ReadError: It is not such a file.
    """
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers operators that a file may hold

    _refuse_pickles(path)
    extra: dict[str, Any] = {_SIDECAR: ""}
    try:
        with _weights_only(), quiet_torch():
            exported = torch.export.load(path, extra_files=extra)
    except Exception as error:
        raise ReadError(f"{path}: torch cannot load it: {error}") from error
    if not extra[_SIDECAR]:
        return from_exported(exported)
    try:
        names = json.loads(extra[_SIDECAR])
        dim_names = _dim_names(exported, names["shapes"])
        return from_exported(exported, input_names=names["inputs"], output_names=names["outputs"], dim_names=dim_names)
    except (ValueError, KeyError, TypeError) as error:
        raise ReadError(f"{path}: its member {_SIDECAR} is damaged: {error}") from error


def _refuse_pickles(path: Path) -> None:
    """Torch unpickles whatever an archive marks as pickled; so such archives are refused before torch sees them."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if not any(name.endswith("/archive_format") for name in members):
                raise ReadError(
                    f"{path}: an archive of an old torch; load and save it again by torch.export of torch 2.9 up"
                )
            for name in members:
                if name.endswith(("_weights_config.json", "_constants_config.json")):
                    _refuse_pickled_entries(path, json.loads(archive.read(name)))
                elif "/data/sample_inputs/" not in name and name.endswith((".pt", ".pkl")):
                    raise ReadError(f"{path}: its member {name} is pickled, which may run code; refused")
    except (zipfile.BadZipFile, ValueError, AttributeError, OSError) as error:
        raise ReadError(f"{path}: not a .pt2 file (an archive written by torch.export.save): {error}") from error


def _refuse_pickled_entries(path: Path, config: dict[str, Any]) -> None:
    for name, entry in config.get("config", config).items():
        if entry.get("use_pickle") or not str(entry.get("path_name", "")).startswith(_TENSOR_PREFIXES):
            raise ReadError(f"{path}: its weight {name} is not a plain tensor but pickled, which may run code; refused")


_TENSOR_PREFIXES = ("weight_", "tensor_")


@contextmanager
def _weights_only() -> Iterator[None]:
    """Forbid torch to fall back to full unpickling (it would, for the example inputs in the archive)."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def to_exported(program: Program) -> ExportedProgram:
    """Give the program as ``torch.export``'s own class, with names and dynamic dimensions kept."""
    dims: dict[str, Any] = {}
    for name, (low, high) in program.signature.dims.items():
        dims[name] = Dim(name, min=low, max=high) if high is not None else Dim(name, min=low)
    examples, dynamic = [], []
    for node, spec in zip(program.inputs, program.signature.inputs, strict=True):
        examples.append(torch.zeros(hints(node.meta["val"].shape), dtype=torch_dtype(spec.dtype)))
        dynamic.append(
            {axis: dims.get(size, Dim.AUTO) for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        )
    with quiet_torch():
        return torch.export.export(program.module, tuple(examples), dynamic_shapes=tuple(dynamic), strict=False)


def _dim_names(exported: ExportedProgram, shapes: list[list[Any]]) -> dict[str, str]:
    """Symbol to name, by position in the inputs' shapes."""
    names = {}
    user_inputs = set(exported.graph_signature.user_inputs)
    nodes = [node for node in exported.graph.find_nodes(op="placeholder") if node.name in user_inputs]
    for node, shape in zip(nodes, shapes, strict=True):
        for size, name in zip(node.meta["val"].shape, shape, strict=True):
            if isinstance(size, torch.SymInt) and isinstance(name, str):
                names[str(size)] = name
    return names
