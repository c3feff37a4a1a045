"""From a program to a Relax module that only waits for code generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.backends.target import Target
from shave.backends.tvm import emit  # noqa: F401  (registers the emitters)
from shave.backends.tvm.adapter import relax, tvm
from shave.backends.tvm.emit import convolution, matmul
from shave.backends.tvm.emit.emitter import Array, Emitter, KernelCall, Weights
from shave.backends.tvm.legalise import legalise
from shave.backends.tvm.regions import find_regions
from shave.backends.tvm.schedule.tail import schedule_tail
from shave.backends.tvm.sizes import Sizes
from shave.ir.program import Program
from shave.ir.signature import Signature

_BODY = "body"


@dataclass(frozen=True)
class Lowered:
    """A program on its way to a library.

    Attributes:
        module: An ``IRModule``; ``main(*inputs, weights)`` takes the weights as one tuple and returns a tuple.
        weights: Name and array of each weight, packed for the kernels, in the order of the tuple.
        signature: That of the program.
        kernels: One entry per call of a function of the library, in execution order as far as it is known.
    """

    module: Any
    weights: list[tuple[str, Array]]
    signature: Signature
    kernels: list[KernelCall]


def lower(program: Program, target: Target) -> Lowered:
    """Lower a program for a CPU target.

    Raises:
        UnsupportedError: Lists every operator that the backend cannot compile, with its node.
    """
    program = legalise(program)
    builder = relax.BlockBuilder()
    weights = Weights()
    emitter = Emitter(program.module, target, Sizes(_size_names(program)), builder, weights)
    emitter.use_regions(find_regions(program.graph, _is_anchor))
    with builder.function(_BODY, attrs={"relax.force_pure": True}):
        inputs, outputs = emitter.emit_graph()
        parameters = [*inputs, *weights.variables.values()]
        builder.emit_func_output(relax.Tuple(outputs), parameters)
    module = _fused(builder.get())
    kernels = [*emitter.kernel_calls]
    module = schedule_tail(module, target)
    module = _with_main(module, len(inputs))
    return Lowered(module, list(weights.arrays.items()), program.signature, kernels)


def _is_anchor(node: fx.Node) -> bool:
    """Whether a float32 kernel with an epilogue computes a call."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return False
    return convolution.is_kernel(node) or matmul.is_kernel(node)


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
            passes.FuseTIR(),
            passes.DeadCodeElimination([_BODY]),
        ]
    )(module)


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
