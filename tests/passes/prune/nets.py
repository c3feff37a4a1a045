"""Small networks to prune, with all that couples channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from shave.ir.from_torch import trace
from shave.ir.program import Program


class Residual(nn.Module):
    """A stem, a block that is added to it, a strided layer, and a classifier; norms with statistics of their own."""

    def __init__(self, widths: tuple[int, int, int] = (8, 6, 10)) -> None:
        super().__init__()
        stem, inner, last = widths
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        self.conv1 = nn.Conv2d(stem, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, stem, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(stem)
        self.down = nn.Conv2d(stem, last, 3, stride=2)
        self.head = nn.Linear(last, 5)
        with torch.no_grad():
            for norm in (self.norm, self.norm1, self.norm2):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


class Separable(nn.Module):
    """An inverted residual: pointwise, depthwise, pointwise; then a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(6, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(x))))
        return self.head((x + self.project(y)).flatten(1))


class Perceptron(nn.Module):
    """Two hidden layers."""

    def __init__(self, hidden: int = 12) -> None:
        super().__init__()
        self.first = nn.Linear(7, hidden)
        self.second = nn.Linear(hidden, hidden - 3)
        self.head = nn.Linear(hidden - 3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Transformer(nn.Module):
    """One block: embedding, attention over four heads, MLP, all in a stream with layer norms."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(y)
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.head(x.mean(1))


def residual() -> Program:
    """[N, 3, 8, 8] to [N, 5]."""
    return traced(Residual, (2, 3, 8, 8), True)


def wide() -> Program:
    """The same with more channels, for one sample."""
    return traced(lambda: Residual((24, 32, 40)), (1, 3, 8, 8), False)


def separable() -> Program:
    """[N, 3, 8, 8] to [N, 5]."""
    return traced(Separable, (2, 3, 8, 8), True)


def perceptron(hidden: int = 12) -> Program:
    """[N, 7] to [N, 4]."""
    return traced(lambda: Perceptron(hidden), (2, 7), True)


def transformer() -> Program:
    """[2, 5, 6] to [2, 3]."""
    return traced(Transformer, (2, 5, 6), False)


NETS: dict[str, Callable[[], Program]] = {
    "residual": residual,
    "separable": separable,
    "perceptron": perceptron,
    "transformer": transformer,
}


def data(program: Program, batches: int = 6, size: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, ...]]:
    """Calibration data: low-rank inputs with a mean, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        inputs = []
        for spec in program.signature.inputs:
            shape = [dim if isinstance(dim, int) else size for dim in spec.shape]
            flat = shape[0], int(torch.Size(shape[1:]).numel())
            factors = torch.randn(flat[0], 6, generator=generator) @ torch.randn(
                6, flat[1], generator=torch.Generator().manual_seed(seed)
            )
            inputs.append((factors / 6**0.5 + 0.2 * torch.randn(flat, generator=generator) + 0.1).reshape(shape))
        found.append(tuple(inputs))
    return found


def traced(make: Callable[[], nn.Module], shape: tuple[int, ...], batch: bool) -> Program:
    """Make a module with the same weights for every caller, and trace it; ``batch`` lets the first axis vary."""
    torch.manual_seed(0)
    module = make().eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    dynamic = {"x": {0: "N"}} if batch else None
    return trace(module, (torch.randn(shape),), dynamic_shapes=dynamic)
