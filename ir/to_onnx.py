"""Programs as ONNX files, which any ONNX runtime takes."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import cast

import onnx
import onnx_graphsurgeon as gs
import torch
from torch import fx

from shave.ir.errors import UnsupportedError
from shave.ir.onnx_quantization import TRANSLATIONS
from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.pt2 import to_exported
from shave.ir.standard import standard

_PROTOBUF_LIMIT = 2**31 - 2**20
"""Files above this many bytes must keep their weights in a file beside them."""


def to_onnx(program: Program, path: Path) -> None:
    """Write a program by torch's exporter, clean it with onnx-graphsurgeon and check it with ``onnx.checker``.

    Shave's own operators are written as the standard ones that they stand for; see :mod:`shave.ir.standard`.

    Names of inputs, outputs and dynamic dimensions are the program's. Weights above protobuf's 2 GiB go into
    ``<name>.data`` beside the file.

    Raises:
        UnsupportedError: torch's exporter has no ONNX form for some operator; it is named.
    """
    model = to_model(program)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written, data = Path(folder) / path.name, Path(folder) / f"{path.name}.data"
        outside = model.ByteSize() >= _PROTOBUF_LIMIT
        onnx.save(model, written, save_as_external_data=outside, location=data.name if outside else None)
        onnx.checker.check_model(written, full_check=True)
        if outside:
            os.replace(data, path.with_name(data.name))
        os.replace(written, path)


def to_model(program: Program) -> onnx.ModelProto:
    """The same as an object in memory."""
    program = _writable(standard(program))
    try:
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                to_exported(program),
                dynamo=True,
                verbose=False,
                optimize=False,
                custom_translation_table=TRANSLATIONS,
            )
    except Exception as error:
        raise UnsupportedError(f"torch.onnx cannot write this program: {error}") from error
    assert exported is not None
    graph = _separate_outputs(gs.import_onnx(exported.model_proto))
    for tensors, specs in ((graph.inputs, program.signature.inputs), (graph.outputs, program.signature.outputs)):
        for tensor, spec in zip(tensors, specs, strict=True):
            tensor.shape = list(spec.shape)
    _rename(graph, program)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    return cast(onnx.ModelProto, gs.export_onnx(graph))


def _writable(program: Program) -> Program:
    """Say in another way what torch's exporter writes wrongly, or not at all.

    It gives a ``conv3d`` without bias one of two columns. It takes a reshape for a view where the example's attention
    gave suitable strides, and fails when it takes attention apart and the strides are others.
    """
    bare = [node for node in program.calls if _is_bare_conv3d(node)]
    moved = [node for node in program.calls if _is_reshaped_attention(node)]
    if not bare and not moved:
        return program
    names = {node.name for node in (*bare, *moved)}
    program = program.clone()
    with program.rewrite(by="to-onnx") as rewriter:
        for node in [node for node in program.calls if node.name in names]:
            if _is_bare_conv3d(node):
                x, weight, *geometry, groups = (
                    argument(node, name) for name in ("input", "weight", "stride", "padding", "dilation", "groups")
                )
                arguments = (x, weight, None, *geometry, False, [0, 0, 0], groups)
                call = rewriter.call(torch.ops.aten.convolution.default, arguments, before=node, sources=[node])
                rewriter.replace(node, call)
                rewriter.erase(node)
            else:
                source = cast(fx.Node, node.args[0])
                form = {"memory_format": torch.contiguous_format}
                whole = rewriter.call(torch.ops.aten.clone.default, (source,), form, before=node, sources=[node])
                node.replace_input_with(source, whole)
    return program


def _is_bare_conv3d(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.conv3d.default and argument(node, "bias") is None


def _is_reshaped_attention(node: fx.Node) -> bool:
    """Whether it is a reshape of attention's result with its axes in another order."""
    if op_name(node) != "aten.reshape":
        return False
    source, moved = node.args[0], False
    while isinstance(source, fx.Node) and op_name(source) in ("aten.reshape", *_MOVES):
        moved = moved or op_name(source) in _MOVES
        source = source.args[0]
    return moved and isinstance(source, fx.Node) and op_name(source) == "aten.scaled_dot_product_attention"


_MOVES = ("aten.transpose", "aten.permute", "aten.movedim")


def _rename(graph: gs.Graph, program: Program) -> None:
    """Give inputs and outputs the program's names; tensors inside that bear such a name step aside."""
    specs = [*program.signature.inputs, *program.signature.outputs]
    borders = [*graph.inputs, *graph.outputs]
    wanted = {spec.name for spec in specs}
    for name, tensor in graph.tensors(check_duplicates=True).items():
        if name in wanted and not any(tensor is border for border in borders):
            tensor.name = f"{name}_inner"
    for tensor, spec in zip(borders, specs, strict=True):
        tensor.name = spec.name


def _separate_outputs(graph: gs.Graph) -> gs.Graph:
    """An output that is an input, a constant, or another output too, gets an Identity and so a name of its own."""
    taken = {id(tensor) for tensor in graph.inputs}
    for position, tensor in enumerate(graph.outputs):
        if id(tensor) in taken or isinstance(tensor, gs.Constant):
            own = gs.Variable(f"{tensor.name}_output_{position}", dtype=tensor.dtype, shape=tensor.shape)
            graph.nodes.append(gs.Node("Identity", inputs=[tensor], outputs=[own]))
            graph.outputs[position] = tensor = own
        taken.add(id(tensor))
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs its progress; none of it helps whoever called us."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
