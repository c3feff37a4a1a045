"""torch to program: trace a module, or take over an exported program."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import UserError
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from shave.ir.dtypes import dtype_name
from shave.ir.dynamic_shapes import dim_names, is_short_form, narrowed_dims, torch_dims
from shave.ir.errors import ReadError
from shave.ir.program import Program
from shave.ir.shapes import shape_names
from shave.ir.signature import Signature, TensorSpec, identifier, unique_names

_aten = torch.ops.aten
_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def trace(
    module: torch.nn.Module,
    example_inputs: Sequence[Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Program:
    """Trace a module by ``torch.export``, in evaluation mode.

    The weights are shared with the module, not copied.

    Args:
        module: What to trace; its training flag is restored afterwards.
        example_inputs: Positional arguments of ``forward``; shapes and dtypes count, values do not.
        example_kwargs: Keyword arguments of ``forward``.
        dynamic_shapes: As ``torch.export.export`` takes it, or, for short, a mapping from the name of an input to
            ``{axis: "name"}``: equal names are equal sizes.

    Raises:
        ReadError: ``torch.export`` cannot trace the module; its own explanation is in the message.
    """
    args, kwargs = tuple(example_inputs), dict(example_kwargs or {})
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        exported = _export(module, args, kwargs, dynamic_shapes)
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(f"torch.export cannot trace {type(module).__name__}: {error}") from error
    finally:
        for part, training in modes.items():
            part.training = training
    return from_exported(exported, dim_names=dim_names(exported, dynamic_shapes))


def _export(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """Export; where the module takes fewer sizes than any (a table of 512 positions), take those that it does."""

    def export(dims: Any) -> ExportedProgram:
        with quiet_torch():
            return torch.export.export(module, args, kwargs, dynamic_shapes=dims, strict=False)

    if not is_short_form(dynamic_shapes):
        return export(dynamic_shapes)
    dims = torch_dims(dynamic_shapes, module, args, kwargs)
    try:
        return export(dims)
    except UserError as error:
        narrowed = narrowed_dims(dims, str(error.msg))
        if narrowed is None:
            raise
        return export(narrowed)


def from_exported(
    exported: ExportedProgram,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dim_names: Mapping[str, str] | None = None,
) -> Program:
    """Turn an exported program into a :class:`Program`.

    Args:
        exported: Any dialect: it is made functional, with composite operators kept whole.
        input_names: Names for the inputs; by default those of the exported graph.
        output_names: Names for the outputs; by default the keys of a returned mapping, else ``output_0`` ...
        dim_names: Names of dynamic dimensions by the name of their symbol.

    Raises:
        ReadError: The program changes its own state, or takes or gives something other than tensors.
    """
    with quiet_torch():
        exported = exported.run_decompositions({})
    graph, attributes = _lift(exported)
    module = fx.GraphModule(attributes, graph)
    _normalise(module)
    module.recompile()
    signature = _signature(exported, module, input_names, output_names, dim_names or {})
    program = Program(module, signature)
    program.verify()
    return program


@contextmanager
def quiet_torch() -> Iterator[None]:
    """torch.export warns of its own use of its own deprecated names; nobody who calls shave can act on that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        yield


def _lift(exported: ExportedProgram) -> tuple[fx.Graph, dict[str, Any]]:
    """Copy the graph: weights become ``get_attr`` nodes, one per distinct tensor; only real inputs stay inputs."""
    signature = exported.graph_signature
    kinds = {spec.arg.name: spec for spec in signature.input_specs}
    used = _used_outputs(exported)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    attributes: dict[str, Any] = {}
    by_identity: dict[int, fx.Node] = {}
    weights: list[tuple[fx.Node, str, torch.Tensor]] = []
    for node in exported.graph.find_nodes(op="placeholder"):
        spec = kinds[node.name]
        if spec.kind in _WEIGHTS:
            if node.users:
                assert spec.target is not None
                weights.append((node, spec.target, _tensor_of(exported, spec.target)))
        elif isinstance(spec.arg, ConstantArgument):
            if node.users:
                raise ReadError(f"input {node.name} is the constant {spec.arg.value!r}, which the graph still reads")
        elif spec.kind is InputKind.USER_INPUT and isinstance(node.meta.get("val"), torch.Tensor):
            copied[node] = graph.node_copy(node)
        else:
            raise ReadError(
                f"input {node.name} is a {spec.kind.name.lower().replace('_', ' ')}; only tensors can go in"
            )
    for node, target, tensor in weights:
        if id(tensor) not in by_identity:
            name = _attribute_name(target, attributes)
            attributes[name] = tensor
            weight = graph.create_node("get_attr", name, name=identifier(name))
            weight.meta = {"val": node.meta["val"]}
            by_identity[id(tensor)] = weight
        copied[node] = by_identity[id(tensor)]
    for node in exported.graph.nodes:
        if node.op == "call_function":
            copied[node] = graph.node_copy(node, lambda n: copied[n])
            copied[node].meta = _kept_meta(node)
        elif node.op == "get_attr":
            copied[node] = graph.node_copy(node)
            attributes[str(node.target)] = getattr(exported.graph_module, str(node.target))
    output = graph.output(tuple(copied[node] for node in used))
    output.meta = {"val": tuple(node.meta["val"] for node in used)}
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return graph, {name: value for name, value in attributes.items() if any(n.target == name for n in graph.nodes)}


def _used_outputs(exported: ExportedProgram) -> list[fx.Node]:
    nodes = []
    returned = exported.graph.output_node().args[0]
    assert isinstance(returned, (tuple, list))
    for spec, node in zip(exported.graph_signature.output_specs, returned, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT:
            what = spec.kind.name.lower().replace("_", " ")
            raise ReadError(
                f"the model changes its own state ({what} of {spec.target}): call .eval() before export if that is a "
                "batch norm's statistics, else export a form that takes the state as an input and returns it"
            )
        if node is None or isinstance(spec.arg, ConstantArgument):
            continue
        assert isinstance(node, fx.Node)
        if not isinstance(node.meta.get("val"), torch.Tensor):
            raise ReadError(f"output {node.name} is not a tensor; only tensors can come out")
        nodes.append(node)
    if not nodes:
        raise ReadError("the model returns no tensor")
    return nodes


def _tensor_of(exported: ExportedProgram, target: str) -> torch.Tensor:
    value = exported.state_dict.get(target)
    if value is None:
        value = exported.constants[target]
    if not isinstance(value, torch.Tensor):
        raise ReadError(f"constant {target} is a {type(value).__name__}, not a tensor")
    return value


def _attribute_name(target: str, taken: Mapping[str, Any]) -> str:
    """A dotted name that torch modules accept and that is neither taken nor a prefix of a taken one."""
    name = ".".join(identifier(part) if not part.isdigit() else part for part in target.split("."))
    base, count = name, 1
    while name in taken or any(t.startswith(f"{name}.") or name.startswith(f"{t}.") for t in taken):
        name, count = f"{base}_{count}", count + 1
    return name


def _kept_meta(node: fx.Node) -> dict[str, Any]:
    """What later readers need: the value, the user's module, the ONNX node, who made it."""
    kept: dict[str, Any] = {
        key: node.meta[key] for key in ("val", "nn_module_stack", "stack_trace") if key in node.meta
    }
    if node.meta.get("custom"):
        kept["custom"] = dict(node.meta["custom"])
    return kept


_COPIES = (_aten.clone.default, _aten.contiguous.default, _aten.alias.default, _aten.detach.default)
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)


def _normalise(module: fx.GraphModule) -> None:
    """Leave one way to say a thing.

    A program is about values: it has no strides and no aliases, so a copy is its original and a view is a reshape.
    """
    _restore_batch_norm(module)
    for node in list(module.graph.nodes):
        if node.target in _COPIES:
            node.replace_all_uses_with(node.args[0], propagate_meta=False)
            module.graph.erase_node(node)
        elif node.target in _VIEWS:
            node.target = _aten.reshape.default


def _restore_batch_norm(module: fx.GraphModule) -> None:
    """Turn the decomposed inference batch norm (a tuple) back into the composite with one result."""
    for node in module.graph.find_nodes(op="call_function", target=_aten._native_batch_norm_legit_no_training.default):
        x, weight, bias, mean, variance, momentum, epsilon = node.args
        with module.graph.inserting_before(node):
            whole = module.graph.call_function(
                _aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, epsilon, False)
            )
        whole.meta = {**node.meta, "val": node.meta["val"][0]}
        for item in list(node.users):
            assert item.target is operator.getitem
            assert item.args[1] == 0, "an inference batch norm has one result that can be used"
            item.replace_all_uses_with(whole)
            module.graph.erase_node(item)
        module.graph.erase_node(node)


def _signature(
    exported: ExportedProgram,
    module: fx.GraphModule,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    dim_names: Mapping[str, str],
) -> Signature:
    inputs = module.graph.find_nodes(op="placeholder")
    outputs = module.graph.output_node().args[0]
    assert isinstance(outputs, tuple)
    in_names = list(input_names) if input_names else [node.name for node in inputs]
    out_names = list(output_names) if output_names else _output_names(exported, len(outputs))
    if len(in_names) != len(inputs) or len(out_names) != len(outputs):
        raise ReadError(
            f"{len(in_names)} names for {len(inputs)} inputs, {len(out_names)} names for {len(outputs)} outputs"
        )
    borders = unique_names([*in_names, *out_names])
    in_names, out_names = borders[: len(inputs)], borders[len(inputs) :]
    symbols = {str(s): s for node in inputs for s in _symbols(node.meta["val"])}
    names = dict(zip(symbols, unique_names([identifier(dim_names.get(s, s)) for s in symbols]), strict=True))

    def spec(name: str, value: torch.Tensor) -> TensorSpec:
        return TensorSpec(name, shape_names(value.shape, names), dtype_name(value.dtype))

    dims = {}
    for text, symbol in symbols.items():
        bounds = exported.range_constraints.get(symbol)
        low, high = (int(bounds.lower), bounds.upper) if bounds is not None else (0, None)
        dims[names[text]] = (low, int(high) if high is not None and high.is_Integer and high < 2**31 else None)
    return Signature(
        tuple(spec(name, node.meta["val"]) for name, node in zip(in_names, inputs, strict=True)),
        tuple(spec(name, node.meta["val"]) for name, node in zip(out_names, outputs, strict=True)),
        dims,
    )


def _output_names(exported: ExportedProgram, count: int) -> list[str]:
    """Keys of a returned mapping; nested results are joined by dots; a lone output is ``output``."""
    spec = exported.call_spec.out_spec
    assert spec is not None
    leaves = pytree.tree_leaves(exported.graph.output_node().args[0])
    keyed = pytree.tree_flatten_with_path(pytree.tree_unflatten(leaves, spec))[0]
    names = []
    for path, leaf in keyed:
        if isinstance(leaf, fx.Node):
            parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
            names.append(".".join(parts) if parts and not parts[0].isdigit() else "_".join(["output", *parts]))
    return names if len(names) == count else [f"output_{i}" for i in range(count)]


def _symbols(value: torch.Tensor) -> list[Any]:
    """The sympy symbols in a shape, in order of appearance."""
    found: dict[Any, None] = {}
    for size in value.shape:
        if isinstance(size, torch.SymInt):
            found.update(dict.fromkeys(sorted(size.node.expr.free_symbols, key=str)))
    return list(found)
