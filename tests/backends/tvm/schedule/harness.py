"""Relax expressions to PrimFuncs, to scheduled PrimFuncs, to results; nothing here knows how the schedule works."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import relax, tirx, tvm, tvm_target
from shave.backends.tvm.schedule.tail import schedule_tail

Shape = Sequence[Any]


def x86(cores: int = 1, cpu: str = "x86-64-v3") -> Target:
    """A target; the default one generates code that any machine of the last ten years runs."""
    wide = cpu != "x86-64-v3"
    return Target(
        name=cpu,
        kind="x86",
        cpu=cpu,
        triple="x86_64-unknown-linux-gnu",
        features=frozenset(),
        vector_bytes=64 if wide else 32,
        vector_registers=32 if wide else 16,
        int8_dot="none",
        l1_bytes=32 << 10,
        l2_bytes=1 << 20,
        cores=cores,
    )


def fused(inputs: Sequence[tuple[Shape, str]], compute: Callable[..., Any]) -> Any:
    """What legalising and fusing an expression of Relax yields."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, (shape, dtype) in enumerate(inputs)]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(compute(*variables))
        builder.emit_func_output(result)
    passes = relax.transform
    return tvm.transform.Sequential(
        [passes.LegalizeOps(), passes.AnnotateTIROpPattern(), passes.FuseOps(), passes.FuseTIR()]
    )(builder.get())


def functions(module: Any) -> dict[str, Any]:
    """The PrimFuncs of a module by name."""
    return {name.name_hint: f for name, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}


def compiled(module: Any, target: Target) -> Callable[..., list[np.ndarray[Any, Any]]]:
    """Build a scheduled module; call it with arrays."""
    passes = relax.transform
    pipeline = tvm.transform.Sequential(
        [
            passes.RewriteDataflowReshape(),
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.ComputePrimValue(),
            passes.VMShapeLower(),
            passes.AttachGlobalSymbol(),
        ]
    )
    executable = relax.build(module, tvm_target(target), relax_pipeline=pipeline)
    machine = relax.VirtualMachine(executable, tvm.cpu())

    def run(*arrays: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        result = machine["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays])
        return [r.numpy() for r in result] if isinstance(result, (list, tuple, tvm.ir.Array)) else [result.numpy()]

    return run


def llvm(module: Any, target: Target) -> str:
    """LLVM's text of the one PrimFunc of a module, after its own optimisations."""
    (function,) = functions(module).values()
    built = tvm.compile(function.with_attr("global_symbol", "main"), tvm_target(target))
    return str(built.mod.inspect_source("ll"))


def scheduled(inputs: Sequence[tuple[Shape, str]], compute: Callable[..., Any], target: Target) -> Any:
    """``fused`` and then scheduled."""
    return schedule_tail(fused(inputs, compute), target)


def sample(shape: Sequence[int], dtype: str, seed: int) -> np.ndarray[Any, Any]:
    """Values of a dtype that exercise an operator: both signs, small integers for indices."""
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return generator.random(shape) > 0.5
    if dtype.startswith("float"):
        return generator.standard_normal(shape).astype(dtype)
    low, high = (0, 3) if dtype in ("int64", "uint8") else (-100, 100)
    return generator.integers(low, high, shape).astype(dtype)
