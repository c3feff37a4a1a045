"""Train the two example models, a small CNN and a small transformer, and write them as ONNX.

    python -m examples.train_digits                      # rewrites examples/models in about five minutes
    python -m examples.train_digits --output elsewhere --epochs 1

Plain PyTorch: nothing of shave is needed to make its input. There is no early stop and no choice between epochs: the
held-out digits only measure. (Settings were chosen with a quarter of the training digits set aside.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import sklearn
import torch
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule, remove_optional_bias_from_conv_rule
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from examples.digits import CLASSES, HELD_OUT_EVERY, Digits, held_out, training

MODELS = Path(__file__).parent / "models"
OPSET = 18
SEED = 0
LEARNING_RATE = 2e-3


class Residual(nn.Module):
    """Depthwise 3x3, then pointwise convolution, each with batch norm; the input is added before the last ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        y = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(x + self.norm2(self.pointwise(y)))


class DigitsCNN(nn.Module):
    """Full convolutions where the image shrinks, depthwise residual blocks where it does not, global pooling."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(Residual(width), Residual(width))
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.stage2 = nn.Sequential(Residual(2 * width), Residual(2 * width))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [N, 1, 8, 8] to scores [N, 10]."""
        y = self.stage2(self.down(self.stage1(self.stem(image))))
        return self.head(self.pool(y).flatten(1))


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, T, width] to the same shape."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One encoder layer with the norms in front: attention, then an MLP with GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [N, T, width] to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitsTransformer(nn.Module):
    """A vision transformer on 16 overlapping patches of 4x4 pixels, with learned positions and mean pooling."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [N, 1, 8, 8] to scores [N, 10]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def augment(images: Tensor) -> Tensor:
    """Move each image [N, 1, 8, 8] by up to one pixel, turn it by up to 12 degrees, scale it by up to a tenth."""
    count = len(images)
    angle = (2 * torch.rand(count) - 1) * math.radians(12)
    scale = 1 + 0.1 * (2 * torch.rand(count) - 1)
    shift = (2 * torch.rand(count, 2) - 1) / 4  # the image spans -1 to 1, so one of eight pixels is 1/4
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    moves = torch.stack((cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]), dim=1).view(count, 2, 3)
    return F.grid_sample(images, F.affine_grid(moves, list(images.shape), align_corners=False), align_corners=False)


def train(model: nn.Module, data: Digits, epochs: int, progress: Progress) -> None:
    """Fit ``model`` in place with AdamW under a one-cycle learning rate."""
    images, labels = (torch.from_numpy(array) for array in data)
    batch = 64
    steps = math.ceil(len(images) / batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, epochs=epochs, steps_per_epoch=steps
    )
    model.train()
    for _ in progress.track(range(epochs), description=f"train {type(model).__name__}"):
        for picked in torch.randperm(len(images)).split(batch):
            loss = F.cross_entropy(model(augment(images[picked])), labels[picked], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def export(model: nn.Module) -> bytes:
    """The model as one ONNX file with weights inside, checked, and free to choose its batch size."""
    example = torch.zeros(2, 1, 8, 8)
    exported = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        optimize=False,  # it would fold the batch norms, which is left to shave; the lines below do the rest of it
        verbose=False,
    )
    assert exported is not None
    optimizer.fold_constants(exported.model, onnx_shape_inference=True)
    rewriter.rewrite(exported.model, [materialize_reshape_shape_rule, remove_optional_bias_from_conv_rule])
    optimizer.remove_unused_nodes(exported.model)
    proto = exported.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces with the paths of this machine
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def correct(model: bytes, data: Digits) -> int:
    """How many of the digits an ONNX model classifies rightly, by ONNX Runtime."""
    images, labels = data
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": images})
    return int(np.sum(scores.argmax(1) == labels))


def main() -> None:
    """Train, export, measure, and write once everything has succeeded."""
    parser = argparse.ArgumentParser(description="Train the two example models and write them as ONNX.")
    parser.add_argument("--output", type=Path, default=MODELS, help="folder for the models and ACCURACY.json")
    parser.add_argument("--epochs", type=int, default=250, help="passes over the training digits (default: 250)")
    options = parser.parse_args()

    torch.set_num_threads(1)  # sums in one order, whatever the machine
    torch.use_deterministic_algorithms(True)
    models: dict[str, bytes] = {}
    with Progress(console=Console(stderr=True)) as progress:
        for name, build in (("digits_cnn", DigitsCNN), ("digits_transformer", DigitsTransformer)):
            torch.manual_seed(SEED)
            model = build()
            train(model, training(), options.epochs, progress)
            models[name] = export(model)

    measured = held_out()
    count = len(measured[1])
    measurements: dict[str, dict[str, object]] = {}
    record = {
        "data": "sklearn.datasets.load_digits, pixels divided by 16",
        "split": f"held out: every {HELD_OUT_EVERY}th image of each class, beginning with its first",
        "training_images": len(training()[1]),
        "held_out_images": count,
        "seed": SEED,
        "epochs": options.epochs,
        "opset": OPSET,
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (np, onnx, onnxruntime, sklearn, torch)},
        },
        "models": measurements,
    }
    for name, file in models.items():
        right = correct(file, measured)
        measurements[name] = {
            "accuracy": round(right / count, 4),
            "correct": right,
            "bytes": len(file),
            "sha256": hashlib.sha256(file).hexdigest(),
        }
        print(f"{name}: {right} of {count} held-out digits right ({right / count:.2%}), {len(file):,} bytes")

    options.output.mkdir(parents=True, exist_ok=True)
    for name, file in models.items():
        (options.output / f"{name}.onnx").write_bytes(file)
    (options.output / "ACCURACY.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
