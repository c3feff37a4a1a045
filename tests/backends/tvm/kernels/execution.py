"""Compile and call kernels: random inputs in, what the kernel and its NumPy reference say out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from shave.backends import host
from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.adapter import Expr, IRBuilder, PrimFunc, T, tvm, tvm_target
from shave.backends.tvm.kernels import batch_matmul, conv, depthwise, matmul
from shave.backends.tvm.kernels.base import block_channels, pad_channels, root, span, tensor, unblock_channels
from shave.backends.tvm.kernels.epilogue import Bias, CodeRange, Epilogue, PerElement, Quantize, Scale
from shave.backends.tvm.kernels.zero_point import corrections

Array = np.ndarray[Any, Any]

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def targets(names: Sequence[str] = ("x86-64-v4", "x86-64-v3")) -> list[Any]:
    """By default 16 lanes with 32 registers and 8 lanes with 16, as parameters of a test."""
    parameters = []
    for name in names:
        target = resolve(name)
        missing = target.features - host.features()
        skip = pytest.mark.skipif(bool(missing), reason=f"this machine lacks {', '.join(sorted(missing))}")
        parameters.append(pytest.param(target, id=name, marks=skip))
    return parameters


each_target = pytest.mark.parametrize("target", targets())
each_integer_target = pytest.mark.parametrize("target", targets(("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3")))
"""With a dot product of four, and without on 16 and 8 lanes."""


def compiled(function: PrimFunc, target: Target) -> Callable[..., None]:
    """The machine code of a kernel, as a function on NumPy arrays whose last argument is written."""
    executable = tvm.compile(function, tvm_target(target))
    name = str(function.attrs["global_symbol"])

    def call(*arrays: Array) -> None:
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]
        executable[name](*tensors)
        arrays[-1][...] = tensors[-1].numpy()

    return call


def elementwise(expression: Callable[[Expr], Expr], x: Array, lanes: int, target: Target) -> Array:
    """Apply a function of vector expressions to all of ``x``, whose size is a multiple of ``lanes``."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("elementwise")
        source, result = tensor("x", (x.size,)), tensor("y", (x.size,))
        with root(), T.serial(0, x.size // lanes) as i:
            value = expression(source[span(i * lanes, lanes)])
            T.buffer_store(result, value, [span(i * lanes, lanes)])
    y = np.empty_like(x)
    compiled(builder.get(), target)(x, y)
    return y


def random(*shape: int) -> Array:
    """Normal values; the same for the same shape."""
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def unwritten(*shape: int | None) -> Array:
    """An output that shows which elements a kernel leaves alone."""
    return np.full([size or 0 for size in shape], np.nan, np.float32)


def blocked_with_poison(x: Array, lanes: int) -> Array:
    """Blocked, with NaN in the lanes that hold no channel: no kernel may read them."""
    held = block_channels(np.ones_like(x), lanes) == 1
    return np.where(held, block_channels(x, lanes), np.nan).astype(np.float32)


def codes(*shape: int) -> Array:
    """Any codes of 8 bits; the same for the same shape."""
    return np.random.default_rng(shape).integers(0, 256, shape).astype(np.uint8)


def integer_weights(*shape: int) -> Array:
    """Any weights of 8 bits; the same for the same shape."""
    return np.random.default_rng(shape).integers(-128, 128, shape).astype(np.int8)


def blocked_codes(x: Array, lanes: int) -> Array:
    """Blocked, with large codes in the lanes that hold no channel."""
    return np.where(block_channels(np.ones_like(x), lanes) == 1, block_channels(x, lanes), 211).astype(np.uint8)


def quads(x: Array) -> Array:
    """[N, up to 4, *spatial] as int32 [N, *spatial], with large codes in the place of missing channels."""
    padded = np.pad(x, ((0, 0), (0, 4 - x.shape[1]), *((0, 0),) * (x.ndim - 2)), constant_values=211)
    return np.ascontiguousarray(np.moveaxis(padded, 1, -1)).view("<i4")[..., 0]


def assert_same_codes(found: Array, exact: Array, result: CodeRange) -> None:
    """Compare codes with what the unrounded values are rounded to; at a tie either neighbour will do."""
    expected = result.reference(exact)
    tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-3
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max(initial=0) <= 1
    assert not difference[~tie].any()
    assert tie.mean() < 0.02, "a test of ties alone"


def assert_same(found: Array, exact: Array, epilogue: Epilogue, result: CodeRange) -> None:
    """Compare a result with that of the steps of an epilogue but the last, if that one quantizes."""
    if epilogue.quantize is not None:
        assert_same_codes(found, exact, result)
    else:
        np.testing.assert_allclose(found, exact, **TOLERANCE)


CODES = CodeRange(3)


def blocked_operands(
    epilogue: Epilogue, result: Sequence[int], lanes: int, codes_of_result: CodeRange = CODES
) -> tuple[list[Array], list[Array]]:
    """Operands that broadcast to a plain result [N, C, *spatial], and the same as blocked kernels read them."""
    plain: list[Array] = []
    packed: list[Array] = []
    n, channels, *spatial = result
    for number, step in enumerate(epilogue.operands):
        if isinstance(step, Quantize):
            packed.append(codes_of_result.numbers)
            continue
        if isinstance(step, PerElement):
            plain.append((random if step.dtype == "float32" else codes)(*result, number + 1)[..., 0])
            packed.append(block_channels(plain[-1], lanes))
            continue
        vectors = random(n if step.per_image else 1, channels, number + 1)[..., 0]
        plain.append(vectors.reshape(*vectors.shape, *(1,) * len(spatial)))
        blocks = np.stack([pad_channels(vector, lanes) for vector in vectors])
        packed.append(blocks if step.per_image else blocks[0])
    return plain, packed


def row_operands(epilogue: Epilogue, result: Sequence[int]) -> list[Array]:
    """Operands of a kernel with a result of rows."""
    return [
        CODES.numbers
        if isinstance(step, Quantize)
        else (codes if getattr(step, "dtype", "float32") == "uint8" else random)(
            *(result if isinstance(step, PerElement) else result[-1:]), number + 1
        )[..., 0]
        for number, step in enumerate(epilogue.operands)
    ]


REQUANTIZE = Epilogue((Scale(), Bias(), Quantize()))


def check_integer_conv(
    family: ModuleType,
    shape: conv.ConvShape,
    target: Target,
    epilogue: Epilogue = REQUANTIZE,
    schedule: Any = None,
    batch: int | None = None,
    zero_point: int = 131,
    result: CodeRange = CODES,
) -> None:
    """The same as :func:`check_conv` for codes; the first step of the epilogue scales the sums."""
    schedule = schedule or family.default(shape, target)
    n = batch or shape.batch or 1
    x, weight = codes(n, shape.in_channels, *shape.spatial), integer_weights(*shape.weight_shape)
    plain, packed = blocked_operands(epilogue, (n, shape.out_channels, *shape.out_spatial), target.lanes, result)
    # A sum of n products of random bytes is about 5000 times the root of n.
    for operands in (plain, packed):
        operands[0] = (operands[0] / np.sqrt(np.prod(shape.weight_shape[1:])) / 100).astype(np.float32)
    y = np.full([size or n for size in conv.output_shape(shape, target)], 0, epilogue.dtype)
    start = corrections(weight, zero_point, shape, target)
    kernel = compiled(family.build(shape, schedule, target, epilogue), target)
    source = quads(x) if shape.plain_input else blocked_codes(x, target.lanes)
    kernel(source, family.pack(weight, shape, target), start, *packed, y)
    exact = family.reference(x.astype(np.int32) - zero_point, weight, shape, epilogue, plain)
    assert_same(unblock_channels(y, shape.out_channels), exact, epilogue, result)


def check_integer_matmul(
    shape: matmul.MatmulShape,
    target: Target,
    epilogue: Epilogue = REQUANTIZE,
    schedule: matmul.MatmulSchedule | None = None,
    rows: Sequence[int] = (),
    zero_point: int = 131,
) -> None:
    """The same as :func:`check_matmul` for codes; the first step of the epilogue scales the sums."""
    schedule = schedule or matmul.default(shape, target)
    kernel = compiled(matmul.build(shape, schedule, target, epilogue), target)
    weight = integer_weights(shape.inner, shape.columns)
    start = matmul.corrections(weight, zero_point, target)
    for m in rows or [shape.rows or 1]:
        a = codes(m, shape.inner)
        operands = row_operands(epilogue, (m, shape.columns))
        operands[0] = (operands[0] / np.sqrt(shape.inner) / 100).astype(np.float32)
        c = np.zeros((m, shape.columns), epilogue.dtype)
        kernel(a, matmul.pack(weight, shape, target), start, *operands, c)
        exact = matmul.reference(a.astype(np.int32) - zero_point, weight, epilogue, operands)
        assert_same(c, exact, epilogue, CODES)


def check_measured_matmul(
    shape: matmul.MatmulShape,
    target: Target,
    epilogue: Epilogue = REQUANTIZE,
    schedule: matmul.MatmulSchedule | None = None,
    rows: Sequence[int] = (),
) -> None:
    """The same where scale and zero point of the codes come with the call, against products of NumPy's integers."""
    schedule = schedule or matmul.default(shape, target)
    kernel = compiled(matmul.build(shape, schedule, target, epilogue), target)
    weight = integer_weights(shape.inner, shape.columns)
    for m in rows or [shape.rows or 1]:
        a = codes(m, shape.inner)
        count = m if shape.measured == "row" else 1
        scale = (abs(random(count)) + 0.5).astype(np.float32)
        zero = np.random.default_rng(m).integers(0, 256, count)
        operands = row_operands(epilogue, (m, shape.columns))
        operands[0] = (operands[0] / np.sqrt(shape.inner) / 100).astype(np.float32)
        c = np.zeros((m, shape.columns), epilogue.dtype)
        parameters = np.stack([scale, zero, np.full(count, np.nan)], axis=1).astype(np.float32)
        kernel(a, matmul.pack(weight, shape, target), matmul.corrections(weight, 1, target), parameters, *operands, c)
        sums = (a.astype(np.int64) - zero[:, None]) @ weight.astype(np.int64)
        assert_same(c, epilogue.reference(sums * scale[:, None].astype(np.float64), operands), epilogue, CODES)


def check_conv(
    family: ModuleType,
    shape: conv.ConvShape,
    target: Target,
    epilogue: Epilogue | None = None,
    schedule: Any = None,
    batch: int | None = None,
) -> None:
    """Build, call and compare a kernel of ``conv`` or ``depthwise`` with its reference."""
    assert family in (conv, depthwise)
    epilogue = epilogue or Epilogue()
    schedule = schedule or family.default(shape, target)
    n = batch or shape.batch or 1
    x = random(n, shape.in_channels, *shape.spatial)
    fan_in = np.prod(shape.weight_shape[1:])
    weight = random(*shape.weight_shape) / np.float32(np.sqrt(fan_in))
    plain, packed = blocked_operands(epilogue, (n, shape.out_channels, *shape.out_spatial), target.lanes)
    y = unwritten(n, *conv.output_shape(shape, target)[1:])
    kernel = compiled(family.build(shape, schedule, target, epilogue), target)
    source = x if shape.plain_input else blocked_with_poison(x, target.lanes)
    kernel(source, family.pack(weight, shape, target), *packed, y)
    expected = family.reference(x, weight, shape, epilogue, plain)
    np.testing.assert_allclose(unblock_channels(y, shape.out_channels), expected, **TOLERANCE)


def check_matmul(
    shape: matmul.MatmulShape,
    target: Target,
    epilogue: Epilogue | None = None,
    schedule: matmul.MatmulSchedule | None = None,
    rows: Sequence[int] = (),
) -> None:
    """Build a ``matmul`` kernel once, call it for each number of rows and compare with the reference."""
    epilogue = epilogue or Epilogue()
    schedule = schedule or matmul.default(shape, target)
    kernel = compiled(matmul.build(shape, schedule, target, epilogue), target)
    weight = random(shape.inner, shape.columns) / np.float32(np.sqrt(shape.inner))
    for m in rows or [shape.rows or 1]:
        a = random(m, shape.inner)
        operands = row_operands(epilogue, (m, shape.columns))
        c = unwritten(m, shape.columns)
        if not shape.positions:
            kernel(a, matmul.pack(weight, shape, target), *operands, c)
            np.testing.assert_allclose(c, matmul.reference(a, weight, epilogue, operands), **TOLERANCE)
            continue
        images = (m // shape.positions, shape.columns, shape.positions)
        operands, packed = blocked_operands(epilogue, images, target.lanes)
        c = unwritten(images[0], -(-shape.columns // target.lanes), shape.positions, target.lanes)
        kernel(a, matmul.pack(weight, shape, target), *packed, c)
        product = matmul.reference(a, weight, Epilogue(), ()).reshape(images[0], shape.positions, -1).swapaxes(1, 2)
        np.testing.assert_allclose(
            unblock_channels(c, shape.columns), epilogue.reference(product, operands), **TOLERANCE
        )


def check_batch_matmul(
    shape: batch_matmul.BatchMatmulShape,
    target: Target,
    epilogue: Epilogue | None = None,
    schedule: batch_matmul.BatchMatmulSchedule | None = None,
    extents: Sequence[tuple[int, int, int, int]] = (),
) -> None:
    """Build a ``batch_matmul`` kernel once, call it for each (batch, rows, inner, columns) and compare."""
    epilogue = epilogue or Epilogue()
    schedule = schedule or batch_matmul.default(shape, target)
    kernel = compiled(batch_matmul.build(shape, schedule, target, epilogue), target)
    known = (shape.batch or 1, shape.rows or 1, shape.inner or 1, shape.columns or 1)
    for batch, m, k, n in extents or [known]:
        a = random(batch, m, k)
        b = random(batch, n, k) if shape.transposed else random(batch, k, n)
        b /= np.float32(np.sqrt(k))
        operands = row_operands(epilogue, (batch, m, n))
        c = unwritten(batch, m, n)
        kernel(a, b, *operands, c)
        np.testing.assert_allclose(c, batch_matmul.reference(a, b, shape, epilogue, operands), **TOLERANCE)
