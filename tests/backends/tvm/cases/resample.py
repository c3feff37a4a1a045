"""Cases of the family ``resample``."""

from __future__ import annotations

import torch.nn.functional as F

from tests.backends.tvm.cases.values import Case, floats, inside


def cases() -> list[Case]:
    x, line, many = floats(2, 3, 5, 7), floats(2, 3, 9), floats(1, 20, 5, 7)
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
        Case("bilinear of many channels", lambda x: F.interpolate(x, (7, 9), mode="bilinear"), (floats(2, 21, 4, 5),)),
        Case("nearest of many channels", lambda x: F.interpolate(x, (7, 9)), (floats(2, 21, 4, 5),)),
        Case(
            "bicubic of many channels, corners",
            lambda x: F.interpolate(x, (7, 9), mode="bicubic", align_corners=True),
            (floats(2, 21, 4, 5),),
            tolerance=3e-5,
        ),
        Case(
            "trilinear of a convolution's result",
            lambda x, w: F.interpolate(F.conv3d(x, w), scale_factor=2, mode="trilinear"),
            (floats(1, 2, 3, 4, 5),),
            (floats(20, 2, 1, 1, 1),),
            tolerance=3e-5,
        ),
        Case("two scales", lambda x: (F.interpolate(x, scale_factor=1.5), F.interpolate(x, scale_factor=1.6)), (many,)),
        Case("bilinear half", lambda x: F.interpolate(x.half(), (7, 9), mode="bilinear"), (many,), tolerance=2e-3),
        Case("bilinear double", lambda x: F.interpolate(x.double(), (7, 9), mode="bilinear"), (many,), tolerance=3e-5),
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
