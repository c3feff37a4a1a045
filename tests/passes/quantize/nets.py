"""Small models with what quantization meets: residual sums, concatenation, gates, attention, normalisations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from shave.ir.from_torch import trace
from shave.ir.program import Program
from shave.passes.manager import PassManager


class Residual(nn.Module):
    """A stem, a residual block and a head, as in ResNets; odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 13, 3, padding=1)
        self.first = nn.Conv2d(13, 13, 3, padding=1)
        self.second = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.head = nn.Linear(13, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.stem(x).relu(), 2)
        y = self.second(self.first(x).relu())
        return self.head((x + y).relu().mean((2, 3)))


class Branches(nn.Module):
    """Concatenation, a split, resizing, and a gate from pooled values."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.squeeze = nn.Conv2d(12, 12, 1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.last = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.left(x).relu(), nn.functional.silu(self.right(x))], 1)
        y = y * self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1)).sigmoid()
        first, second = self.up(y).chunk(2, 1)
        return self.last(first + nn.functional.interpolate(second, scale_factor=1))


class LayerNorm(nn.Module):
    """Written out, as ONNX exporters do."""

    def __init__(self, size: int, form: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.bias = nn.Parameter(torch.randn(size))
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.form == "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight
        if self.form == "l2":
            return x / x.norm(dim=-1, keepdim=True)
        if self.form == "moments":
            mean = x.mean(-1, keepdim=True)
            return (x - mean) / ((x * x).mean(-1, keepdim=True) - mean * mean + 1e-5).sqrt() * self.weight + self.bias
        if self.form == "twice":
            variance = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
            return (x - x.mean(-1, keepdim=True)) * (variance + 1e-5).pow(-0.5) * self.weight
        if self.form == "var":
            return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        centred = x - x.mean(-1, keepdim=True)
        power = centred.pow(2) if self.form == "pow" else centred * centred
        return centred / torch.sqrt(power.mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


class Transformer(nn.Module):
    """One pre-norm block: attention of separate matrix products, GELU, residual sums."""

    def __init__(self, form: str = "fused", width: int = 12) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) if form == "fused" else LayerNorm(width, form) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 30), nn.Linear(30, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        scores = (self.q(y) @ self.k(y).transpose(-1, -2) * 0.3).softmax(-1)
        x = x + self.o(scores @ self.v(y))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


def residual() -> Program:
    return _traced(Residual(), torch.randn(2, 3, 11, 9))


def branches() -> Program:
    return _traced(Branches(), torch.randn(2, 3, 6, 7))


def transformer(form: str = "fused") -> Program:
    return _traced(Transformer(form), torch.randn(2, 7, 12))


CASES: dict[str, Callable[[], Program]] = {
    "residual": residual,
    "branches": branches,
    "transformer": transformer,
}


def batches(program: Program, count: int = 4, size: int = 8) -> list[tuple[torch.Tensor, ...]]:
    """Random calibration data."""
    generator = torch.Generator().manual_seed(9)
    shape = [size, *program.inputs[0].meta["val"].shape[1:]]
    return [(torch.randn(shape, generator=generator),) for _ in range(count)]


def _traced(module: nn.Module, example: torch.Tensor) -> Program:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    program = trace(module.eval(), (example,), dynamic_shapes={"x": {0: "N"}})
    simple = PassManager("simplify").run(program)
    simple.report = ()
    return simple
