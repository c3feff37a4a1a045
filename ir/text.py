"""Programs as text for people: one line per node."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from shave.ir.dtypes import dtype_name
from shave.ir.names import module_path, onnx_name
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.ir.shapes import shape_names


def to_text(program: Program) -> str:
    """Print the signature, then each node with its arguments, value and origin."""
    lines = [f"program{program.signature} {{"]
    lines += [f"  {node_line(program, node)}" for node in program.graph.nodes if node.op in ("call_function", "output")]
    return "\n".join([*lines, "}"])


def node_line(program: Program, node: fx.Node) -> str:
    """One node: ``%relu = relu(%conv2d) : float32[1, 8, 4, 4]  # features.1``."""
    if node.op == "placeholder":
        return f"%{node.name} = input : {value_text(program, node)}"
    if node.op == "get_attr":
        return f"%{node.name} = weight @{node.target} : {value_text(program, node)}"
    if node.op == "output":
        return f"return {', '.join(_argument(a) for a in node.args[0])}"  # type: ignore[union-attr]
    arguments = [_argument(a) for a in node.args] + [f"{key}={_argument(a)}" for key, a in node.kwargs.items()]
    name = op_name(node).removeprefix("aten.")
    origin = onnx_name(node) or module_path(node)
    return f"%{node.name} = {name}({', '.join(arguments)}) : {value_text(program, node)}" + (
        f"  # {origin}" if origin else ""
    )


def value_text(program: Program, node: fx.Node) -> str:
    """Dtype and shape of a node's value, with the user's names of dynamic dimensions."""
    return _value(node.meta.get("val"), program.dim_names)


def _value(value: Any, names: dict[str, str]) -> str:
    if isinstance(value, torch.Tensor):
        return f"{dtype_name(value.dtype)}[{', '.join(map(str, shape_names(value.shape, names)))}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_value(item, names) for item in value)})"
    if isinstance(value, torch.SymInt):
        return str(shape_names([value], names)[0])
    return type(value).__name__


def _argument(argument: Any) -> str:
    if isinstance(argument, fx.Node):
        return f"@{argument.target}" if argument.op == "get_attr" else f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(map(_argument, argument))}]"
    return str(argument)
