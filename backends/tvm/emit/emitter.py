"""The walk over a graph that turns each call into Relax expressions, and what emitters ask of it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from shave.backends.encoding import Encoded, integers, narrow
from shave.backends.packing import Packing
from shave.backends.target import Target
from shave.backends.tvm import layout
from shave.backends.tvm.adapter import relax, te, tirx
from shave.backends.tvm.emit.registry import emitter_of
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.layout import Value
from shave.backends.tvm.regions import Region
from shave.backends.tvm.schedules import Analytic, Argument, Kernel, Schedules
from shave.backends.tvm.sizes import Size, Sizes
from shave.backends.tvm.small_form import small_form
from shave.ir.dtypes import dtype_name
from shave.ir.errors import UnsupportedError
from shave.ir.ops import op_name
from shave.ir.program import attribute

Array = npt.NDArray[Any]

OPAQUE = 8
"""TVM's operator pattern of a function that nothing may be fused into."""


@dataclass
class Weights:
    """The tensors that the library takes at run time, each once, in the order of the weights tuple.

    Attributes:
        arrays: By name.
        variables: The Relax variable of each.
        encoded: The small forms of those that have one.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    encoded: dict[str, Encoded] = field(default_factory=dict)

    def add(self, name: str, array: Array, encoded: Encoded | None = None) -> Any:
        """Add a tensor and return its variable; a name that is already there stands for the same tensor.

        A small form that does not stand for it exactly is not used.
        """
        if name not in self.arrays:
            self.arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
            if encoded is None or not encoded.stands_for(self.arrays[name]):
                encoded = narrow(self.arrays[name])
            if encoded is not None:
                self.encoded[name] = encoded
            self.variables[name] = relax.Var(f"w{len(self.variables)}", relax.TensorType(array.shape, str(array.dtype)))
        return self.variables[name]


class Emitter:
    """Emits one graph into a Relax function.

    Attributes:
        builder: Collects the Relax bindings.
        target: What is compiled for.
        lanes: Channels of a block in the blocked layout.
        sizes: Converts symbolic sizes.
        weights: Those used so far.
        schedules: Decides on the schedules of own kernels.
        origins: The nodes behind a Relax variable, by its name.
        kernels: What an own function computes, by its name.
        parameters: Scale and zero point that are found while the program runs, as :mod:`kernels.parameters` has them,
            by the node of the codes.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        target: Target,
        sizes: Sizes,
        builder: Any,
        weights: Weights,
        schedules: Schedules | None = None,
    ) -> None:
        self.module = module
        self.target = target
        self.lanes = target.lanes
        self.sizes = sizes
        self.builder = builder
        self.weights = weights
        self.schedules = schedules or Analytic()
        self.values: dict[fx.Node, Value | tuple[Value, ...]] = {}
        self.origins: dict[str, tuple[str, ...]] = {}
        self.kernels: dict[str, Kernel] = {}
        self.parameters: dict[fx.Node, Any] = {}
        self.functions: dict[Any, Any] = {}
        self.regions: dict[fx.Node, Region] = {}
        self.last_of: dict[fx.Node, fx.Node] = {}
        self.anchor_of: dict[fx.Node, fx.Node] = {}

    def use_regions(self, regions: Mapping[fx.Node, Region]) -> None:
        """Emit each region as one kernel call, at the place of its last node."""
        self.regions = dict(regions)
        self.last_of = {node: r.nodes[-1] for r in regions.values() for node in r.nodes}
        self.anchor_of = {r.nodes[-1]: anchor for anchor, r in regions.items()}

    # The walk

    def emit_graph(self) -> tuple[list[Any], list[Any]]:
        """Emit every node.

        Returns:
            The variables of the inputs, and those of the outputs in the plain layout.

        Raises:
            UnsupportedError: Lists every node that cannot be emitted.
        """
        inputs = []
        problems = []
        outputs: list[Any] = []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                shape, dtype = self.result(node)
                variable = relax.Var(node.name, relax.TensorType(shape, dtype_name(node.meta["val"].dtype)))
                inputs.append(variable)
                self.values[node] = Value(shape, dtype, plain=self._across_border(variable, dtype))
            elif node.op == "call_function" and not _is_size(node):
                try:
                    self._emit_call(node)
                except UnsupportedError as error:
                    problems.append(f"{op_name(node)} (node {node.name}): {error}")
                    self.values[node] = self._placeholder(node)
            elif node.op == "output":
                outputs = [
                    self._across_border(self.plain(value), dtype_name(value.meta["val"].dtype))
                    for value in node.args[0]
                ]
        if problems:
            raise UnsupportedError("the TVM backend cannot compile " + "; ".join(problems))
        return inputs, outputs

    def _emit_call(self, node: fx.Node) -> None:
        if self.last_of.get(node, node) is not node:
            return
        if node.target is operator.getitem:
            self.values[node] = cast("tuple[Value, ...]", self.values[cast(fx.Node, node.args[0])])[
                cast(int, node.args[1])
            ]
            return
        anchor = self.anchor_of.get(node, node)
        emit = emitter_of(anchor)
        if emit is None:
            raise UnsupportedError("no emitter and no decomposition")
        self.values[node] = self._wrapped(node, emit(self, anchor))

    def _wrapped(self, node: fx.Node, result: Any) -> Value | tuple[Value, ...]:
        if isinstance(result, (tuple, list)):
            claims = zip(result, node.meta["val"], strict=True)
            # None stands for a result that nobody reads.
            return tuple(cast(Value, r) if r is None else self._wrapped_one(r, v) for r, v in claims)
        return self._wrapped_one(result, node.meta["val"])

    def _wrapped_one(self, result: Any, claimed: torch.Tensor) -> Value:
        shape, dtype = self.sizes.shape(claimed.shape), stored_dtype(claimed.dtype)
        value = result if isinstance(result, Value) else Value(shape, dtype, plain=result)
        made = value.plain if value.plain is not None else value.blocked
        rank = len(shape) if value.plain is not None else len(shape) + 1
        assert (str(made.ty.dtype), made.ty.ndim) == (dtype, rank), f"emitted {made.ty}, expected {dtype}{shape}"
        return value

    def _placeholder(self, node: fx.Node) -> Value | tuple[Value, ...]:
        """Stand-in for a value that cannot be emitted, so that the walk finds all such nodes."""

        def one(claimed: torch.Tensor) -> Value:
            try:
                shape, dtype = self.sizes.shape(claimed.shape), stored_dtype(claimed.dtype)
            except UnsupportedError:
                shape, dtype = tuple(1 for _ in claimed.shape), "float32"
            return Value(shape, dtype, plain=relax.Var(node.name, relax.TensorType(shape, dtype)))

        claimed = node.meta["val"]
        return tuple(map(one, claimed)) if isinstance(claimed, (tuple, list)) else one(claimed)

    def _across_border(self, variable: Any, dtype: str) -> Any:
        """Convert an input or output between bfloat16 and what it is stored as inside.

        The function is left as it is: TVM's lowering of bfloat16 understands plain loops only.
        """
        if str(variable.ty.dtype) == dtype:
            return variable

        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *i: tirx.Cast(dtype, x(*i)), name="convert")

        attributes = {"op_pattern": OPAQUE, "shave.scheduled": True}
        return self.builder.emit_te(compute, variable, primfunc_name_hint="convert", primfunc_attrs=attributes)

    # Values

    def value(self, node: fx.Node) -> Value:
        """The value of a node with one tensor as result."""
        if node not in self.values and node.op == "get_attr":
            tensor = attribute(self.module, str(node.target))
            tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            variable = self.weights.add(str(node.target), array_of(tensor), small_form(node))
            self.values[node] = Value(tuple(tensor.shape), dtype_name(tensor.dtype), plain=variable)
        return cast(Value, self.values[node])

    def plain(self, of: fx.Node | Value) -> Any:
        """The variable that holds a value in the plain layout."""
        value = self.value(of) if isinstance(of, fx.Node) else of
        if value.plain is None:
            value.plain = layout.unblock(self.builder, value.blocked, value.shape, self.lanes)
        return value.plain

    def blocked(self, of: fx.Node | Value) -> Any:
        """The variable that holds a value in the blocked layout."""
        value = self.value(of) if isinstance(of, fx.Node) else of
        if value.blocked is None:
            value.blocked = layout.block(self.builder, value.plain, value.shape, self.lanes)
        return value.blocked

    def constant(self, node: Any) -> torch.Tensor | None:
        """The tensor behind a node that is a weight; None for anything else."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        return cast(torch.Tensor, attribute(self.module, str(node.target))).detach()

    def packed(self, name: str, node: fx.Node, packing: Packing) -> Any:
        """The variable of a weight, in float32, in the order in which a kernel reads it; ``name`` tells the order."""
        constant = self.constant(node)
        assert constant is not None
        encoded = small_form(node)
        packed = packing.apply(constant.float().numpy())
        return self.weights.add(f"{node.target}.{name}", packed, None if encoded is None else encoded.then(packing))

    def integers(self, name: str, weight: Array, packed: Array, packing: Packing) -> Any:
        """The variable of integer weights in the order in which a kernel reads them, which ``packing`` brings about."""
        return self.weights.add(name, packed, integers(weight, packed.dtype.name).then(packing))

    # Arguments and results

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """A call's arguments by their names in the schema, defaults filled in.

        Tensors stay nodes; symbolic sizes become TIR expressions.
        """
        schema = node.target._schema  # type: ignore[union-attr]
        bound = {}
        for position, parameter in enumerate(schema.arguments):
            if parameter.name in node.kwargs:
                value: Any = node.kwargs[parameter.name]
            elif position < len(node.args) and not parameter.kwarg_only:
                value = node.args[position]
            else:
                value = parameter.default_value
            bound[parameter.name] = self.resolve(value)
        return bound

    def resolve(self, value: Any) -> Any:
        """Turn symbolic sizes inside an argument into TIR expressions."""
        if isinstance(value, fx.Node):
            known = value.meta.get("val")
            return value if known is None or isinstance(known, (torch.Tensor, tuple, list)) else self.sizes(known)
        if isinstance(value, (list, tuple)):
            return [self.resolve(item) for item in value]
        return value

    def shape(self, node: fx.Node) -> tuple[Size, ...]:
        """Extents of a node's tensor."""
        return self.sizes.shape(node.meta["val"].shape)

    def dtype(self, node: fx.Node) -> str:
        """NumPy's name of the dtype in which a node's tensor is stored; see :func:`stored_dtype`."""
        return stored_dtype(node.meta["val"].dtype)

    def result(self, node: fx.Node) -> tuple[tuple[Size, ...], str]:
        """Shape and stored dtype of a node's tensor."""
        return self.shape(node), self.dtype(node)

    # Emission

    def te(
        self,
        node: fx.Node,
        compute: Callable[..., Any],
        *inputs: Any,
        attributes: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> Any:
        """Emit a tensor expression as one call.

        Args:
            node: Which node it computes; names the function.
            compute: Builds the expression from te tensors (and sizes) in place of ``inputs`` and ``named``. Symbolic
                sizes must come in by these ways, never by closure: the function gets variables of its own.
            inputs: Relax variables, sizes or lists of them.
            attributes: Attributes of the function.
            named: The same by name; ``shape`` by convention is the shape of the result.

        Returns:
            The variable of the result.
        """
        arguments = {name: list(v) if isinstance(v, tuple) else v for name, v in named.items()}
        hint = op_name(node).split(".")[-1].lstrip("_")
        made = self.builder.emit_te(
            compute, *inputs, primfunc_name_hint=hint, primfunc_attrs=attributes, name_hint=node.name, **arguments
        )
        self.origins[made.name] = (node.name,)
        return made

    def reshape(self, variable: Any, shape: Sequence[Size]) -> Any:
        """See the same memory in another shape."""
        return self.builder.emit(relax.op.reshape(variable, list(shape)))

    def as_float32(self, node: fx.Node, variable: Any) -> Any:
        """A variable of a narrow float dtype, widened for a kernel; float32 stays."""
        return self._converted(node, variable, "float32")

    def from_float32(self, node: fx.Node, variable: Any, dtype: str) -> Any:
        """A kernel's result in the dtype of the program."""
        return self._converted(node, variable, dtype)

    def _converted(self, node: fx.Node, variable: Any, dtype: str) -> Any:
        if str(variable.ty.dtype) == dtype:
            return variable

        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *i: tirx.Cast(dtype, x(*i)), name="convert")

        return self.te(node, compute, variable)

    def region(self, anchor: fx.Node) -> Region:
        """What the kernel of an anchor computes."""
        return self.regions.get(anchor, Region((anchor,)))

    def call_kernel(
        self,
        family: Any,
        problem: Any,
        epilogue: Epilogue,
        inputs: Sequence[Any],
        shape: Sequence[Size],
        nodes: Sequence[fx.Node],
    ) -> Any:
        """Emit the call of an own kernel; equal kernels share one function.

        Args:
            family: The module of the kernel family.
            problem: Its shape dataclass.
            epilogue: What it does to its result.
            inputs: Relax variables in the kernel's order, weights included, output not.
            shape: Extents of the result, in the layout the kernel writes; its dtype is that of the epilogue.
            nodes: The nodes it computes; the last one's value is the result.
        """
        kernel = Kernel(family, problem, epilogue, self.target)
        name = kernel.name
        weights = set(map(id, self.weights.variables.values()))
        arguments = [Argument(_known(v.ty.shape.values), id(v) in weights) for v in inputs]
        schedule = self.schedules.choose(kernel, [*arguments, Argument(_known(shape), False)])
        key = (name, problem, schedule, epilogue)
        if key not in self.functions:
            self.functions[key] = self.builder.add_func(own_function(kernel, schedule), name)
        function = self.functions[key]
        self.kernels[function.name_hint] = kernel
        call = relax.call_tir(function, list(inputs), relax.TensorType(list(shape), epilogue.dtype))
        made = self.builder.emit(call, name_hint=nodes[-1].name)
        self.origins[made.name] = tuple(n.name for n in nodes)
        return made


def own_function(kernel: Kernel, schedule: Any) -> Any:
    """The function of an own kernel, which nothing is fused into and the default schedule leaves alone."""
    function = kernel.family.build(kernel.shape, schedule, kernel.target, kernel.epilogue)
    return function.without_attr("global_symbol").with_attrs({"op_pattern": OPAQUE, "shave.scheduled": True})


def _known(shape: Sequence[Any]) -> tuple[int | None, ...]:
    sizes = [size.value if isinstance(size, tirx.IntImm) else size for size in shape]
    return tuple(size if isinstance(size, int) else None for size in sizes)


def stored_dtype(dtype: torch.dtype) -> str:
    """The dtype in which tensors of a torch dtype live between operators.

    bfloat16 lives as float32: CPUs without bfloat16 arithmetic convert at each operator anyway, and what torch rounds
    after each operator stays exact here.
    """
    return "float32" if dtype == torch.bfloat16 else dtype_name(dtype)


def array_of(tensor: torch.Tensor) -> Array:
    """A tensor as a NumPy array; dtypes that NumPy lacks come from ml_dtypes."""
    tensor = tensor.detach().contiguous()
    name = dtype_name(tensor.dtype)
    if hasattr(ml_dtypes, name):
        width = {1: torch.uint8, 2: torch.uint16}[tensor.element_size()]
        return tensor.view(width).numpy().view(getattr(ml_dtypes, name))
    return tensor.numpy()


def number(value: Any, dtype: str) -> Any:
    """A Python or symbolic number as a TIR expression of the dtype."""
    if isinstance(value, (bool, int, float)):
        return tirx.const(value, dtype)
    return tirx.Cast(dtype, value)


def _is_size(node: fx.Node) -> bool:
    """Whether a call computes no tensor: sizes are known as expressions, asserts on them have been checked."""
    value = node.meta.get("val")
    return not isinstance(value, (torch.Tensor, tuple, list))
