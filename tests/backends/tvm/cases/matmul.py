"""Cases of the family ``matmul``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.backends.tvm.cases.values import Case, booleans, floats, integers


def cases() -> list[Case]:
    q, k, v = floats(2, 3, 7, 8), floats(2, 3, 9, 8), floats(2, 3, 9, 5)
    int8 = {"dtype": torch.int8}

    def inverted(name: str, channels: int, batch: int) -> Case:
        """A block of a network that mixes the channels of pixels in the channels-last layout."""

        def call(x: torch.Tensor, d: torch.Tensor, w: torch.Tensor, b: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            y = F.conv2d(x, d, padding=1, groups=channels).permute(0, 2, 3, 1)
            y = F.linear(F.gelu(y), w, b).permute(0, 3, 1, 2) * g.view(-1, 1, 1) + x
            return F.conv2d(y, d, groups=channels)

        weights = (floats(channels, 1, 3, 3), floats(channels, channels) * 0.2, floats(channels), floats(channels))
        return Case(f"linear of channels-last pixels, {name}", call, (floats(batch, channels, 5, 7),), weights, 2e-5)

    return [
        inverted("whole blocks", 32, 1),
        inverted("tails", 21, 1),
        inverted("two images", 20, 2),
        Case("linear", F.linear, (floats(2, 5, 19),), (floats(33, 19), floats(33)), tolerance=2e-5),
        Case(
            "linear, scaled columns and a residual",
            lambda x, r, w, b, s: F.linear(x, w, b) * s + r,
            (floats(2, 5, 19), floats(2, 5, 33)),
            (floats(33, 19), floats(33), floats(33)),
            tolerance=2e-5,
        ),
        Case(
            "linear, computed columns and slopes",
            lambda x, s, w: F.prelu(F.linear(x, w) + torch.exp(s), s),
            (floats(5, 19), floats(33)),
            (floats(33, 19),),
            tolerance=2e-5,
        ),
        Case(
            "linear, one slope",
            lambda x, w, a: F.prelu(F.linear(x, w), a),
            (floats(2, 5, 19),),
            (floats(33, 19), floats(1)),
            tolerance=2e-5,
        ),
        Case(
            "linear, gated",
            lambda x, w, v: F.silu(F.linear(x, w)) * F.linear(x, v),
            (floats(2, 5, 19),),
            (floats(33, 19), floats(33, 19)),
            tolerance=2e-5,
        ),
        Case("linear vector", F.linear, (floats(19),), (floats(33, 19),), tolerance=2e-5),
        Case("linear computed", F.linear, (floats(5, 19), floats(7, 19), floats(7)), tolerance=2e-5),
        Case(
            "linear half", F.linear, (floats(5, 19).half(),), (floats(7, 19).half(), floats(7).half()), tolerance=3e-3
        ),
        Case("linear bf16", F.linear, (floats(5, 19).bfloat16(),), (floats(7, 19).bfloat16(),), tolerance=2e-2),
        Case("addmm", torch.addmm, (floats(7), floats(5, 6), floats(6, 7)), tolerance=2e-5),
        Case(
            "addmm scaled",
            lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=2),
            (floats(5, 7), floats(5, 6), floats(6, 7)),
            tolerance=2e-5,
        ),
        Case("matmul weight", torch.matmul, (floats(2, 3, 5, 6),), (floats(6, 7),), tolerance=2e-5),
        Case("matmul", torch.matmul, (floats(2, 3, 5, 6), floats(3, 6, 7)), tolerance=2e-5),
        Case("matmul shared", torch.matmul, (floats(2, 3, 5, 6), floats(6, 7)), tolerance=2e-5),
        Case("matmul left", torch.matmul, (floats(5, 6), floats(3, 6, 7)), tolerance=2e-5),
        Case("matmul vector", torch.matmul, (floats(2, 3, 6), floats(6)), tolerance=2e-5),
        Case("matmul vectors", torch.matmul, (floats(6), floats(6)), tolerance=2e-5),
        Case("vector matmul", torch.matmul, (floats(6), floats(2, 6, 5)), tolerance=2e-5),
        Case(
            "bmm transposed",
            lambda a, b: torch.bmm(a, b.transpose(1, 2)),
            (floats(3, 5, 20), floats(3, 33, 20)),
            tolerance=2e-5,
        ),
        Case("baddbmm", torch.baddbmm, (floats(3, 5, 7), floats(3, 5, 6), floats(3, 6, 7)), tolerance=2e-5),
        Case("matmul int", torch.matmul, (integers(4, 20), integers(20, 5))),
        Case("matmul double", torch.matmul, (floats(4, 20).double(), floats(20, 5).double()), tolerance=1e-12),
        Case("int_mm", torch._int_mm, (integers(32, 24, **int8), integers(24, 16, **int8))),
        Case("attention", F.scaled_dot_product_attention, (q, k, v), tolerance=2e-5),
        Case(
            "attention causal",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            (q, k, v),
            tolerance=2e-5,
        ),
        Case(
            "attention mask",
            lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
            (q, k, v, booleans(2, 1, 7, 9)),
            tolerance=2e-5,
        ),
        Case(
            "attention bias",
            lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.3),
            (q, k, v, floats(7, 9)),
            tolerance=2e-5,
        ),
        Case(
            "attention hidden row",
            lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
            (q, k, v, torch.arange(7).view(7, 1).expand(7, 9) > 2),
            tolerance=2e-5,
        ),
        Case(
            "attention groups",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            (floats(2, 6, 7, 8), k, v),
            tolerance=2e-5,
        ),
    ]
