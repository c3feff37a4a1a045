"""Matrix products: packed kernels for constant weights, batched kernels for run-time tensors, exact integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from shave.backends.packing import Packing
from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.code_products import CodeProduct, factors
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter, number
from shave.backends.tvm.emit.epilogues import emit_epilogue
from shave.backends.tvm.emit.operands import Blocks, Operands, Rows, code_numbers
from shave.backends.tvm.emit.reduction import accumulator
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels import batch_dot, batch_matmul, matmul
from shave.backends.tvm.kernels.arithmetic import InputDtype
from shave.backends.tvm.kernels.base import ceil_div
from shave.backends.tvm.kernels.batch_dot import BatchDotShape
from shave.backends.tvm.kernels.batch_matmul import BatchMatmulShape
from shave.backends.tvm.kernels.epilogue import CodeRange, Epilogue
from shave.backends.tvm.kernels.matmul import MatmulShape
from shave.backends.tvm.kernels.parameters import Measured
from shave.backends.tvm.layout import Value, blocked_shape
from shave.backends.tvm.quantized import product_of
from shave.backends.tvm.sizes import Size, product, same
from shave.ir.ops import op_name

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_KERNEL_FLOATS = ("float32", "float16", "bfloat16")


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """(A, B, bias or addend) of a product operator; B of ``linear`` is its weight, [N, K]."""
    name = op_name(node)
    args = list(node.args)
    if name == "aten.linear":
        return cast(fx.Node, args[0]), cast(fx.Node, args[1]), cast("fx.Node | None", [*args, None][2])
    if name == "aten.addmm":
        return cast(fx.Node, args[1]), cast(fx.Node, args[2]), cast(fx.Node, args[0])
    return cast(fx.Node, args[0]), cast(fx.Node, args[1]), None


def is_kernel(node: fx.Node) -> bool:
    """Whether the packed kernel computes a product: constant B of rank 2, constant bias of rank 1."""
    if op_name(node) not in ("aten.linear", "aten.addmm", "aten.mm", "aten.matmul"):
        return False
    if any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return False
    a, b, bias = _operands(node)
    weights = b.op == "get_attr" or product_of(node) is not None
    if not weights or b.meta["val"].dim() != 2 or a.meta["val"].dim() < 1:
        return False
    if bias is not None and (bias.op != "get_attr" or bias.meta["val"].dim() != 1):
        return False
    inner = a.meta["val"].shape[-1]
    return a.meta["val"].dtype in _FLOATS and not isinstance(inner, torch.SymInt)


@emits("aten.linear", "aten.mm", "aten.matmul", "aten.bmm", "aten.addmm", "aten.mv", "aten.dot", "aten._int_mm")
def _matmul(emitter: Emitter, node: fx.Node) -> Any:
    if is_kernel(node):
        return _packed(emitter, node)
    a, b, bias = _operands(node)
    result = _unpacked(emitter, node, a, b)
    if bias is None:
        return emitter.reshape(result, emitter.shape(emitter.region(node).nodes[-1]))
    return _scaled_sum(emitter, node, result, bias)


def _unpacked(emitter: Emitter, node: fx.Node, a: fx.Node, b: fx.Node) -> Any:
    """The product of two tensors that arrive with the call, as :func:`batched` gives it."""
    if isinstance(region := emitter.region(node), CodeProduct):
        return _of_codes(emitter, region)
    source, transposed = (b, True) if op_name(node) == "aten.linear" else _untransposed(b)
    return batched(emitter, node, emitter.plain(a), emitter.plain(source), transposed)


def _of_codes(emitter: Emitter, region: CodeProduct) -> Any:
    """The product of two tensors of codes, as :func:`batched` gives it: floats, or codes where the region rounds."""
    node = region.nodes[0]
    given = factors(node)
    assert given is not None
    left, right = given
    source, transposed = (right.node, True) if op_name(node) == "aten.linear" else _untransposed(right.node)
    scale = np.float32(left.scale) * np.float32(right.scale) * np.float32(region.factor)
    epilogue, numbers = Epilogue(), []
    if (codes := region.codes) is not None:
        scale /= np.float32(codes.scale)
        made = CodeRange(codes.zero_point, codes.low, codes.high)
        epilogue, numbers = Epilogue((made.step,)), [code_numbers(emitter, made)]
    zeros = np.array([left.zero_point, right.zero_point], np.int32)
    inputs = [
        emitter.weights.add(f"{node.name}.zeros", zeros),
        emitter.weights.add(f"{node.name}.scale", np.array([scale], np.float32)),
        *numbers,
    ]

    def multiply(a: Any, b: Any, extents: Sequence[Size], transposed: bool) -> Any:
        shape = BatchDotShape(*_known(extents), transposed)
        result = (*extents[:2], extents[3])
        return emitter.call_kernel(batch_dot, shape, epilogue, [a, b, *inputs], result, region.nodes)

    return _aligned(emitter, node, emitter.plain(left.node), emitter.plain(source), transposed, multiply)


def _packed(emitter: Emitter, node: fx.Node) -> Any:
    a, b, bias = _operands(node)
    linear = op_name(node) == "aten.linear"
    extents = tuple(map(int, b.meta["val"].shape))
    integers = product_of(node)
    source = a if integers is None else integers.x.node
    have = emitter.shape(a)
    rows = product(have[:-1])
    inner, columns = extents[::-1] if linear else extents
    region = emitter.region(node)
    result = emitter.shape(region.nodes[-1])
    positions = cast(int, product(result[2:])) if region.channels_first else 0
    dtype: InputDtype = "float32" if integers is None else "uint8"
    measured: Measured = "nothing" if integers is None else integers.x.measured
    shape = MatmulShape(rows if isinstance(rows, int) else None, inner, columns, positions, dtype, measured)
    # Products with the same weights may cut them differently.
    name = f"{'linear' if linear else 'matmul'}.{matmul.depth(shape, emitter.target)}"
    left = emitter.reshape(emitter.plain(source), (rows, inner))
    scale = None
    packing = matmul.packing(shape, emitter.target)
    packing = Packing().transpose(1, 0).then(packing) if linear else packing
    if integers is None:
        inputs = [emitter.as_float32(node, left), emitter.packed(name, b, packing)]
    else:
        codes = cast(torch.Tensor, emitter.constant(integers.weights.node)).numpy()
        weight = codes.T if linear else codes
        held = f"{integers.weights.node.target}.{name}"
        corrections = matmul.corrections(weight, integers.x.zero_point, emitter.target)
        inputs = [
            left,
            emitter.integers(held, codes, matmul.pack(weight, shape, emitter.target), packing),
            emitter.weights.add(f"{node.name}.corrections", corrections),
        ]
        if measured != "nothing":
            inputs.append(emitter.parameters[integers.x.node])
        scale = np.broadcast_to(integers.weights.scales * np.float32(integers.x.scale), columns)
    stored: tuple[Size, ...] = (rows, columns)
    operands: Operands = Rows(emitter, rows, columns)
    if positions:
        stored = (result[0], ceil_div(columns, emitter.lanes), positions, emitter.lanes)
        operands = Blocks(emitter, columns, stored)
    epilogue, given = emit_epilogue(emitter, region, operands, columns, bias, scale)
    made = emitter.call_kernel(matmul, shape, epilogue, [*inputs, *given], stored, region.nodes)
    if region.codes is None:
        made = emitter.from_float32(node, made, emitter.dtype(node))
    if not positions:
        return emitter.reshape(made, (*have[:-1], columns))
    made = emitter.reshape(made, blocked_shape(result, emitter.lanes))
    return Value(result, emitter.dtype(region.nodes[-1]), blocked=made)


def _untransposed(node: fx.Node) -> tuple[fx.Node, bool]:
    """What a node swaps the last two axes of, and True; else the node and False."""
    source = _transpose_of(node)
    return (node, False) if source is None else (source, True)


def _transpose_of(node: fx.Node) -> fx.Node | None:
    """The tensor whose last two axes a node swaps; None if it does anything else."""
    if node.op != "call_function" or not isinstance(node.args[0], fx.Node):
        return None
    rank = node.meta["val"].dim()
    name = op_name(node)
    if name == "aten.t" and rank == 2:
        return node.args[0]
    if name == "aten.transpose" and {cast(int, d) % rank for d in node.args[1:3]} == {rank - 1, rank - 2}:
        return node.args[0]
    if name == "aten.permute":
        order = [d % rank for d in cast("list[int]", node.args[1])]
        return node.args[0] if order == [*range(rank - 2), rank - 1, rank - 2] else None
    return None


def _extents(variable: Any) -> list[Size]:
    return [int(s.value) if isinstance(s, tirx.IntImm) else s for s in variable.ty.shape.values]


def batched(emitter: Emitter, node: fx.Node, a: Any, b: Any, transposed: bool) -> Any:
    """``a @ b`` (``a @ b.mT`` if ``transposed``) of two variables by torch's rules for matmul; any dtype.

    The result has all leading extents in one: [batch, rows, columns]; reshape it.
    """

    def multiply(left: Any, right: Any, extents: Sequence[Size], transposed: bool) -> Any:
        result = (*extents[:2], extents[3])
        if str(a.ty.dtype) != str(b.ty.dtype) or str(a.ty.dtype) not in _KERNEL_FLOATS:
            return _expression(emitter, node, left, right, result, transposed)
        shape = BatchMatmulShape(*_known(extents), transposed)
        inputs = [emitter.as_float32(node, left), emitter.as_float32(node, right)]
        made = emitter.call_kernel(batch_matmul, shape, Epilogue(), inputs, result, (node,))
        return emitter.from_float32(node, made, emitter.dtype(node))

    return _aligned(emitter, node, a, b, transposed, multiply)


_Multiply = Callable[[Any, Any, "Sequence[Size]", bool], Any]
"""A [batch, rows, inner], B [batch, inner, columns], (batch, rows, inner, columns) and whether B is transposed."""


def _aligned(emitter: Emitter, node: fx.Node, a: Any, b: Any, transposed: bool, multiply: _Multiply) -> Any:
    """What ``multiply`` gives of two variables that are brought to equal batches."""
    a_shape, b_shape = _extents(a), _extents(b)
    if len(a_shape) == 1:
        a_shape = [1, *a_shape]
    if len(b_shape) == 1:
        b_shape, transposed = [1, *b_shape], True
    columns, inner = (b_shape[-2], b_shape[-1]) if transposed else (b_shape[-1], b_shape[-2])
    rows = a_shape[-2]
    lead = _broadcast(a_shape[:-2], b_shape[:-2])
    if len(b_shape) == 2 and len(a_shape) > 2:
        # One B for all: a single product with more rows.
        rows, lead = product(a_shape[:-1]), []
    batch = product(lead)
    left = _spread(emitter, node, emitter.reshape(a, a_shape), [*lead, rows, inner], len(lead))
    right = _spread(emitter, node, emitter.reshape(b, b_shape), [*lead, *b_shape[-2:]], len(lead))
    left = emitter.reshape(left, [batch, rows, inner])
    right = emitter.reshape(right, [batch, *b_shape[-2:]])
    return multiply(left, right, (batch, rows, inner, columns), transposed)


_Four = tuple["int | None", "int | None", "int | None", "int | None"]


def _known(extents: Sequence[Size]) -> _Four:
    """The extents of a product; None for those that only the call knows."""
    return cast(_Four, tuple(size if isinstance(size, int) else None for size in extents))


def _expression(emitter: Emitter, node: fx.Node, left: Any, right: Any, shape: Sequence[Size], transposed: bool) -> Any:
    """Integers (exact) and double precision."""
    dtype = emitter.dtype(node)
    work = accumulator(dtype)

    def compute(a: Any, b: Any, shape: Sequence[Size]) -> Any:
        k = te.reduce_axis((0, a.shape[2]), name="k")

        def element(n: Any, i: Any, j: Any) -> Any:
            other = b(n, j, k) if transposed else b(n, k, j)
            return te.sum(scalar.cast(a(n, i, k), work) * scalar.cast(other, work), axis=k)

        return te.compute(shape, element, name="matmul")

    return emitter.te(node, compute, left, right, shape=list(shape))


def _broadcast(a: Sequence[Size], b: Sequence[Size]) -> list[Size]:
    length = max(len(a), len(b))
    padded = zip([1] * (length - len(a)) + list(a), [1] * (length - len(b)) + list(b), strict=True)
    return [q if isinstance(p, int) and p == 1 else p for p, q in padded]


def _spread(emitter: Emitter, node: fx.Node, x: Any, shape: Sequence[Size], lead: int) -> Any:
    """Repeat leading axes of extent 1."""
    have = _extents(x)
    own = [1] * (len(shape) - len(have)) + have if lead else have
    if not lead or all(map(same, own[:lead], shape[:lead])):
        return x

    def compute(x: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            last = i[len(i) - len(have) :]
            return x(*[0 if isinstance(s, int) and s == 1 else k for s, k in zip(have, last, strict=True)])

        return te.compute(shape, element, name="repeat")

    return emitter.te(node, compute, x, shape=list(shape))


def _scaled_sum(emitter: Emitter, node: fx.Node, made: Any, addend: fx.Node) -> Any:
    """Give beta * addend + alpha * product."""
    alpha, beta = (node.kwargs.get(name, 1) for name in ("alpha", "beta"))
    shape, dtype = emitter.result(node)
    have = emitter.shape(addend)

    def compute(x: Any, y: Any, shape: Sequence[Size]) -> Any:
        def element(*i: Any) -> Any:
            last = i[len(i) - len(have) :]
            other = y(*[0 if isinstance(s, int) and s == 1 else k for s, k in zip(have, last, strict=True)])
            value = x(*i) if alpha == 1 else number(alpha, dtype) * x(*i)
            return value + (other if beta == 1 else number(beta, dtype) * other)

        return te.compute(shape, element, name="sum")

    return emitter.te(node, compute, emitter.reshape(made, shape), emitter.plain(addend), shape=shape)


@emits("aten.baddbmm")
def _baddbmm(emitter: Emitter, node: fx.Node) -> Any:
    addend, a, b = (cast(fx.Node, n) for n in node.args[:3])
    return _scaled_sum(emitter, node, _unpacked(emitter, node, a, b), addend)
