"""The names under which users know a node: their module's path, the ONNX node, the weight."""

from __future__ import annotations

from torch import fx

ONNX = "onnx"
"""Key in ``node.meta["custom"]`` that holds the name of the ONNX node a node came from."""

ONNX_OP = "onnx_op"
"""Key in ``node.meta["custom"]`` that holds the ONNX operator a node came from."""


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module of the user's that made this node; empty at the top level."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path and not path.startswith("_empty_nn_module_stack")]
    return str(paths[-1]) if paths else ""


def onnx_name(node: fx.Node) -> str:
    """Name of the ONNX node this node came from; empty if none."""
    return str(node.meta.get("custom", {}).get(ONNX, ""))


def onnx_op(node: fx.Node) -> str:
    """The ONNX operator this node came from (``Conv``); empty if none."""
    return str(node.meta.get("custom", {}).get(ONNX_OP, ""))


def names_of(node: fx.Node) -> list[str]:
    """Every name a user may call this node by, most specific first."""
    names = [node.name, onnx_name(node), module_path(node)]
    if node.op == "get_attr":
        names.append(str(node.target))
    return [name for name in dict.fromkeys(names) if name]
