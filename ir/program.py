"""The program: one graph of functional ATen operators with its weights and its signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx

import shave.ir.lookup
import shave.ir.winograd  # noqa: F401 - both register operators of shave's own with torch, which programs may call
from shave.ir.dtypes import dtype_name
from shave.ir.errors import SignatureError
from shave.ir.signature import Signature

if TYPE_CHECKING:
    from shave.ir.cost import Cost
    from shave.ir.rewrite import Rewriter


class Program:
    """A model as a graph of functional ATen operators.

    The graph is a plain ``torch.fx.GraphModule``: placeholders (the inputs), then ``get_attr`` nodes (the weights, one
    node per distinct tensor), then calls, then the output (always a flat tuple). Every node carries its FakeTensor in
    ``node.meta["val"]``. The program is executable, trainable and exportable by torch alone.

    Weights are never written in place by a pass: a changed weight is a new tensor. So clones may share them.

    Attributes:
        module: The graph module.
        signature: Names, shapes and dtypes of inputs and outputs.
        report: One entry per pass that has run, oldest first; see :class:`shave.passes.report.PassReport`.
    """

    def __init__(self, module: fx.GraphModule, signature: Signature, report: tuple[Any, ...] = ()) -> None:
        self.module = module
        self.signature = signature
        self.report = report

    # What it does

    def __call__(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run in torch, without gradients.

        Returns:
            The output tensor, or a tuple of them if there are several.

        Raises:
            SignatureError: Wrong number, name, shape or dtype of the inputs.
        """
        tensors = self.signature.bind(inputs, named)
        for spec, tensor in zip(self.signature.inputs, tensors, strict=True):
            if not isinstance(tensor, torch.Tensor):
                raise SignatureError(f"input {spec.name!r} is a {type(tensor).__name__}, not a torch.Tensor")
        self.signature.check([tuple(t.shape) for t in tensors], [dtype_name(t.dtype) for t in tensors])
        with torch.no_grad():
            outputs = self.module(*tensors)
        return cast(torch.Tensor, outputs[0]) if len(outputs) == 1 else tuple(outputs)

    # What it is made of

    @property
    def graph(self) -> fx.Graph:
        """The graph of operators."""
        return self.module.graph

    @property
    def inputs(self) -> list[fx.Node]:
        """The placeholder nodes, in the order of the signature."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes whose values are returned, in the order of the signature."""
        return cast("tuple[fx.Node, ...]", self.graph.output_node().args[0])

    @property
    def calls(self) -> list[fx.Node]:
        """The operator nodes, in execution order."""
        return [node for node in self.graph.nodes if node.op == "call_function"]

    @property
    def dim_names(self) -> dict[str, str]:
        """The user's name of each of torch's size symbols (``s77``) in the inputs."""
        names = {}
        for node, spec in zip(self.inputs, self.signature.inputs, strict=True):
            for size, dim in zip(node.meta["val"].shape, spec.shape, strict=True):
                if isinstance(size, torch.SymInt) and isinstance(dim, str):
                    names[str(size)] = dim
        return names

    def weight(self, node: fx.Node) -> torch.Tensor:
        """The tensor behind a ``get_attr`` node."""
        value = attribute(self.module, str(node.target))
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{node.target} is not a weight but a {type(value).__name__}")
        return value

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of every weight the graph uses; a shared weight comes once."""
        for node in self.graph.nodes:
            if node.op == "get_attr" and isinstance(attribute(self.module, node.target), torch.Tensor):
                yield node.target, self.weight(node)

    # What is made of it

    def clone(self, *, copy_weights: bool = False) -> Program:
        """Copy the graph; the weights are shared unless ``copy_weights`` (for passes that train)."""
        return Program(_clone_module(self.module, copy_weights), replace(self.signature), self.report)

    def rewrite(self, by: str) -> Rewriter:
        """Start to change the graph; ``by`` names the pass and is recorded on every new node."""
        from shave.ir.rewrite import Rewriter

        return Rewriter(self, by)

    def verify(self, *, full: bool = False) -> None:
        """Check the rules of the representation; ``full`` also infers every shape and dtype anew.

        Raises:
            VerifyError: Shows the node at fault among its neighbours.
        """
        from shave.ir.verify import verify

        verify(self, full=full)

    def cost(self, sizes: Mapping[str, int] | None = None) -> Cost:
        """Count parameters, multiply-accumulates, bytes of weights and the peak of live activations, for one sample.

        Args:
            sizes: Sizes of dynamic dimensions by name; see :func:`shave.ir.cost.cost` for the defaults.
        """
        from shave.ir.cost import cost

        return cost(self, sizes)

    def structural_hash(self) -> str:
        """Digest of graph, weights and signature: equal for equal programs, whatever the node names."""
        from shave.ir.structure import structural_hash

        return structural_hash(self)

    def save(self, path: str | Path) -> None:
        """Write a ``.pt2`` file that :func:`shave.read` and ``torch.export.load`` take."""
        from shave.ir.pt2 import save

        save(self, Path(path))

    def to_onnx(self, path: str | Path) -> None:
        """Write an ONNX file with the same names and dynamic dimensions."""
        from shave.ir.to_onnx import to_onnx

        to_onnx(self, Path(path))

    def __str__(self) -> str:
        from shave.ir.text import to_text

        return to_text(self)


def attribute(module: torch.nn.Module, target: str) -> Any:
    """The object behind a dotted name."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _clone_module(module: fx.GraphModule, copy_weights: bool) -> fx.GraphModule:
    """Copy graph and attribute table; nested graphs (branches of ``torch.cond``) are copied too."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    new_output = graph.output(graph.graph_copy(module.graph, copied))
    new_output.meta = dict(module.graph.output_node().meta)
    attributes: dict[str, Any] = {}
    for node in copied.values():
        if node.op != "get_attr":
            continue
        value = attribute(module, str(node.target))
        if isinstance(value, fx.GraphModule):
            value = _clone_module(value, copy_weights)
        elif copy_weights:
            value = _copy_tensor(value)
        attributes[str(node.target)] = value
    clone = fx.GraphModule(attributes, graph)
    clone.meta = dict(module.meta)
    return clone


def _copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().clone()
    return torch.nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else copy
