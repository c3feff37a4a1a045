"""Cases of the family ``reduction``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.backends.tvm.cases.values import Case, booleans, floats, integers


def cases() -> list[Case]:
    x = floats(3, 5, 33)
    long = floats(2, 1000)
    cases = [
        Case(f"{name} all", getattr(torch, name), (x,))
        for name in ["sum", "mean", "amax", "amin", "prod", "argmax", "argmin", "var", "std", "max", "min"]
    ]
    cases += [
        Case(f"{name} {dim}", lambda x, n=name, d=dim: getattr(torch, n)(x, d, keepdim=d == 1), (x,))
        for name in ["sum", "mean", "amax", "amin", "prod", "argmax", "argmin", "max", "min", "all", "any"]
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
    ]
    return cases
