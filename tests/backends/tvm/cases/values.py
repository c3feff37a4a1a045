"""What a case is, and random tensors for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


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
