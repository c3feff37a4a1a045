"""The six trained models of ``../shared/data`` with their labelled test data, as their SOURCES.md describe them.

With inputs to calibrate from, none of which is in the test data.
"""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import shave
from shave.ir.program import Program

DATA = Path(__file__).parents[2] / "shared" / "data"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RealModel:
    """A trained model and how to judge it.

    Attributes:
        name: How people call it.
        load: Gives the program, with a dynamic batch.
        test_set: Gives inputs [N, ...] float32 and labels [N].
        calibration: Gives inputs [M, ...] float32 that are not in the test set.
        accuracy: Top-1 in percent that the model reached where it was handed over.
        source: The model's file.
    """

    name: str
    load: Callable[[], Program]
    test_set: Callable[[], tuple[Array, Array]]
    calibration: Callable[[], Array]
    accuracy: float
    source: Path

    def batches(self, count: int, size: int) -> list[Array]:
        """Batches of ``count`` calibration inputs, spread over all there are."""
        inputs = self.calibration()
        inputs = inputs[:: max(1, len(inputs) // count)][:count]
        return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def imagenet(scale: float, shift: float) -> tuple[Array, Array]:
    """1000 validation images, the centre 224 of 227 pixels, ``pixel * scale + shift``, and labels."""
    folder = DATA / "imagenet_val1000"
    with (folder / "labels.csv").open() as file:
        labels = {row["file"]: int(row["label"]) for row in csv.DictReader(file)}
    images = {name: image for name, image in _imagenet(folder / "images_227.tar", 1) if name in labels}
    return np.stack(list(images.values())) * scale + shift, np.array([labels[name] for name in images])


def imagenet_calibration(scale: float, shift: float) -> Array:
    """334 other images, the centre 224 of 256 pixels, ``pixel * scale + shift``."""
    images = [image for _, image in _imagenet(DATA / "imagenet_calibration334" / "images_256.tar", 16)]
    return np.stack(images) * scale + shift


def _imagenet(archive: Path, margin: int) -> Iterator[tuple[str, Array]]:
    """Names and pixels [3, 224, 224], RGB 0 to 255 as float32."""
    from PIL import Image

    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            stream = opened.extractfile(member)
            if stream is None:
                continue
            pixels = np.asarray(Image.open(stream).convert("RGB"), np.float32)[margin:, margin:][:224, :224]
            yield member.name, pixels.transpose(2, 0, 1)


def cifar10() -> tuple[Array, Array]:
    """10,000 test images, RGB 0 to 255 as float32 [N, 3, 32, 32], and labels."""
    return _cifar10("test_10000")


def cifar10_training() -> tuple[Array, Array]:
    """20,000 training images, RGB 0 to 255 as float32 [N, 3, 32, 32], and labels."""
    halves = [_cifar10("train_0_10000"), _cifar10("train_1_10000")]
    return np.concatenate([images for images, _ in halves]), np.concatenate([labels for _, labels in halves])


def _cifar10(part: str) -> tuple[Array, Array]:
    from PIL import Image

    sheet = np.asarray(Image.open(DATA / "cifar10" / f"{part}.webp").convert("RGB"), np.float32)
    tiles = sheet.reshape(sheet.shape[0] // 32, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    return tiles, np.load(DATA / "cifar10" / "labels.npz")[part].astype(np.int64)


def normalised_cifar10() -> tuple[Array, Array]:
    """The same with ImageNet's mean and standard deviation taken out."""
    images, labels = cifar10()
    return normalise_cifar10(images), labels


def normalise_cifar10(images: Array) -> Array:
    """Take ImageNet's mean and standard deviation out of pixels from 0 to 255."""
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
    deviation = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
    return (images.astype(np.float32) / 255 - mean) / deviation


def speech_commands(features: str, part: str = "test_1100") -> tuple[Array, Array]:
    """1100 test clips as features, float32, and labels; ``calib_550`` is the other part."""
    data = np.load(DATA / "speech_commands" / f"{part}.npz")
    return data[features].astype(np.float32), data["label"].astype(np.int64)


def speech_commands_dscnn() -> tuple[Array, Array]:
    """The same for the DS-CNN, which orders its classes by its own list."""
    inputs, labels = speech_commands("dscnn_features")
    common = ["_silence_", "_unknown_", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
    own = ["down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "_silence_", "_unknown_"]
    return inputs[:, None], np.array([own.index(common[label]) for label in labels])


class _Shortcut(nn.Module):
    """Every second pixel, and zeros for the channels that are new (option A of the paper)."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4))


class _Block(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = _Shortcut(planes) if stride != 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al. 2015, section 4.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load_resnet20() -> ResNet20:
    """With its trained weights, for inference."""
    checkpoint = torch.load(DATA / "models_cifar10" / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    module = ResNet20().eval()
    module.load_state_dict({name.removeprefix("module."): value for name, value in checkpoint["state_dict"].items()})
    return module


def _resnet20() -> Program:
    return shave.trace(load_resnet20(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes={"x": {0: "N"}})


def _onnx(name: str) -> tuple[Callable[[], Program], Path]:
    path = DATA / name
    return lambda: shave.read(path), path


def real_models() -> list[RealModel]:
    """All six."""
    darknet, darknet_path = _onnx("models_imagenet/tiny_darknet_fp32.onnx")
    mobilenet, mobilenet_path = _onnx("models_imagenet/mobilenetv2_1.0_224_tf2_wdq.onnx")
    kwt, kwt_path = _onnx("speech_commands/kwt1_fp32.onnx")
    dscnn, dscnn_path = _onnx("speech_commands/mlperf_tiny_dscnn_fp32.onnx")
    resnet8, resnet8_path = _onnx("models_cifar10/mlperf_tiny_resnet8_cifar10.onnx")
    resnet20_path = DATA / "models_cifar10" / "resnet20-12fca82f.th"
    return [
        RealModel(
            "Tiny Darknet",
            darknet,
            lambda: imagenet(1 / 255, 0),
            lambda: imagenet_calibration(1 / 255, 0),
            69.6,
            darknet_path,
        ),
        RealModel(
            "MobileNetV2",
            mobilenet,
            lambda: imagenet(1 / 127.5, -1),
            lambda: imagenet_calibration(1 / 127.5, -1),
            79.2,
            mobilenet_path,
        ),
        RealModel(
            "KWT-1",
            kwt,
            lambda: speech_commands("kwt_features"),
            lambda: speech_commands("kwt_features", "calib_550")[0],
            97.27,
            kwt_path,
        ),
        RealModel(
            "DS-CNN",
            dscnn,
            speech_commands_dscnn,
            lambda: speech_commands("dscnn_features", "calib_550")[0][:, None],
            91.55,
            dscnn_path,
        ),
        RealModel(
            "ResNet-20",
            _resnet20,
            normalised_cifar10,
            lambda: normalise_cifar10(cifar10_training()[0]),
            91.73,
            resnet20_path,
        ),
        RealModel("ResNet-8", resnet8, cifar10, lambda: cifar10_training()[0], 87.19, resnet8_path),
    ]


def accuracy(run: Callable[[Array], Any], inputs: Array, labels: Array, batch: int = 8) -> float:
    """Top-1 in percent; ``run`` takes a batch and gives logits."""
    correct = 0
    for start in range(0, len(inputs), batch):
        logits = np.asarray(run(np.ascontiguousarray(inputs[start : start + batch])))
        correct += int((logits.argmax(-1) == labels[start : start + batch]).sum())
    return 100 * correct / len(inputs)
