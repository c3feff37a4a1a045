"""Cases of the family ``elementwise``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.backends.tvm.cases.values import SPECIAL, Case, booleans, floats, inside, integers, positive


def cases() -> list[Case]:
    x, y = floats(3, 5, 7), floats(3, 5, 7)
    i, j = integers(4, 9), integers(4, 9, low=1)
    cases = [
        Case(name, getattr(torch, name), (x,))
        for name in [
            "abs",
            "neg",
            "exp",
            "tanh",
            "sigmoid",
            "sin",
            "cos",
            "floor",
            "ceil",
            "trunc",
            "round",
            "sign",
            "square",
            "erf",
            "expm1",
            "exp2",
            "sinh",
            "cosh",
            "tan",
            "atan",
            "asinh",
            "erfc",
            "frac",
            "isnan",
            "isfinite",
            "isinf",
            "logical_not",
            "deg2rad",
            "rad2deg",
            "positive",
            "signbit",
        ]
    ]
    cases += [
        Case(name, getattr(torch, name), (positive(4, 17),))
        for name in ["log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal"]
    ]
    cases += [Case(name, getattr(torch, name), (inside(4, 17),)) for name in ["asin", "acos", "atanh", "logit"]]
    cases += [Case("acosh", torch.acosh, (positive(20) + 1,))]
    for name in [
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "remainder",
        "fmod",
        "atan2",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "fmax",
        "fmin",
        "copysign",
        "hypot",
        "logaddexp",
    ]:
        cases.append(Case(f"{name} broadcast", getattr(torch, name), (x, floats(5, 1))))
    for name in [
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "remainder",
        "fmod",
        "floor_divide",
        "eq",
        "lt",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
    ]:
        cases.append(Case(f"{name} int", getattr(torch, name), (i, j)))
    for name in [
        "relu",
        "relu6",
        "silu",
        "gelu",
        "mish",
        "softplus",
        "elu",
        "celu",
        "selu",
        "hardsigmoid",
        "hardswish",
        "leaky_relu",
        "softsign",
        "tanhshrink",
        "hardshrink",
        "softshrink",
        "logsigmoid",
        "hardtanh",
    ]:
        cases.append(Case(name, getattr(F, name), (x * 3,)))
    special = SPECIAL.clone()
    for name in [
        "relu",
        "sign",
        "round",
        "floor",
        "abs",
        "isnan",
        "isinf",
        "isfinite",
        "nan_to_num",
        "sigmoid",
        "tanh",
        "exp",
    ]:
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
        *[Case(f"pow {n}", lambda x, n=n: x**n, (floats(33),)) for n in (1, 3, 5, 7, 16, 17)],
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
        Case(
            "prelu of a convolution",
            lambda x, w, slope: F.prelu(F.conv2d(x, w), slope),
            (floats(2, 3, 5, 4),),
            (floats(21, 3, 1, 1), positive(21)),
        ),
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
        Case(
            "float16",
            lambda a, b: torch.tanh(a * b) + 1,
            (floats(5, 7, dtype=torch.float16), floats(7, dtype=torch.float16)),
            tolerance=2e-3,
        ),
        Case(
            "bfloat16",
            lambda a, b: torch.sigmoid(a * b) + 1,
            (floats(5, 7, dtype=torch.bfloat16), floats(7, dtype=torch.bfloat16)),
            tolerance=1e-2,
        ),
        Case(
            "float64",
            lambda a: torch.exp(a) * torch.erf(a) + torch.log1p(a.abs()),
            (floats(5, 7).double(),),
            tolerance=1e-12,
        ),
        Case("to int", lambda a: a.to(torch.int32), (x * 10,)),
        Case("to bool", lambda a: a.to(torch.bool), (i,)),
        Case("to half", lambda a: a.half(), (x,)),
        Case("bool to float", lambda a: a.float(), (booleans(9),)),
        Case("scalar weight", lambda a, w: a * w, (x,), (torch.tensor(2.5),)),
        Case("rank 0", lambda a: a * 2 + 1, (torch.tensor(2.5),)),
        Case("empty", lambda a: a * 2, (floats(0, 3),)),
        Case("add vector weight", torch.add, (x,), (floats(7),)),
    ]
    return cases
