"""From a program to a Relax module that only waits for code generation."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from shave.backends.encoding import Encoded
from shave.backends.kernel_cost import KernelCost
from shave.backends.plan import Plan
from shave.backends.target import Target
from shave.backends.tvm import emit  # noqa: F401  (registers the emitters)
from shave.backends.tvm.adapter import relax, tvm
from shave.backends.tvm.attention_regions import find_attention
from shave.backends.tvm.code_products import find_code_products
from shave.backends.tvm.emit import convolution, matmul, winograd
from shave.backends.tvm.emit.emitter import Array, Emitter, Weights
from shave.backends.tvm.kernel_costs import kernel_costs
from shave.backends.tvm.kernels.arithmetic import has_integers
from shave.backends.tvm.legalise import legalise
from shave.backends.tvm.measured import find_measured
from shave.backends.tvm.naming import name_by_content
from shave.backends.tvm.regions import Region, find_channel_norms, find_regions
from shave.backends.tvm.schedule.tail import schedule_tail
from shave.backends.tvm.schedules import Kernel, Schedules
from shave.backends.tvm.sizes import Sizes
from shave.backends.tvm.small_work import share_only_large_loops
from shave.backends.tvm.static import static
from shave.ir.program import Program
from shave.ir.signature import Signature

_BODY = "body"


@dataclass(frozen=True)
class KernelCall:
    """One call of a kernel, for profiles and reports.

    Attributes:
        name: Name of the function in the library.
        family: The kernel family, or ``tail`` for generated and scheduled code.
        nodes: Names of the program's nodes that it computes.
        kernel: What an own kernel computes.
        weights: Which arguments of an own kernel are weights.
    """

    name: str
    family: str
    nodes: tuple[str, ...]
    kernel: Kernel | None = None
    weights: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lowered:
    """A program on its way to a library.

    Attributes:
        module: What to generate code for: an ``IRModule`` with ``main(*inputs, weights)``, which takes the weights as
            one tuple and returns a tuple, or, if there is a plan, the kernels with the function ``run``.
        weights: Name and array of each weight, packed for the kernels, in the order of the tuple.
        encoded: The small forms of weights that have one, by name.
        signature: That of the program.
        kernels: The calls of functions of the library, in execution order; those inside of branches are left out.
        plan: Which kernel runs when, on which bytes; None if that is only known at run time.
        costs: The work behind each kernel; none where sizes are only known at run time.
    """

    module: Any
    weights: list[tuple[str, Array]]
    signature: Signature
    kernels: list[KernelCall]
    plan: Plan | None
    costs: tuple[KernelCost, ...]
    encoded: Mapping[str, Encoded] = field(default_factory=dict)


_one_at_a_time = threading.Lock()
"""TVM keeps the block builder in use in one place for all threads."""


def lower(program: Program, target: Target, schedules: Schedules | None = None) -> Lowered:
    """Lower a program for a CPU target. Threads that lower at the same time wait for one another.

    Args:
        program: What to lower.
        target: What for.
        schedules: Decides on the schedules of kernels; by default the analytic models do.

    Raises:
        UnsupportedError: Lists every operator that the backend cannot compile, with its node.
    """
    with _one_at_a_time:
        return _lower(program, target, schedules)


def _lower(program: Program, target: Target, schedules: Schedules | None) -> Lowered:
    program = legalise(program, has_integers(target))
    builder = relax.BlockBuilder()
    weights = Weights()
    emitter = Emitter(program.module, target, Sizes(_size_names(program)), builder, weights, schedules)
    graph = program.graph
    emitter.use_regions(_regions(graph, target))
    with builder.function(_BODY, attrs={"relax.force_pure": True}):
        inputs, outputs = emitter.emit_graph()
        parameters = [*inputs, *weights.variables.values()]
        builder.emit_func_output(relax.Tuple(outputs), parameters)
    module, arrays = _without_unused(_fused(builder.get()), len(inputs), weights)
    kernels = _calls(module, emitter, list(module[_BODY].params)[len(inputs) :])
    module = _as_functions(module)
    constants = list(module[_BODY].params)[len(inputs) :]
    module = share_only_large_loops(schedule_tail(module, target), target, constants)
    module, names = name_by_content(_with_main(module, len(inputs)))
    kernels = [replace(call, name=names.get(call.name, call.name)) for call in kernels]
    module, plan = static(module) or (module, None)
    costs = () if program.dim_names else kernel_costs(program, kernels)
    encoded = {name: small for name, small in weights.encoded.items() if name in arrays}
    return Lowered(module, list(arrays.items()), program.signature, kernels, plan, costs, encoded)


def _regions(graph: fx.Graph, target: Target) -> dict[fx.Node, Region]:
    """Everything that becomes one kernel call."""
    regions: dict[fx.Node, Region] = {**find_regions(graph, _is_anchor), **find_channel_norms(graph)}
    regions.update(find_attention(graph))
    if has_integers(target):
        taken = {node for region in regions.values() for node in region.nodes}
        regions.update(find_code_products(graph, taken))
        regions.update(find_measured(graph))
    return regions


def _is_anchor(node: fx.Node) -> bool:
    """Whether a float32 kernel with an epilogue computes a call."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return False
    return convolution.is_kernel(node) or matmul.is_kernel(node) or winograd.is_kernel(node)


def _size_names(program: Program) -> Mapping[str, str]:
    return program.dim_names


def _fused(module: Any) -> Any:
    """Join chains of elementwise functions, and these with reductions in front of or behind them."""
    passes = relax.transform
    return tvm.transform.Sequential(
        [
            passes.ConvertToDataflow(1),
            passes.DeadCodeElimination([_BODY]),
            passes.AnnotateTIROpPattern(),
            passes.FuseOps(),
        ]
    )(module)


def _without_unused(module: Any, inputs: int, weights: Weights) -> tuple[Any, dict[str, Array]]:
    """Drop the weights that nothing reads any more, such as integers that kernels read in an order of their own.

    Returns:
        The module, and the weights that are left.
    """
    body = module[_BODY]
    read = set(relax.analysis.free_vars(body.body))
    constants = dict(zip(weights.arrays, list(body.params)[inputs:], strict=True))
    kept = {name: variable for name, variable in constants.items() if variable in read}
    parameters = [*list(body.params)[:inputs], *kept.values()]
    function = relax.Function(parameters, body.body, body.ret_ty, body.is_pure, body.attrs)
    functions = {**module.functions, module.get_global_var(_BODY): function}
    return tvm.IRModule(functions, attrs=module.attrs), {name: weights.arrays[name] for name in kept}


def _as_functions(module: Any) -> Any:
    """Turn each group of joined functions into one."""
    passes = relax.transform
    return tvm.transform.Sequential([passes.FuseTIR(), passes.DeadCodeElimination([_BODY])])(module)


def _calls(module: Any, emitter: Emitter, constants: Collection[Any]) -> list[KernelCall]:
    """What the body calls, as long as the variables inside of joined groups still tell which nodes they are."""
    calls = []
    held = set(constants)
    for block in module[_BODY].body.blocks:
        for binding in block.bindings:
            called = binding.value
            if not isinstance(called, relax.Call):
                continue
            variables = [binding.var]
            weights: tuple[int, ...] = ()
            if isinstance(called.op, tvm.ir.GlobalVar):
                name = called.op.name_hint
                variables = [b.var for inner in module[called.op].body.blocks for b in inner.bindings] + variables
            elif called.op.name == "relax.call_tir":
                name = called.args[0].name_hint
                weights = tuple(k for k, argument in enumerate(called.args[1].fields) if argument in held)
            else:
                continue
            nodes = dict.fromkeys(n for v in variables for n in emitter.origins.get(v.name, ()))
            kernel = emitter.kernels.get(name)
            calls.append(KernelCall(name, "tail" if kernel is None else kernel.name, tuple(nodes), kernel, weights))
    return calls


def _with_main(module: Any, inputs: int) -> Any:
    """Turn the body into ``main``, which takes the weights as one tuple and unpacks it first."""
    body = module[_BODY]
    given, weights = list(body.params)[:inputs], list(body.params)[inputs:]
    packed = relax.Var("weights", relax.TupleType([w.ty for w in weights]))
    unpack = [relax.VarBinding(w, relax.TupleGetItem(packed, k)) for k, w in enumerate(weights)]
    sequence = relax.SeqExpr([relax.BindingBlock(unpack), *body.body.blocks], body.body.body)
    main = relax.Function([*given, packed], sequence, body.ret_ty).with_attr("global_symbol", "main")
    functions = {name: f for name, f in module.functions.items() if name.name_hint != _BODY}
    return tvm.IRModule({**functions, tvm.ir.GlobalVar("main"): main}, attrs=module.attrs)
