"""Programs made by hand, operator by operator: in milliseconds, and free to hold what torch.export never leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from shave.ir.dtypes import dtype_name
from shave.ir.program import Program
from shave.ir.rewrite import infer
from shave.ir.shapes import shape_names
from shave.ir.signature import Signature, TensorSpec


def program_of(
    function: Callable[..., Any],
    inputs: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Program:
    """Write down the operators that a function calls, each as it is; what it does not return is dead code.

    Args:
        function: Takes inputs, then weights, and calls overloads of ``torch.ops``.
        inputs: Examples by name.
        weights: By name; parameters are trainable, plain tensors are constants. Dots make submodules.
        dynamic: For an input, the axes whose size varies, by name; equal names are equal sizes.
    """
    weights = weights or {}
    graph = fx.Graph()
    mode = FakeTensorMode(shape_env=ShapeEnv())
    tracer = fx.proxy.GraphAppendingTracer(graph)
    sizes: dict[str, torch.SymInt] = {}
    for name, tensor in inputs.items():
        shape: list[Any] = list(tensor.shape)
        for axis, dim in (dynamic or {}).get(name, {}).items():
            shape[axis] = sizes.setdefault(dim, _symbol(mode, dim, tensor.shape[axis]))
        with mode:
            graph.placeholder(name).meta["val"] = torch.empty(shape, dtype=tensor.dtype)
    for name, tensor in weights.items():
        node = graph.create_node("get_attr", name, name=name.replace(".", "_"))
        node.meta["val"] = mode.from_tensor(tensor.detach(), static_shapes=True)
    results = function(*(fx.Proxy(node, tracer) for node in graph.nodes))
    returned = tuple(each.node for each in (results if isinstance(results, (tuple, list)) else (results,)))
    for node in graph.nodes:
        if node.op == "call_function":
            node.meta["val"] = infer(node, mode)
    graph.output(returned).meta["val"] = tuple(node.meta["val"] for node in returned)
    module = fx.GraphModule(dict(weights), graph)
    program = Program(module, _signature(module, sizes))
    program.verify(full=True)
    return program


def create(near: fx.Proxy, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Proxy:
    """Call an operator that is given no tensor, in the graph of ``near``."""
    return near.tracer.create_proxy("call_function", target, args, kwargs)


def draw(shapes: Mapping[str, tuple[int, ...]], *, trainable: bool = False) -> dict[str, torch.Tensor]:
    """Draw weights of given shapes, the same each time."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: torch.nn.Parameter(tensor) for name, tensor in drawn.items()} if trainable else drawn


def _symbol(mode: FakeTensorMode, name: str, size: int) -> torch.SymInt:
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC])
    made = mode.from_tensor(torch.empty(size), source=ConstantSource(name), symbolic_context=context).shape[0]
    assert isinstance(made, torch.SymInt)
    return made


def _signature(module: fx.GraphModule, sizes: Mapping[str, torch.SymInt]) -> Signature:
    names = {str(size): name for name, size in sizes.items()}
    returned = module.graph.output_node().args[0]
    assert isinstance(returned, tuple)
    labels = ["output"] if len(returned) == 1 else [f"output_{i}" for i in range(len(returned))]

    def spec(name: str, node: fx.Node) -> TensorSpec:
        value = node.meta["val"]
        return TensorSpec(name, shape_names(value.shape, names), dtype_name(value.dtype))

    return Signature(
        tuple(spec(node.name, node) for node in module.graph.find_nodes(op="placeholder")),
        tuple(map(spec, labels, returned)),
        dict.fromkeys(sizes, (1, None)),
    )
