"""Dynamic dimensions by name, on top of what ``torch.export`` takes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.utils import _pytree as pytree

from shave.ir.errors import ReadError


def torch_dims(shapes: Any, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Turn the short form into torch's own: equal names become one ``Dim``.

    Raises:
        ReadError: A name is not that of an input.
    """
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    if unknown := sorted(set(shapes) - set(bound)):
        raise ReadError(f"dynamic_shapes names {', '.join(unknown)}, but the inputs are {', '.join(bound)}")
    dims: dict[str, Any] = {}
    return {
        name: {
            axis: dims.setdefault(dim, torch.export.Dim(dim)) if isinstance(dim, str) else dim
            for axis, dim in shapes[name].items()
        }
        if name in shapes
        else pytree.tree_map(lambda _: None, value)
        for name, value in bound.items()
    }


def is_short_form(shapes: Any) -> bool:
    """Whether dimensions are given by names, ``{"x": {0: "batch"}}``."""
    return isinstance(shapes, Mapping) and any(
        isinstance(dim, str) for axes in shapes.values() if isinstance(axes, Mapping) for dim in axes.values()
    )


def dim_names(exported: ExportedProgram, shapes: Any) -> dict[str, str]:
    """Find out which symbol stands for which of the user's dimensions, by position."""
    if not isinstance(shapes, Mapping):
        return {}
    names = {}
    for node in exported.graph.find_nodes(op="placeholder"):
        axes = shapes.get(node.name)
        if not isinstance(axes, Mapping):
            continue
        for axis, dim in axes.items():
            size = node.meta["val"].shape[axis]
            name = dim if isinstance(dim, str) else getattr(dim, "__name__", None)
            if isinstance(size, torch.SymInt) and name and re.fullmatch(r"\w+", str(size)):
                names[str(size)] = str(name)
    return names


def narrowed_dims(dims: Any, complaint: str) -> Any:
    """The dimensions with the ranges that torch suggests; None if it suggests anything but ranges.

    Args:
        dims: What was given to ``torch.export``.
        complaint: The message of its error, with lines like ``length = Dim('length', max=512)`` at the end.
    """
    suggestions = complaint.partition("Suggested fixes:")[2].partition("\n\n")[0].split("\n")
    ranges = [line for line in suggestions if line.strip()]
    if not ranges or not all(re.fullmatch(r"\s*\w+ = Dim\(.*\)\s*", line) for line in ranges):
        return None
    return refine_dynamic_shapes_from_suggested_fixes("Suggested fixes:\n" + "\n".join(ranges), dims)
