"""Calls of operators with inputs: what the compiled code must compute as torch does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers the operators)
import torch.nn.functional as F  # noqa: N812

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Case:
    """One call; ``weights`` are constants of the program, ``inputs`` come with the call."""

    name: str
    call: Callable[..., Any]
    inputs: tuple[torch.Tensor, ...]
    weights: tuple[torch.Tensor, ...] = ()
    tolerance: float = 1e-5


_GENERATOR = torch.Generator().manual_seed(0)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=_GENERATOR).to(dtype)


def positive(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=_GENERATOR) + 0.1


def inside(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=_GENERATOR) * 1.8 - 0.9


def integers(*shape: int, low: int = -5, high: int = 6, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=_GENERATOR).to(dtype)


def booleans(*shape: int) -> torch.Tensor:
    return integers(*shape, low=0, high=2) > 0


SPECIAL = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -0.5, -1.5, float("inf"), -float("inf"), float("nan"), 3.7]
)


def _elementwise() -> list[Case]:
    x, y = floats(3, 5, 7), floats(3, 5, 7)
    i, j = integers(4, 9), integers(4, 9, low=1)
    cases = [
        Case(name, getattr(torch, name), (x,))
        for name in "abs neg exp tanh sigmoid sin cos floor ceil trunc round sign square erf expm1 exp2 sinh cosh tan atan "
        "asinh erfc frac isnan isfinite isinf logical_not deg2rad rad2deg positive signbit".split()
    ]
    cases += [
        Case(name, getattr(torch, name), (positive(4, 17),))
        for name in "log log2 log10 log1p sqrt rsqrt reciprocal".split()
    ]
    cases += [Case(name, getattr(torch, name), (inside(4, 17),)) for name in "asin acos atanh logit".split()]
    cases += [Case("acosh", torch.acosh, (positive(20) + 1,))]
    for name in "add sub mul div maximum minimum remainder fmod atan2 eq ne lt le gt ge fmax fmin copysign hypot logaddexp".split():
        cases.append(Case(f"{name} broadcast", getattr(torch, name), (x, floats(5, 1))))
    for (
        name
    ) in "add sub mul div maximum minimum remainder fmod floor_divide eq lt bitwise_and bitwise_or bitwise_xor".split():
        cases.append(Case(f"{name} int", getattr(torch, name), (i, j)))
    for name in (
        "relu relu6 silu gelu mish softplus elu celu selu hardsigmoid hardswish leaky_relu softsign tanhshrink "
        "hardshrink softshrink logsigmoid hardtanh".split()
    ):
        cases.append(Case(name, getattr(F, name), (x * 3,)))
    special = SPECIAL.clone()
    for name in "relu sign round floor abs isnan isinf isfinite nan_to_num sigmoid tanh exp".split():
        cases.append(Case(f"{name} special", getattr(torch, name), (special,)))
    cases += [
        Case("maximum special", torch.maximum, (special, special.flip(0))),
        Case("clamp special", lambda x: torch.clamp(x, -1, 1), (special,)),
        Case("gelu tanh", lambda x: F.gelu(x, approximate="tanh"), (x,)),
        Case("add alpha", lambda x, y: torch.add(x, y, alpha=2), (x, y)),
        Case("add scalar", lambda x: x + 2, (i,)),
        Case("add mixed", lambda x, y: x + y, (i, floats(4, 9))),
        Case("int scalar float", lambda x: x * 1.5, (i,)),
        Case("int true divide", lambda x: x / 2, (i,)),
        Case("div floor", lambda x, y: torch.div(x, y, rounding_mode="floor"), (x, y)),
        Case("div trunc", lambda x, y: torch.div(x, y, rounding_mode="trunc"), (i, -j)),
        Case("rsub", lambda x: 3 - x, (x,)),
        Case("pow 2", lambda x: x**2, (x,)),
        Case("pow 3.5", lambda x: x**3.5, (positive(7),), tolerance=1e-5),
        Case("pow -0.5", lambda x: x**-0.5, (positive(7),)),
        Case("pow tensor", torch.pow, (positive(5), floats(5))),
        Case("pow int", lambda x: x**3, (i,)),
        Case("pow scalar base", lambda x: 2**x, (floats(9),)),
        Case("clamp", lambda x: x.clamp(-0.5, 0.7), (x,)),
        Case("clamp one side", lambda x: x.clamp(max=0.1), (x,)),
        Case("clamp tensors", torch.clamp, (x, floats(1, 7) - 1, floats(5, 1) + 1)),
        Case("addcmul", lambda a, b, c: torch.addcmul(a, b, c, value=0.5), (x, y, floats(7))),
        Case("addcdiv", lambda a, b, c: torch.addcdiv(a, b, c, value=0.5), (x, y, positive(7))),
        Case("lerp", lambda a, b: torch.lerp(a, b, 0.3), (x, y)),
        Case("where", torch.where, (x > 0, x, y)),
        Case("where scalar", lambda c, a: torch.where(c, a, 0.0), (x > 0, x)),
        Case("masked_fill", lambda a, m: a.masked_fill(m, -1e9), (x, x > 0)),
        Case("prelu", F.prelu, (floats(2, 5, 4),), (positive(5),)),
        Case("prelu one", F.prelu, (floats(2, 5, 4),), (positive(1),)),
        Case("threshold", lambda x: F.threshold(x, 0.1, 20.0), (x,)),
        Case("glu", lambda x: F.glu(x, 1), (floats(2, 6, 5),)),
        Case("xlogy", torch.xlogy, (positive(6), positive(6))),
        Case("logical_and", torch.logical_and, (booleans(3, 4), booleans(3, 4))),
        Case("logical_xor", torch.logical_xor, (booleans(3, 4), booleans(3, 4))),
        Case("bool not", lambda a: ~a, (booleans(3, 4),)),
        Case("bool add", lambda a, b: a + b, (booleans(3, 4), booleans(3, 4))),
        Case("bool eq", lambda a, b: a == b, (booleans(3, 4), booleans(3, 4))),
        Case("shift", lambda a: (a << 2) >> 1, (j,)),
        Case("uint8 wraps", lambda a: a * 3, (integers(20, low=0, high=255, dtype=torch.uint8),)),
        Case("int8 wraps", lambda a: a + 100, (integers(20, low=0, high=100, dtype=torch.int8),)),
        Case("float16", lambda a, b: torch.tanh(a * b) + 1, (floats(5, 7, dtype=torch.float16), floats(7, dtype=torch.float16)), tolerance=2e-3),
        Case("bfloat16", lambda a, b: torch.sigmoid(a * b) + 1, (floats(5, 7, dtype=torch.bfloat16), floats(7, dtype=torch.bfloat16)), tolerance=1e-2),
        Case("float64", lambda a: torch.exp(a) * torch.erf(a) + torch.log1p(a.abs()), (floats(5, 7).double(),), tolerance=1e-12),
        Case("to int", lambda a: a.to(torch.int32), (x * 10,)),
        Case("to bool", lambda a: a.to(torch.bool), (i,)),
        Case("to half", lambda a: a.half(), (x,)),
        Case("bool to float", lambda a: a.float(), (booleans(9),)),
        Case("scalar weight", lambda a, w: a * w, (x,), (torch.tensor(2.5),)),
        Case("rank 0", lambda a: a * 2 + 1, (torch.tensor(2.5),)),
        Case("empty", lambda a: a * 2, (floats(0, 3),)),
        Case("add vector weight", torch.add, (x,), (floats(7),)),
    ]  # fmt: skip
    return cases


def _movement() -> list[Case]:
    x, v = floats(2, 6, 5), floats(4, 6)
    return [
        Case("view", lambda x: x.reshape(3, 20), (x,)),
        Case("permute", lambda x: x.permute(2, 0, 1), (x,)),
        Case("transpose", lambda x: x.transpose(1, 2), (x,)),
        Case("t", lambda x: x.t(), (v,)),
        Case("mT", lambda x: x.mT, (x,)),
        Case("movedim", lambda x: x.movedim(0, 2), (x,)),
        Case("unsqueeze", lambda x: x.unsqueeze(1), (x,)),
        Case("squeeze", lambda x: x.squeeze(1), (floats(3, 1, 2),)),
        Case("flatten", lambda x: x.flatten(1), (x,)),
        Case("expand", lambda x: x.expand(3, 4, 6), (v,)),
        Case("expand 1", lambda x: x.expand(4, 6), (floats(4, 1),)),
        Case("repeat", lambda x: x.repeat(2, 1, 3), (x,)),
        Case("repeat new", lambda x: x.repeat(2, 3, 1), (v,)),
        Case("repeat_interleave", lambda x: x.repeat_interleave(3, 1), (x,)),
        Case("slice", lambda x: x[:, 1:5:2, -3:], (x,)),
        Case("select", lambda x: x[1, :, -1], (x,)),
        Case("split", lambda x: torch.split(x, 4, 1), (x,)),
        Case("split sizes", lambda x: torch.split(x, [1, 3, 1], 2), (x,)),
        Case("chunk", lambda x: x.chunk(3, 1), (x,)),
        Case("unbind", lambda x: x.unbind(0), (x,)),
        Case("cat", lambda a, b: torch.cat([a, b, a], 1), (x, floats(2, 3, 5))),
        Case("cat last", lambda a, b: torch.cat([a, b], -1), (x, floats(2, 6, 3))),
        Case("stack", lambda a, b: torch.stack([a, b], 1), (x, x + 1)),
        Case("flip", lambda x: x.flip([0, 2]), (x,)),
        Case("roll", lambda x: x.roll([2, -1], [1, 2]), (x,)),
        Case("roll flat", lambda x: x.roll(3), (x,)),
        Case("diagonal", lambda x: x.diagonal(1, 1, 2), (x,)),
        Case("unfold", lambda x: x.unfold(1, 3, 2), (x,)),
        Case("tril", lambda x: x.tril(1), (x,)),
        Case("triu", lambda x: x.triu(-1), (x,)),
        Case("pad", lambda x: F.pad(x, (1, 2, 3, 0), value=1.5), (x,)),
        Case("pad crop", lambda x: F.pad(x, (-1, 2)), (x,)),
        Case("pad reflect", lambda x: F.pad(x, (2, 1), mode="reflect"), (x,)),
        Case("pad replicate", lambda x: F.pad(x, (2, 1, 3, 1), mode="replicate"), (floats(1, 2, 4, 5),)),
        Case("pad circular", lambda x: F.pad(x, (2, 1), mode="circular"), (x,)),
        Case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (floats(2, 8, 3, 2),)),
        Case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (floats(2, 2, 4, 6),)),
        Case("channel_shuffle", lambda x: F.channel_shuffle(x, 3), (floats(2, 6, 3, 2),)),
        Case("im2col", lambda x: F.unfold(x, 3, padding=1), (floats(1, 2, 5, 6),)),
        Case("arange add", lambda x: x + torch.arange(5), (x,)),
        Case("arange step", lambda x: x + torch.arange(1.0, 2.0, 0.2), (x,)),
        Case("full", lambda x: torch.full_like(x, 2.0) + torch.ones(5) + torch.zeros(6, 1), (x,)),
        Case("linspace", lambda x: x + torch.linspace(-1, 1, 5), (x,)),
        Case("eye", lambda x: x[:, :5] + torch.eye(5), (x,)),
        Case("tile", lambda x: x.tile(2, 2), (v,)),
        Case("rot90", lambda x: x.rot90(1, [0, 1]), (v,)),
    ]


def _indexing() -> list[Case]:
    x, table = floats(5, 6, 7), floats(11, 4)
    rows = integers(2, 3, low=0, high=11)
    return [
        Case("embedding", F.embedding, (rows,), (table,)),
        Case("embedding negative safe", lambda w, r: w[r], (table, torch.tensor([-1, 0, -11]))),
        Case("index_select", lambda x, i: x.index_select(1, i), (x, torch.tensor([0, 5, 2, 2]))),
        Case("gather", lambda x, i: x.gather(1, i), (x, integers(5, 3, 7, low=0, high=6))),
        Case("index adjacent", lambda x, i, j: x[:, i, j], (x, torch.tensor([[0], [5]]), torch.tensor([1, 2, 6]))),
        Case("index apart", lambda x, i, j: x[i, :, j], (x, torch.tensor([0, 4]), torch.tensor([1, 2]))),
        Case("index first", lambda x, i: x[i], (x, integers(2, 2, low=0, high=5))),
        Case("scatter", lambda x, i, s: x.scatter(1, i, s), (x, torch.arange(6).flip(0)[:3].view(1, 3, 1).expand(5, 3, 7).contiguous(), floats(5, 3, 7))),
        Case("scatter value", lambda x, i: x.scatter(2, i, 1.0), (x, integers(5, 6, 2, low=0, high=7))),
        Case("scatter_add", lambda x, i, s: x.scatter_add(0, i, s), (x, integers(9, 6, 7, low=0, high=5), floats(9, 6, 7))),
        Case("scatter_reduce", lambda x, i, s: x.scatter_reduce(0, i, s, "amax"), (x, integers(9, 6, 7, low=0, high=5), floats(9, 6, 7))),
        Case("index_put", lambda x, i, v: x.index_put((i,), v), (x, torch.tensor([4, 0]), floats(2, 6, 7))),
        Case("index_put add", lambda x, i, v: x.index_put((i,), v, accumulate=True), (x, torch.tensor([4, 0, 4]), floats(7))),
        Case("index_put inner", lambda x, i, v: torch.ops.aten.index_put(x, [None, i], v), (x, torch.tensor([4, 0]), floats(5, 2, 7))),
        Case("masked put", lambda x, m: torch.ops.aten.index_put(x, [m], torch.tensor(0.5)), (x, x > 0)),
        Case("index_add", lambda x, i, v: x.index_add(1, i, v), (x, torch.tensor([4, 0, 4]), floats(5, 3, 7))),
        Case("slice_scatter", lambda x, v: x.slice_scatter(v, 1, 1, 6, 2), (x, floats(5, 3, 7))),
        Case("select_scatter", lambda x, v: x.select_scatter(v, 1, -2), (x, floats(5, 7))),
        Case("sort", lambda x: torch.sort(x, dim=1, descending=True, stable=True), (integers(3, 17, 4).float(),)),
        Case("argsort", lambda x: torch.argsort(x, dim=-1, stable=True), (integers(6, 33),)),
        Case("topk", lambda x: torch.topk(x, 3), (floats(4, 50),)),
        Case("topk smallest", lambda x: torch.topk(x, 5, dim=0, largest=False), (floats(13, 5),)),
    ]  # fmt: skip


def _reductions() -> list[Case]:
    x = floats(3, 5, 33)
    long = floats(2, 1000)
    cases = [
        Case(f"{name} all", getattr(torch, name), (x,))
        for name in "sum mean amax amin prod argmax argmin var std max min".split()
    ]
    cases += [
        Case(f"{name} {dim}", lambda x, n=name, d=dim: getattr(torch, n)(x, d, keepdim=d == 1), (x,))
        for name in "sum mean amax amin prod argmax argmin max min all any".split()
        for dim in (1, -1)
    ]
    cases += [
        Case("sum two", lambda x: x.sum((0, 2)), (x,)),
        Case("mean two", lambda x: x.mean((1, 2), keepdim=True), (x,)),
        Case("sum int", lambda x: x.sum(1), (integers(4, 9, dtype=torch.int32),)),
        Case("sum bool", lambda x: x.sum(1), (booleans(4, 9),)),
        Case("sum long", lambda x: x.sum(-1), (long,)),
        Case("sum half", lambda x: x.sum(-1), (floats(3, 300, dtype=torch.float16),), tolerance=2e-3),
        Case("var dims", lambda x: torch.var(x, (1, 2), correction=0), (x,)),
        Case("var_mean", lambda x: torch.var_mean(x, -1, keepdim=True), (x,)),
        Case("std", lambda x: torch.std(x, 1), (x,)),
        Case("norm", lambda x: torch.linalg.vector_norm(x, dim=-1), (x,)),
        Case("norm 1", lambda x: x.norm(1, dim=1), (x,)),
        Case("norm inf", lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1), (x,)),
        Case("normalize", lambda x: F.normalize(x, dim=1), (x,)),
        Case("logsumexp", lambda x: x.logsumexp(1), (x,)),
        Case("cumsum", lambda x: x.cumsum(1), (x,)),
        Case("cumsum int", lambda x: x.cumsum(0), (integers(4, 9),)),
        Case("cumprod", lambda x: x.cumprod(-1), (x,)),
        Case("argmax ties", lambda x: x.argmax(-1), (integers(6, 40),)),
        Case("amax nan", lambda x: x.amax(0), (torch.tensor([[1.0, float("nan")], [2.0, 3.0]]),)),
        Case("count_nonzero", lambda x: torch.count_nonzero(x, 1), (integers(4, 9),)),
        Case("cosine", lambda a, b: F.cosine_similarity(a, b, dim=1), (x, floats(3, 5, 33))),
        Case("einsum", lambda a, b: torch.einsum("bij,bkj->bik", a, b), (x, floats(3, 4, 33)), tolerance=1e-4),
        Case("cdist", lambda a, b: ((a[:, None] - b[None]) ** 2).sum(-1).sqrt(), (floats(4, 9), floats(6, 9))),
    ]  # fmt: skip
    return cases


def _normalisations() -> list[Case]:
    x, image = floats(3, 5, 33), floats(2, 20, 5, 6)
    w, b = positive(33), floats(33)
    c, d = positive(20), floats(20)
    return [
        Case("softmax", lambda x: x.softmax(-1), (x * 5,)),
        Case("softmax inner", lambda x: x.softmax(1), (x,)),
        Case("softmax half", lambda x: x.softmax(-1), (floats(3, 40, dtype=torch.float16),), tolerance=2e-3),
        Case("log_softmax", lambda x: x.log_softmax(-1), (x,)),
        Case("layer_norm", lambda x, w, b: F.layer_norm(x, (33,), w, b), (x,), (w, b)),
        Case("layer_norm plain", lambda x: F.layer_norm(x, (5, 33)), (x,)),
        Case("rms_norm", lambda x, w: F.rms_norm(x, (33,), w), (x,), (w,)),
        Case("group_norm", lambda x, w, b: F.group_norm(x, 4, w, b), (image,), (c, d)),
        Case("group_norm plain", lambda x: F.group_norm(x, 5), (image,)),
        Case("instance_norm", lambda x: F.instance_norm(x), (image,)),
        Case("batch_norm", lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), (image,), (d, c, c, d)),
        Case("local_response_norm", lambda x: F.local_response_norm(x, 3), (image,)),
        Case("layer_norm bf16", lambda x: F.layer_norm(x, (33,)), (x.bfloat16(),), tolerance=2e-2),
    ]


def _pooling() -> list[Case]:
    x, line, cube = floats(2, 20, 11, 13), floats(2, 5, 17), floats(1, 3, 6, 7, 8)
    return [
        Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), (x,)),
        Case("max_pool2d ceil", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), (x,)),
        Case("max_pool2d dilated", lambda x: F.max_pool2d(x, 3, 1, 1, dilation=2), (x,)),
        Case("max_pool2d indices", lambda x: F.max_pool2d(x, (2, 3), 2, return_indices=True), (x,)),
        Case("max_pool1d", lambda x: F.max_pool1d(x, 3, 2), (line,)),
        Case("max_pool3d", lambda x: F.max_pool3d(x, 2), (cube,)),
        Case("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1), (x,)),
        Case("avg_pool2d valid", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (x,)),
        Case("avg_pool2d ceil", lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), (x,)),
        Case("avg_pool2d ceil padded", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (floats(1, 3, 12, 12),)),
        Case("avg_pool2d divisor", lambda x: F.avg_pool2d(x, 2, divisor_override=3), (x,)),
        Case("avg_pool1d", lambda x: F.avg_pool1d(x, 4, 3, 1), (line,)),
        Case("avg_pool3d", lambda x: F.avg_pool3d(x, 2), (cube,)),
        Case("adaptive_avg_pool2d 1", lambda x: F.adaptive_avg_pool2d(x, 1), (x,)),
        Case("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (7, 5)), (x,)),
        Case("adaptive_avg_pool2d up", lambda x: F.adaptive_avg_pool2d(x, 7), (floats(1, 4, 3, 3),)),
        Case("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 5), (line,)),
        Case("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, (4, 6)), (x,)),
        Case("unbatched", lambda x: F.max_pool2d(x, 2), (floats(4, 6, 6),)),
    ]


def _resampling() -> list[Case]:
    x, line = floats(2, 3, 5, 7), floats(2, 3, 9)
    grid = inside(2, 4, 6, 2) * 1.3
    cases = [
        Case(
            f"{mode} {align}",
            lambda x, m=mode, a=align: F.interpolate(x, (8, 11), mode=m, align_corners=a),
            (x,),
            tolerance=3e-5,
        )
        for mode in ("bilinear", "bicubic")
        for align in (False, True)
    ]
    cases += [
        Case("nearest", lambda x: F.interpolate(x, (8, 11), mode="nearest"), (x,)),
        Case("nearest twice", lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), (x,)),
        Case("nearest down", lambda x: F.interpolate(x, (3, 4), mode="nearest"), (x,)),
        Case("nearest exact", lambda x: F.interpolate(x, (8, 11), mode="nearest-exact"), (x,)),
        Case("bilinear scale", lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), (x,), tolerance=3e-5),
        Case("bilinear down", lambda x: F.interpolate(x, (3, 3), mode="bilinear"), (x,)),
        Case("linear", lambda x: F.interpolate(x, 20, mode="linear"), (line,), tolerance=3e-5),
        Case(
            "trilinear",
            lambda x: F.interpolate(x, (4, 5, 6), mode="trilinear"),
            (floats(1, 2, 3, 4, 5),),
            tolerance=3e-5,
        ),
        Case("area", lambda x: F.interpolate(x, (2, 3), mode="area"), (x,)),
    ]
    cases += [
        Case(
            f"grid_sample {mode} {pad} {align}",
            lambda x, g, m=mode, p=pad, a=align: F.grid_sample(x, g, m, p, a),
            (x, grid),
            tolerance=5e-5,
        )
        for mode in ("bilinear", "nearest")
        for pad in ("zeros", "border", "reflection")
        for align in (False, True)
    ]
    return cases


def _convolutions() -> list[Case]:
    def case(
        name: str, x: tuple[int, ...], w: tuple[int, ...], call: Any = F.conv2d, bias: bool = True, **options: Any
    ) -> Case:
        out = w[1] * options.get("groups", 1) if "transpose" in call.__name__ else w[0]
        weights = (floats(*w) * 0.2, *((floats(out),) if bias else ()))
        return Case(name, lambda x, w, b=None: call(x, w, b, **options), (floats(*x),), weights, tolerance=2e-5)

    return [
        case("conv2d", (2, 3, 9, 11), (20, 3, 3, 3), padding=1),
        case("conv2d wide", (1, 40, 7, 7), (24, 40, 3, 3), padding=1, bias=False),
        case("conv2d strided", (1, 16, 15, 14), (32, 16, 3, 3), stride=2, padding=1),
        case("conv2d dilated", (1, 16, 15, 14), (32, 16, 3, 3), dilation=2, padding=2),
        case("conv2d 1x1", (1, 33, 5, 6), (17, 33, 1, 1)),
        case("conv2d asymmetric", (1, 8, 9, 9), (8, 8, 1, 7), padding=(0, 3)),
        case("conv2d same", (1, 8, 9, 9), (8, 8, 4, 3), padding="same"),
        case("conv2d groups", (1, 32, 6, 6), (48, 8, 3, 3), groups=4, padding=1),
        case("conv2d odd groups", (1, 18, 6, 6), (12, 3, 3, 3), groups=6, padding=1),
        case("depthwise", (2, 20, 9, 9), (20, 1, 3, 3), groups=20, padding=1),
        case("depthwise multiplied", (1, 6, 9, 9), (12, 1, 3, 3), groups=6, padding=1),
        case("depthwise strided", (1, 32, 9, 9), (32, 1, 5, 5), groups=32, padding=2, stride=2),
        case("conv1d", (2, 5, 30), (7, 5, 4), F.conv1d, stride=2),
        case("conv1d depthwise", (2, 20, 30), (20, 1, 3), F.conv1d, groups=20, padding=1),
        case("conv3d", (1, 4, 5, 6, 7), (6, 4, 2, 3, 3), F.conv3d, padding=1),
        case("conv_transpose2d", (1, 20, 5, 6), (20, 9, 3, 3), F.conv_transpose2d, stride=2, padding=1, output_padding=1),
        case("conv_transpose2d groups", (1, 8, 5, 6), (8, 3, 2, 2), F.conv_transpose2d, stride=2, groups=2),
        case("conv_transpose1d", (2, 6, 9), (6, 4, 4), F.conv_transpose1d, stride=3),
        Case("conv2d unbatched", lambda x, w: F.conv2d(x, w), (floats(3, 6, 6),), (floats(4, 3, 3, 3),), tolerance=2e-5),
        Case("conv2d computed weight", lambda x, w: F.conv2d(x, w, padding=1), (floats(1, 3, 6, 6), floats(4, 3, 3, 3)), tolerance=2e-5),
        Case("conv2d double", lambda x, w: F.conv2d(x, w, padding=1), (floats(1, 3, 6, 6).double(),), (floats(4, 3, 3, 3).double(),), tolerance=1e-12),
        Case("conv2d half", lambda x, w: F.conv2d(x, w, padding=1), (floats(1, 3, 6, 6).half(),), (floats(4, 3, 3, 3).half(),), tolerance=3e-3),
        Case("conv2d int", lambda x, w: F.conv2d(x, w, padding=1), (integers(1, 3, 6, 6, dtype=torch.int32),), (integers(4, 3, 3, 3, dtype=torch.int32),)),
        Case("conv_transpose2d computed", lambda x, w: F.conv_transpose2d(x, w, stride=2), (floats(1, 3, 6, 6), floats(3, 4, 3, 3)), tolerance=2e-5),
    ]  # fmt: skip


def _products() -> list[Case]:
    q, k, v = floats(2, 3, 7, 8), floats(2, 3, 9, 8), floats(2, 3, 9, 5)
    int8 = {"dtype": torch.int8}
    return [
        Case("linear", F.linear, (floats(2, 5, 19),), (floats(33, 19), floats(33)), tolerance=2e-5),
        Case("linear vector", F.linear, (floats(19),), (floats(33, 19),), tolerance=2e-5),
        Case("linear computed", F.linear, (floats(5, 19), floats(7, 19), floats(7)), tolerance=2e-5),
        Case("linear half", F.linear, (floats(5, 19).half(),), (floats(7, 19).half(), floats(7).half()), tolerance=3e-3),
        Case("linear bf16", F.linear, (floats(5, 19).bfloat16(),), (floats(7, 19).bfloat16(),), tolerance=2e-2),
        Case("addmm", torch.addmm, (floats(7), floats(5, 6), floats(6, 7)), tolerance=2e-5),
        Case("addmm scaled", lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=2), (floats(5, 7), floats(5, 6), floats(6, 7)), tolerance=2e-5),
        Case("matmul weight", torch.matmul, (floats(2, 3, 5, 6),), (floats(6, 7),), tolerance=2e-5),
        Case("matmul", torch.matmul, (floats(2, 3, 5, 6), floats(3, 6, 7)), tolerance=2e-5),
        Case("matmul shared", torch.matmul, (floats(2, 3, 5, 6), floats(6, 7)), tolerance=2e-5),
        Case("matmul left", torch.matmul, (floats(5, 6), floats(3, 6, 7)), tolerance=2e-5),
        Case("matmul vector", torch.matmul, (floats(2, 3, 6), floats(6)), tolerance=2e-5),
        Case("matmul vectors", torch.matmul, (floats(6), floats(6)), tolerance=2e-5),
        Case("vector matmul", torch.matmul, (floats(6), floats(2, 6, 5)), tolerance=2e-5),
        Case("bmm transposed", lambda a, b: torch.bmm(a, b.transpose(1, 2)), (floats(3, 5, 20), floats(3, 33, 20)), tolerance=2e-5),
        Case("baddbmm", torch.baddbmm, (floats(3, 5, 7), floats(3, 5, 6), floats(3, 6, 7)), tolerance=2e-5),
        Case("matmul int", torch.matmul, (integers(4, 20), integers(20, 5))),
        Case("matmul double", torch.matmul, (floats(4, 20).double(), floats(20, 5).double()), tolerance=1e-12),
        Case("int_mm", torch._int_mm, (integers(32, 24, **int8), integers(24, 16, **int8))),
        Case("attention", F.scaled_dot_product_attention, (q, k, v), tolerance=2e-5),
        Case("attention causal", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), tolerance=2e-5),
        Case("attention mask", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), (q, k, v, booleans(2, 1, 7, 9)), tolerance=2e-5),
        Case("attention bias", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.3), (q, k, v, floats(7, 9)), tolerance=2e-5),
        Case("attention hidden row", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), (q, k, v, torch.arange(7).view(7, 1).expand(7, 9) > 2), tolerance=2e-5),
        Case("attention groups", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), (floats(2, 6, 7, 8), k, v), tolerance=2e-5),
    ]  # fmt: skip


def _quantization() -> list[Case]:
    x = floats(3, 5, 4) * 4
    scales, zeros = positive(5), integers(5)
    codes = integers(3, 5, 4, low=-128, high=128, dtype=torch.int8)
    return [
        Case("quantize", lambda x: quantized.quantize_per_tensor(x, 0.05, 3, -128, 127, torch.int8), (x,)),
        Case("quantize half steps", lambda x: quantized.quantize_per_tensor(x, 0.5, 0, 0, 255, torch.uint8), (torch.arange(-3, 9) / 4,)),
        Case("dequantize", lambda x: quantized.dequantize_per_tensor(x, 0.05, 3, -128, 127, torch.int8), (codes,)),
        Case("quantize channel", lambda x, s, z: quantized.quantize_per_channel(x, s, z, 1, -128, 127, torch.int8), (x,), (scales, zeros)),
        Case("dequantize channel", lambda x, s, z: quantized.dequantize_per_channel(x, s, z, 1, -128, 127, torch.int8), (codes,), (scales, zeros)),
        Case("dequantize weight", lambda x, w, s, z: x + quantized.dequantize_per_channel(w, s, z, 1, -128, 127, torch.int8), (x,), (codes, scales, zeros)),
    ]  # fmt: skip


FAMILIES: dict[str, Callable[[], list[Case]]] = {
    "elementwise": _elementwise,
    "movement": _movement,
    "indexing": _indexing,
    "reduction": _reductions,
    "normalisation": _normalisations,
    "pooling": _pooling,
    "resample": _resampling,
    "convolution": _convolutions,
    "matmul": _products,
    "quantization": _quantization,
}
