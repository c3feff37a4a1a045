"""Operators of the tail, each with inputs and what NumPy computes for them in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shave.backends.tvm.adapter import relax

R = relax.op
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """``compute`` of Relax and ``reference`` of NumPy on inputs of these shapes and dtypes."""

    inputs: tuple[tuple[tuple[int, ...], str], ...]
    compute: Callable[..., Any]
    reference: Callable[..., Any]
    rules: str = ""
    tolerance: float = 2e-6


def f32(*shape: int) -> tuple[tuple[int, ...], str]:
    return shape, "float32"


def of(dtype: str, *shape: int) -> tuple[tuple[int, ...], str]:
    return shape, dtype


def case(*inputs: Any, to: Callable[..., Any], like: Callable[..., Any], **options: Any) -> Case:
    return Case(inputs, to, like, **options)


def softmax(x: Array, axis: int) -> Array:
    power = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(power / power.sum(axis, keepdims=True))


def layer_norm(x: Array, scale: Array, shift: Array, epsilon: float = 1e-5) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + shift)


def group_norm(x: Array, scale: Array, shift: Array, groups: int) -> Array:
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdims=True)
    normal = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).reshape(x.shape)
    return np.asarray(normal * scale[:, None, None] + shift[:, None, None])


def gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))))


def windows(x: Array, kernel: int, stride: int, pad: int, fill: float) -> Array:
    """Windows over axes 2 and 3, as two trailing axes."""
    widths = [(0, 0), (0, 0), (pad, pad), (pad, pad)] + [(0, 0)] * (x.ndim - 4)
    padded = np.pad(x, widths, constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    return np.asarray(view[:, :, ::stride, ::stride])


def convolution(x: Array, weight: Array, groups: int = 1) -> Array:
    """Stride 1, kernel 3, padding 1."""
    n, c, h, w = x.shape
    view = windows(x, 3, 1, 1, 0).reshape(n, groups, c // groups, h, w, 3, 3)
    split = weight.reshape(groups, -1, c // groups, 3, 3)
    return np.einsum("ngchwij,gocij->ngohw", view, split).reshape(n, -1, h, w)


def adaptive(x: Array, size: int) -> Array:
    def bins(extent: int) -> list[slice]:
        return [slice(i * extent // size, -(-(i + 1) * extent // size)) for i in range(size)]

    rows = [[x[..., r, c].mean((-1, -2)) for c in bins(x.shape[-1])] for r in bins(x.shape[-2])]
    return np.moveaxis(np.asarray(rows), (0, 1), (-2, -1))


def slices(x: Array) -> Array:
    return x[:, 2:29:3]


def quantized(x: Array) -> Array:
    return np.asarray(np.clip(np.round(x.astype("float32") / np.float32(0.05)) + 3, -128, 127))


def resized(x: Array) -> Array:
    """Bilinear, twice as large, half-pixel centres, edges repeated."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, size - 1)
        shape = [1] * x.ndim
        shape[axis] = -1
        fraction = (place - low).reshape(shape)
        x = np.take(x, low, axis) * (1 - fraction) + np.take(x, high, axis) * fraction
    return x


CASES: dict[str, Case] = {}

for size in (1, 7, 17, 100):
    CASES |= {
        f"add-relu-{size}": case(
            f32(3, size), f32(3, size), to=lambda x, y: R.nn.relu(R.add(x, y)), like=lambda x, y: np.maximum(x + y, 0)
        ),
        f"gelu-{size}": case(f32(2, size), to=R.nn.gelu, like=gelu),
        f"softmax-{size}": case(f32(2, 3, size), to=lambda x: R.nn.softmax(x, -1), like=lambda x: softmax(x, -1)),
        f"layer-norm-{size}": case(
            f32(5, size), f32(size), f32(size), to=lambda x, a, b: R.nn.layer_norm(x, a, b, [-1]), like=layer_norm
        ),
        f"sum-last-{size}": case(f32(3, size), to=lambda x: R.sum(x, [1]), like=lambda x: x.sum(1)),
        f"max-first-{size}": case(f32(9, size), to=lambda x: R.max(x, [0]), like=lambda x: x.max(0)),
        f"transpose-{size}": case(
            f32(2, 33, size), to=lambda x: R.permute_dims(x, [0, 2, 1]), like=lambda x: x.swapaxes(1, 2)
        ),
        f"argmax-{size}": case(f32(4, size), to=lambda x: R.argmax(x, 1), like=lambda x: x.argmax(1)),
        f"concat-last-{size}": case(
            f32(4, size), f32(4, 9), to=lambda x, y: R.concat([x, y], 1), like=lambda x, y: np.concatenate([x, y], 1)
        ),
        f"matmul-{size}": case(f32(5, 20), f32(20, size), to=R.matmul, like=lambda a, b: a @ b),
    }

CASES |= {
    # elementwise, broadcasting, dtypes
    "broadcast": case(f32(4, 1, 17), f32(3, 1), to=R.add, like=lambda x, y: x + y),
    "silu-twice": case(
        f32(3, 19),
        f32(3, 19),
        to=lambda x, y: R.nn.silu(R.nn.silu(R.add(R.multiply(x, y), y))),
        like=lambda x, y: (lambda t: t / (1 + np.exp(-t)))((lambda t: t / (1 + np.exp(-t)))(x * y + y)),
    ),
    "where": case(of("bool", 4, 17), f32(4, 17), f32(4, 17), to=R.where, like=np.where),
    "compare": case(f32(4, 17), f32(4, 17), to=R.less, like=np.less),
    "int8-to-float": case(
        of("int8", 4, 100), to=lambda x: R.astype(R.add(x, x), "float32"), like=lambda x: (2 * x).astype("int8")
    ),
    "int64": case(of("int64", 100), to=lambda x: R.multiply(x, x), like=lambda x: x * x),
    "quantize": case(
        f32(4, 100),
        to=lambda x: R.quantize(x, relax.const(0.05, "float32"), relax.const(3, "int8"), axis=-1, out_dtype="int8"),
        like=quantized,
    ),
    "float16-gelu": case(of("float16", 4, 100), to=R.nn.gelu, like=gelu, tolerance=2e-3),
    "float16-softmax": case(of("float16", 4, 100), to=R.nn.softmax, like=lambda x: softmax(x, -1), tolerance=2e-3),
    "float64-tanh": case(of("float64", 4, 33), to=R.tanh, like=np.tanh, tolerance=1e-15),
    "power": case(f32(50), to=lambda x: R.power(x, relax.const(2.0, "float32")), like=lambda x: x**2),
    # movement
    "pad": case(
        f32(2, 3, 17, 19),
        to=lambda x: R.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 4]),
        like=lambda x: np.pad(x, ((0, 0), (0, 0), (1, 2), (3, 4))),
    ),
    "concat-middle": case(
        f32(2, 3, 17),
        f32(2, 4, 17),
        to=lambda x, y: R.nn.relu(R.concat([x, y], 1)),
        like=lambda x, y: np.maximum(np.concatenate([x, y], 1), 0),
    ),
    "slice": case(f32(2, 30, 17), to=lambda x: R.strided_slice(x, [1], [2], [29], [3]), like=slices),
    "flip": case(f32(17, 19), to=lambda x: R.flip(x, 1), like=lambda x: x[:, ::-1]),
    "tile": case(f32(3, 5), to=lambda x: R.tile(x, (2, 3)), like=lambda x: np.tile(x, (2, 3))),
    "repeat": case(f32(3, 5), to=lambda x: R.repeat(x, 3, 1), like=lambda x: np.repeat(x, 3, 1)),
    "tril": case(f32(17, 19), to=R.tril, like=np.tril),
    "heads": case(
        f32(33, 48),
        to=lambda x: R.permute_dims(R.reshape(x, (33, 3, 16)), [1, 0, 2]),
        like=lambda x: x.reshape(33, 3, 16).transpose(1, 0, 2),
    ),
    "channels-last": case(
        f32(2, 20, 7, 9),
        to=lambda x: R.nn.relu(R.permute_dims(x, [0, 2, 3, 1])),
        like=lambda x: np.maximum(x.transpose(0, 2, 3, 1), 0),
    ),
    "transpose-int8": case(of("int8", 40, 50), to=R.permute_dims, like=lambda x: x.T),
    "take": case(f32(50, 64), of("int64", 3, 7), to=lambda x, i: R.take(x, i, 0), like=lambda x, i: x[i]),
    "gather": case(
        f32(4, 100),
        of("int64", 2, 100),
        to=lambda x, i: R.gather_elements(x, i, 0),
        like=lambda x, i: np.take_along_axis(x, i, 0),
    ),
    # reductions and what is built of them
    "mean-middle": case(f32(4, 30, 20), to=lambda x: R.mean(x, [1]), like=lambda x: x.mean(1)),
    "mean-outer-inner": case(
        f32(4, 30, 20), to=lambda x: R.mean(x, [0, 2], keepdims=True), like=lambda x: x.mean((0, 2), keepdims=True)
    ),
    "sum-all": case(f32(40, 10, 7), to=R.sum, like=np.sum, tolerance=2e-5),
    "product": case(f32(4, 23), to=lambda x: R.prod(x, [1]), like=lambda x: x.prod(1)),
    "variance": case(f32(4, 100), to=lambda x: R.variance(x, [1]), like=lambda x: x.var(1)),
    "argmin-first": case(f32(40, 30), to=lambda x: R.argmin(x, 0), like=lambda x: x.argmin(0)),
    "softmax-middle": case(f32(3, 17, 20), to=lambda x: R.nn.softmax(x, 1), like=lambda x: softmax(x, 1)),
    "log-softmax": case(f32(3, 131), to=lambda x: R.nn.log_softmax(x, -1), like=lambda x: np.log(softmax(x, -1))),
    "rms-norm": case(
        f32(4, 100),
        f32(100),
        to=lambda x, a: R.nn.rms_norm(x, a, [-1]),
        like=lambda x, a: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * a,
    ),
    "group-norm": case(
        f32(2, 8, 5, 7),
        f32(8),
        f32(8),
        to=lambda x, a, b: R.nn.group_norm(x, a, b, 4, 1, [2, 3]),
        like=lambda x, a, b: group_norm(x, a, b, 4),
        tolerance=5e-6,
    ),
    "add-layer-norm": case(
        f32(5, 100),
        f32(5, 100),
        f32(100),
        f32(100),
        to=lambda x, y, a, b: R.nn.layer_norm(R.add(x, y), a, b, [-1]),
        like=lambda x, y, a, b: layer_norm(x + y, a, b),
    ),
    "max-pool": case(
        f32(1, 3, 28, 27),
        to=lambda x: R.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1)),
        like=lambda x: windows(x, 3, 2, 1, -np.inf).max((-1, -2)),
    ),
    "max-pool-blocked": case(
        f32(1, 2, 11, 13, 16),
        to=lambda x: R.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1), layout="NCHW16c"),
        like=lambda x: windows(x, 3, 2, 1, -np.inf).max((-1, -2)),
    ),
    "average-pool": case(
        f32(1, 3, 28, 27),
        to=lambda x: R.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1), count_include_pad=True),
        like=lambda x: windows(x, 3, 2, 1, 0).mean((-1, -2)),
    ),
    "global-average": case(
        f32(1, 5, 7, 7), to=lambda x: R.nn.adaptive_avg_pool2d(x, (1, 1)), like=lambda x: x.mean((2, 3), keepdims=True)
    ),
    "uneven-average": case(
        f32(1, 5, 10, 11), to=lambda x: R.nn.adaptive_avg_pool2d(x, (3, 3)), like=lambda x: adaptive(x, 3)
    ),
    "bilinear": case(
        f32(1, 3, 8, 9),
        to=lambda x: R.image.resize2d(x, relax.ShapeExpr([16, 18]), layout="NCHW", method="linear"),
        like=resized,
    ),
    # the fallbacks of kernels
    "batch-matmul": case(f32(3, 17, 20), f32(3, 20, 33), to=R.matmul, like=lambda a, b: a @ b),
    "grouped-conv": case(
        f32(1, 6, 9, 10),
        f32(9, 2, 3, 3),
        to=lambda x, w: R.nn.conv2d(x, w, padding=1, groups=3),
        like=lambda x, w: convolution(x, w, 3),
    ),
    "int8-conv": case(
        of("int8", 1, 6, 9, 10),
        of("int8", 9, 6, 3, 3),
        to=lambda x, w: R.nn.conv2d(x, w, padding=1, out_dtype="int32"),
        like=convolution,
    ),
}
