"""Cases of the family ``indexing``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.backends.tvm.cases.values import Case, floats, integers


def cases() -> list[Case]:
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
        Case(
            "scatter",
            lambda x, i, s: x.scatter(1, i, s),
            (x, torch.arange(6).flip(0)[:3].view(1, 3, 1).expand(5, 3, 7).contiguous(), floats(5, 3, 7)),
        ),
        Case("scatter value", lambda x, i: x.scatter(2, i, 1.0), (x, integers(5, 6, 2, low=0, high=7))),
        Case(
            "scatter_add",
            lambda x, i, s: x.scatter_add(0, i, s),
            (x, integers(9, 6, 7, low=0, high=5), floats(9, 6, 7)),
        ),
        Case(
            "scatter_reduce",
            lambda x, i, s: x.scatter_reduce(0, i, s, "amax"),
            (x, integers(9, 6, 7, low=0, high=5), floats(9, 6, 7)),
        ),
        Case("index_put", lambda x, i, v: x.index_put((i,), v), (x, torch.tensor([4, 0]), floats(2, 6, 7))),
        Case(
            "index_put add",
            lambda x, i, v: x.index_put((i,), v, accumulate=True),
            (x, torch.tensor([4, 0, 4]), floats(7)),
        ),
        Case(
            "index_put inner",
            lambda x, i, v: torch.ops.aten.index_put(x, [None, i], v),
            (x, torch.tensor([4, 0]), floats(5, 2, 7)),
        ),
        Case("masked put", lambda x, m: torch.ops.aten.index_put(x, [m], torch.tensor(0.5)), (x, x > 0)),
        Case("index_add", lambda x, i, v: x.index_add(1, i, v), (x, torch.tensor([4, 0, 4]), floats(5, 3, 7))),
        Case("slice_scatter", lambda x, v: x.slice_scatter(v, 1, 1, 6, 2), (x, floats(5, 3, 7))),
        Case("select_scatter", lambda x, v: x.select_scatter(v, 1, -2), (x, floats(5, 7))),
        Case("sort", lambda x: torch.sort(x, dim=1, descending=True, stable=True), (integers(3, 17, 4).float(),)),
        Case("argsort", lambda x: torch.argsort(x, dim=-1, stable=True), (integers(6, 33),)),
        Case("topk", lambda x: torch.topk(x, 3), (floats(4, 50),)),
        Case("topk smallest", lambda x: torch.topk(x, 5, dim=0, largest=False), (floats(13, 5),)),
    ]
