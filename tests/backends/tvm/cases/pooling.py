"""Cases of the family ``pooling``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.backends.tvm.cases.values import Case, floats, integers


def holed(*shape: int) -> torch.Tensor:
    """Some elements are NaN, and some rows minus infinity."""
    x = floats(*shape)
    x[..., 2, 3] = x[..., 4, 4] = x[0, 0, 5, 5] = float("nan")
    x[:, :, -3:] = -float("inf")
    return x


def cases() -> list[Case]:
    x, line, cube = floats(2, 20, 11, 13), floats(2, 5, 17), floats(1, 3, 6, 7, 8)
    return [
        Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), (x,)),
        Case("max_pool2d ceil", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), (x,)),
        Case("max_pool2d dilated", lambda x: F.max_pool2d(x, 3, 1, 1, dilation=2), (x,)),
        Case("max_pool2d indices", lambda x: F.max_pool2d(x, (2, 3), 2, return_indices=True), (x,)),
        Case("max_pool2d of NaN", lambda x: F.max_pool2d(x, 3, 2, 1), (holed(2, 20, 9, 10),)),
        Case("max_pool2d of NaN, plain", lambda x: F.max_pool2d(x, 2, 2), (holed(1, 3, 9, 10),)),
        Case(
            "max_pool2d blocked NaN",
            lambda x, w: F.max_pool2d(F.conv2d(x, w), 3),
            (holed(1, 3, 9, 10),),
            (floats(20, 3, 1, 1),),
        ),
        Case(
            "max_pool2d indices of NaN", lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), (holed(1, 2, 9, 9),)
        ),
        Case("max_pool2d int", lambda x: F.max_pool2d(x, 3, 2, 1), (integers(1, 2, 7, 7, dtype=torch.int32),)),
        Case("adaptive_max_pool2d of NaN", lambda x: F.adaptive_max_pool2d(x, (4, 3)), (holed(1, 2, 9, 10),)),
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
        Case(
            "adaptive_max_pool2d of many channels", lambda x: F.adaptive_max_pool2d(x, (4, 6)), (floats(2, 35, 8, 12),)
        ),
        Case("avg_pool2d half", lambda x: F.avg_pool2d(x, 3, 2, 1), (floats(1, 20, 8, 9).half(),), tolerance=1e-3),
        Case("avg_pool2d double", lambda x: F.avg_pool2d(x, 3, 2, 1), (floats(1, 20, 8, 9).double(),)),
        Case("mean of a map", lambda x, w: F.conv2d(x, w).mean((2, 3)), (floats(2, 3, 7, 8),), (floats(35, 3, 1, 1),)),
        Case("max_pool2d indices of many channels", lambda x: F.max_pool2d(x, 3, 2, return_indices=True), (x,)),
        Case("adaptive_avg_pool2d up", lambda x: F.adaptive_avg_pool2d(x, 7), (floats(1, 4, 3, 3),)),
        Case("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 5), (line,)),
        Case("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, (4, 6)), (x,)),
        Case("unbatched", lambda x: F.max_pool2d(x, 2), (floats(4, 6, 6),)),
    ]
