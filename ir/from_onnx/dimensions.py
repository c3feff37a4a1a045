"""Which dimensions of the inputs are dynamic, and what stands for them while tracing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from shave.ir.errors import ReadError
from shave.ir.from_onnx.graph import Dim, TensorSpec

# Example sizes: small for a leading axis, else such that they survive strides and pooling. torch takes 0 and 1 for
# constants. Distinct numbers keep distinct dimensions apart.
_LEADING_SIZE, _IMAGE_SIZE, _LENGTH = 2, 224, 16

# The range of a dimension of which nothing was said.
_ANY = (torch.export.Dim("any").min, torch.export.Dim("any").max)


@dataclass(frozen=True)
class InputShapes:
    """The inputs' shapes: numbers, and names of dynamic dimensions with an example size for each."""

    shapes: tuple[tuple[int | str, ...], ...]
    examples: Mapping[str, int]

    def sizes(self, index: int) -> list[int]:
        """Example sizes of an input."""
        return [self.examples[size] if isinstance(size, str) else size for size in self.shapes[index]]

    def fixed(self, names: Sequence[str], size: int) -> InputShapes:
        """The same with some dimensions fixed."""
        shapes = tuple(tuple(size if dim in names else dim for dim in shape) for shape in self.shapes)
        return InputShapes(shapes, {name: n for name, n in self.examples.items() if name not in names})

    def dims(self, of: Mapping[str, object]) -> tuple[dict[int, object] | None, ...]:
        """torch.export's description of the dynamic axes of each input; ``of`` gives what it is to be told of each."""
        axes = ({axis: of[dim] for axis, dim in enumerate(shape) if isinstance(dim, str)} for shape in self.shapes)
        return tuple(found or None for found in axes)


def input_shapes(inputs: Sequence[TensorSpec], given: Mapping[str, Sequence[int | str]]) -> InputShapes:
    """Join what the file declares with what the caller asks for.

    A size that the caller gives for a named dimension holds wherever the file uses the name.

    Raises:
        ReadError: the caller names an unknown input or another rank, or the file leaves the rank open.
    """
    names = [spec.name for spec in inputs]
    if unknown := sorted(set(given) - set(names)):
        raise ReadError(f"shapes are given for {', '.join(unknown)}, but the inputs are {', '.join(names)}")
    declared = {spec.name: _declared(spec, given) for spec in inputs}
    bound: dict[Dim, int | str] = {}
    for name, shape in given.items():
        if len(shape) != len(declared[name]):
            raise ReadError(f"input '{name}' has {len(declared[name])} dimensions, but {list(shape)} was given for it")
        bound.update({old: new for old, new in zip(declared[name], shape, strict=True) if isinstance(old, str)})
    shapes = tuple(
        tuple(given.get(spec.name) or [bound.get(dim, dim) for dim in declared[spec.name]]) for spec in inputs
    )
    return InputShapes(shapes, _examples(shapes))


def _declared(spec: TensorSpec, given: Mapping[str, Sequence[int | str]]) -> tuple[int | str, ...]:
    if spec.shape is None:
        if spec.name not in given:
            raise ReadError(f"the file does not say how many dimensions input '{spec.name}' has: give its shape")
        return tuple(given[spec.name])
    # Some exporters write an open size as -1.
    return tuple(
        f"{spec.name}_dim_{axis}" if dim is None or (isinstance(dim, int) and dim < 0) else dim
        for axis, dim in enumerate(spec.shape)
    )


def _examples(shapes: Sequence[Sequence[int | str]]) -> dict[str, int]:
    examples: dict[str, int] = {}
    taken: set[int] = set()
    for shape in shapes:
        for axis, dim in enumerate(shape):
            if isinstance(dim, int) or dim in examples:
                continue
            size, step = (_LEADING_SIZE, 1) if axis == 0 else (_LENGTH, 4)
            if axis >= 2 and len(shape) >= 4:
                size, step = _IMAGE_SIZE, 32
            while size in taken:
                size += step
            taken.add(size)
            examples[dim] = size
    return examples


def relax(dims: Mapping[str, object], message: str) -> dict[str, object]:
    """Describe dimensions less strictly where torch.export found that not all of their sizes work.

    Args:
        dims: What torch.export was told of each dimension.
        message: Its error; of another error than a violated condition nothing follows.

    Returns:
        The same, but a dimension that is at fault has the range that the error suggests, or is left to torch.export.
    """
    found = re.match(r"Constraints violated \((.*?)\)!", message)
    if found is None:
        return dict(dims)
    by_torch_name = {dim.__name__: name for name, dim in dims.items() if isinstance(dim, torch.export.Dim)}
    blamed = [by_torch_name[part] for part in found[1].split(", ") if part in by_torch_name] or by_torch_name.values()
    relaxed = dict(dims)
    for name in blamed:
        dim = dims[name]
        assert isinstance(dim, torch.export.Dim)
        suggested = re.search(rf"^\s*{dim.__name__} = Dim\('\w+'((?:, (?:min|max)=\d+)+)\)", message, re.MULTILINE)
        bounds = dict(re.findall(r"(min|max)=(\d+)", suggested[1])) if suggested else {}
        is_new = bounds and (dim.min, dim.max) == _ANY
        relaxed[name] = (
            torch.export.Dim(dim.__name__, **{end: int(bound) for end, bound in bounds.items()})
            if is_new
            else torch.export.Dim.AUTO
        )
    return relaxed


def symbol_names(exported: torch.export.ExportedProgram, shapes: InputShapes) -> dict[str, str]:
    """The dimensions' names by the symbols that stand for them in an exported program."""
    user_inputs = set(exported.graph_signature.user_inputs)
    placeholders = [node for node in exported.graph.find_nodes(op="placeholder") if node.name in user_inputs]
    names: dict[str, str] = {}
    for node, shape in zip(placeholders, shapes.shapes, strict=True):
        for size, dim in zip(node.meta["val"].shape, shape, strict=True):
            if isinstance(dim, str) and isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                names.setdefault(str(size.node.expr), dim)
    return names


def specialized(exported: torch.export.ExportedProgram, shapes: InputShapes) -> dict[str, int]:
    """Dimensions that were to be dynamic but came out fixed."""
    user_inputs = set(exported.graph_signature.user_inputs)
    placeholders = [node for node in exported.graph.find_nodes(op="placeholder") if node.name in user_inputs]
    return {
        dim: size
        for node, shape in zip(placeholders, shapes.shapes, strict=True)
        for size, dim in zip(node.meta["val"].shape, shape, strict=True)
        if isinstance(dim, str) and isinstance(size, int)
    }
