"""Cases of the family ``winograd``: convolutions whose weights were transformed ahead."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from shave.ir.winograd import transform_weight, winograd_conv2d
from tests.backends.tvm.cases.values import Case, floats


def cases() -> list[Case]:
    def case(x: tuple[int, ...], out: int, padding: tuple[int, int], tile: int, bias: bool = True) -> Case:
        weight = transform_weight(floats(out, x[1], 3, 3) / (3 * x[1] ** 0.5), tile).float()
        weights = (weight, *((floats(out),) if bias else ()))

        def call(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
            return winograd_conv2d(x, w, b, padding, tile)

        # Both sides round; the error grows with the tile.
        return Case(f"winograd {tile}, {x}", call, (floats(*x),), weights, {2: 1e-6, 4: 5e-6, 6: 5e-5}[tile])

    def block(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.relu(winograd_conv2d(x, w, b, (1, 1), 4) + x)

    def pooled(name: str, x: tuple[int, ...], pool: dict[str, Any], tolerance: float = 5e-6) -> Case:
        def call(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return functional.max_pool2d(functional.relu(winograd_conv2d(x, w, b, (1, 1), 4)), **pool)

        return Case(f"winograd, {name}", call, (floats(*x),), (weight, floats(24)), tolerance)

    weight = transform_weight(floats(24, 24, 3, 3) / 15, 4).float()
    return [
        pooled("pooled", (1, 24, 12, 9), {"kernel_size": 2}),
        pooled("pooled, two images", (2, 24, 7, 14), {"kernel_size": (2, 2), "stride": 2}),
        pooled("pooled beyond the end", (1, 24, 7, 10), {"kernel_size": 2, "ceil_mode": True}),
        pooled("pooled by overlapping windows", (1, 24, 8, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
        pooled("pooled one pixel apart", (1, 24, 8, 9), {"kernel_size": 2, "stride": 1}),
        Case("winograd, residual and relu", block, (floats(1, 24, 7, 9),), (weight, floats(24)), 5e-6),
        case((1, 16, 8, 8), 16, (1, 1), 4),
        case((2, 20, 9, 7), 35, (1, 1), 2),
        case((3, 3, 5, 14), 40, (0, 2), 6, bias=False),
        case((1, 70, 1, 1), 5, (1, 1), 4),
    ]
