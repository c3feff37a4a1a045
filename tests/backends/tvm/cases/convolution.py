"""Cases of the family ``convolution``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.backends.tvm.cases.values import Case, floats, integers


def cases() -> list[Case]:
    def case(
        name: str, x: tuple[int, ...], w: tuple[int, ...], call: Any = F.conv2d, bias: bool = True, **options: Any
    ) -> Case:
        out = w[1] * options.get("groups", 1) if "transpose" in call.__name__ else w[0]
        weights = (floats(*w) * 0.2, *((floats(out),) if bias else ()))
        return Case(name, lambda x, w, b=None: call(x, w, b, **options), (floats(*x),), weights, tolerance=2e-5)

    def padded(name: str, *amounts: int, value: float = 0.0, mode: str = "constant", **options: Any) -> Case:
        """A pad between two convolutions."""

        def call(x: Any, a: Any, b: Any) -> Any:
            return F.conv2d(F.pad(F.conv2d(x, a), amounts, mode, value), b, **options)

        weights = (floats(20, 3, 1, 1), floats(20, 20 // options.get("groups", 1), 3, 3) * 0.2)
        return Case(f"conv2d behind {name}", call, (floats(2, 3, 9, 8),), weights, tolerance=2e-5)

    def gated(name: str, channels: int, gate: tuple[int, ...], batch: int = 1, size: int = 9) -> Case:
        """A gate on the channels ahead of a convolution, as in squeeze and excitation."""

        def call(x: Any, g: Any, a: Any, b: Any) -> Any:
            y = F.conv2d(x, a)
            return F.conv2d(torch.sigmoid(g) * y, b, padding=1)

        inputs = (floats(batch, 3, size, 7), floats(*gate))
        weights = (floats(channels, 3, 1, 1), floats(5, channels, 3, 3) * 0.2)
        return Case(f"conv2d of a gated map, {name}", call, inputs, weights, tolerance=2e-5)

    def followed(name: str, channels: int, behind: Any, *values: tuple[int, ...], batch: int = 2) -> Case:
        """What a kernel takes into its epilogue: ``behind(y, *values)`` behind a convolution."""

        def call(x: Any, *rest: Any) -> Any:
            *given, w = rest
            return behind(F.conv2d(x, w), *given)

        inputs = (floats(batch, 3, 5, 6), *(floats(*value) for value in values))
        return Case(f"conv2d, {name}", call, inputs, (floats(channels, 3, 2, 3),), tolerance=2e-5)

    return [
        followed("a slope per channel", 20, F.prelu, (20,)),
        followed("times a value per channel, plus a map", 35, lambda y, s, r: y * s + r, (1, 35, 1, 1), (2, 35, 4, 4)),
        followed("plus a value per channel", 16, lambda y, b: torch.relu(b + y), (16, 1, 1)),
        followed("a gate of each image", 21, lambda y, g: y * torch.sigmoid(g), (3, 21, 1, 1), batch=3),
        followed("a gate of each image, pooled", 32, lambda y, m: y * m.mean((2, 3), keepdim=True), (2, 32, 3, 3)),
        followed("times a map", 20, lambda y, m: torch.sigmoid(m) * y, (2, 20, 4, 4)),
        Case(
            "conv2d, constants behind it",
            lambda x, w, a, s, b: F.prelu(F.prelu(F.conv2d(x, w, padding=1), a) * s.view(-1, 1, 1) + b, a[:1]),
            (floats(2, 20, 5, 6),),
            (floats(20, 20, 3, 3) * 0.1, floats(20), floats(20), floats(1, 20, 1, 1)),
            tolerance=2e-5,
        ),
        Case(
            "conv2d, one slope",
            lambda x, w, a: F.prelu(F.conv2d(x, w, padding=1), a),
            (floats(1, 6, 5, 6),),
            (floats(20, 6, 3, 3), floats(1)),
            tolerance=2e-5,
        ),
        Case(
            "depthwise, a slope per channel",
            lambda x, w, a: F.prelu(F.conv2d(x, w, groups=20), a),
            (floats(2, 20, 5, 6),),
            (floats(20, 1, 3, 3), floats(20)),
            tolerance=2e-5,
        ),
        gated("whole blocks", 32, (1, 32, 1, 1)),
        gated("tails", 21, (1, 21, 1, 1)),
        gated("few channels", 3, (1, 3, 1, 1)),
        gated("two images", 32, (2, 32, 1, 1), batch=2),
        gated("a gate on pixels", 32, (1, 1, 9, 7)),
        gated("more weights than pixels", 32, (1, 32, 1, 1), size=4),
        padded("a pad", 0, 1, 0, 1, stride=2),
        padded("a pad of one axis", 2, 1, padding=1),
        padded("a pad, depthwise", 0, 1, 1, 0, stride=2, groups=20),
        padded("a pad of ones", 1, 1, 1, 1, value=1.0),
        padded("a crop", -1, 1, 0, 0),
        padded("a pad of channels", 0, 0, 0, 0, -1, 1),
        padded("a reflection", 1, 2, 3, 0, mode="reflect"),
        Case(
            "pad with two readers",
            lambda x, w: (F.conv2d(p := F.pad(x, (1, 0, 2, 1)), w), F.relu(p)),
            (floats(1, 3, 6, 7),),
            (floats(5, 3, 3, 3),),
            tolerance=2e-5,
        ),
        case("conv2d", (2, 3, 9, 11), (20, 3, 3, 3), padding=1),
        case("conv2d wide", (1, 40, 7, 7), (24, 40, 3, 3), padding=1, bias=False),
        case("conv2d strided", (1, 16, 15, 14), (32, 16, 3, 3), stride=2, padding=1),
        case("conv2d dilated", (1, 16, 15, 14), (32, 16, 3, 3), dilation=2, padding=2),
        case("conv2d 1x1", (1, 33, 5, 6), (17, 33, 1, 1)),
        case("conv2d asymmetric", (1, 8, 9, 9), (8, 8, 1, 7), padding=(0, 3)),
        case("conv2d same", (1, 8, 9, 9), (8, 8, 5, 3), padding="same"),
        case("conv2d groups", (1, 32, 6, 6), (48, 8, 3, 3), groups=4, padding=1),
        case("conv2d odd groups", (1, 18, 6, 6), (12, 3, 3, 3), groups=6, padding=1),
        case("depthwise", (2, 20, 9, 9), (20, 1, 3, 3), groups=20, padding=1),
        case("depthwise multiplied", (1, 6, 9, 9), (12, 1, 3, 3), groups=6, padding=1),
        case("depthwise strided", (1, 32, 9, 9), (32, 1, 5, 5), groups=32, padding=2, stride=2),
        case("conv1d", (2, 5, 30), (7, 5, 4), F.conv1d, stride=2),
        case("conv1d depthwise", (2, 20, 30), (20, 1, 3), F.conv1d, groups=20, padding=1),
        case("conv3d", (1, 4, 5, 6, 7), (6, 4, 2, 3, 3), F.conv3d, padding=1),
        case(
            "conv_transpose2d", (1, 20, 5, 6), (20, 9, 3, 3), F.conv_transpose2d, stride=2, padding=1, output_padding=1
        ),
        case("conv_transpose2d groups", (1, 8, 5, 6), (8, 3, 2, 2), F.conv_transpose2d, stride=2, groups=2),
        case("conv_transpose1d", (2, 6, 9), (6, 4, 4), F.conv_transpose1d, stride=3),
        Case(
            "conv2d unbatched", lambda x, w: F.conv2d(x, w), (floats(3, 6, 6),), (floats(4, 3, 3, 3),), tolerance=2e-5
        ),
        Case(
            "conv2d computed weight",
            lambda x, w: F.conv2d(x, w, padding=1),
            (floats(1, 3, 6, 6), floats(4, 3, 3, 3)),
            tolerance=2e-5,
        ),
        Case(
            "conv2d double",
            lambda x, w: F.conv2d(x, w, padding=1),
            (floats(1, 3, 6, 6).double(),),
            (floats(4, 3, 3, 3).double(),),
            tolerance=1e-12,
        ),
        Case(
            "conv2d half",
            lambda x, w: F.conv2d(x, w, padding=1),
            (floats(1, 3, 6, 6).half(),),
            (floats(4, 3, 3, 3).half(),),
            tolerance=3e-3,
        ),
        Case(
            "conv2d int",
            lambda x, w: F.conv2d(x, w, padding=1),
            (integers(1, 3, 6, 6, dtype=torch.int32),),
            (integers(4, 3, 3, 3, dtype=torch.int32),),
        ),
        Case(
            "conv_transpose2d computed",
            lambda x, w: F.conv_transpose2d(x, w, stride=2),
            (floats(1, 3, 6, 6), floats(3, 4, 3, 3)),
            tolerance=2e-5,
        ),
    ]
