"""What is timed: well-known architectures with seeded random weights, and the real models of ``../shared/data``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

import shave
from benchmarks.latency.precisions import Samples
from benchmarks.real_models import DATA, Array, RealModel, real_models
from benchmarks.torchvision_import import import_torchvision
from shave.ir.program import Program

IMAGE = (1, 3, 224, 224)
CALIBRATION_IMAGES = 4
TOKENS = 128
RANDOM_SAMPLES = 8
TRAINED_SAMPLES = 100


@dataclass(frozen=True)
class Model:
    """One row of the table.

    Attributes:
        name: How people call it.
        load: Gives the program for batch 1, every size fixed, and arrays to run it on.
        samples: Gives inputs like those, to quantize from; none of them is what it is run on.
    """

    name: str
    load: Callable[[], tuple[Program, list[Array]]]
    samples: Callable[[], Samples]


def models() -> list[Model]:
    """Every model that can be had here; what a library is missing for fails when it is loaded."""
    vision = {
        "ResNet-18": "resnet18",
        "ResNet-50": "resnet50",
        "VGG-16": "vgg16",
        "MobileNetV2": "mobilenet_v2",
        "MobileNetV3-large": "mobilenet_v3_large",
        "EfficientNet-B0": "efficientnet_b0",
        "DenseNet-121": "densenet121",
        "SqueezeNet 1.1": "squeezenet1_1",
        "ConvNeXt-tiny": "convnext_tiny",
    }
    real = real_models() if DATA.is_dir() else []
    known = [
        *(Model(name, lambda key=key: _image_model(_torchvision(key)), _images) for name, key in vision.items()),  # type: ignore[misc]
        Model("ViT-tiny/16", lambda: _image_model(_vit_tiny), _images),
        Model("Swin-tiny", lambda: _image_model(_torchvision("swin_t")), _images),
        Model("BERT-base (128 tokens)", _bert, _sentences),
    ]
    taken = {model.name for model in known}
    for model in real:
        name = f"{model.name} (trained)" if model.name in taken else model.name
        known.append(Model(name, lambda model=model: _trained(model), _samples_of(model)))  # type: ignore[misc]
    return known


# Random weights


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: cast(nn.Module, getattr(import_torchvision().models, name)(weights=None))


def _vit_tiny() -> nn.Module:
    import_torchvision()  # before timm does
    import timm

    module: nn.Module = timm.create_model("vit_tiny_patch16_224")
    return module


def _image_model(make: Callable[[], nn.Module]) -> tuple[Program, list[Array]]:
    torch.manual_seed(0)
    module = make()
    settle(module, torch.randn(CALIBRATION_IMAGES, *IMAGE[1:]))
    return shave.trace(module, (torch.zeros(IMAGE),)), [_normal(IMAGE)]


def _images() -> Samples:
    return [[_normal(IMAGE, seed)] for seed in range(1, 1 + RANDOM_SAMPLES)]


class _Encoder(nn.Module):
    """Token ids [1, tokens] to hidden states [1, tokens, 768]."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.model = BertModel(BertConfig(), add_pooling_layer=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.model(input_ids=ids).last_hidden_state)


def _bert() -> tuple[Program, list[Array]]:
    torch.manual_seed(0)
    import_torchvision()  # before transformers does
    module = _Encoder()
    ids = torch.randint(1000, (1, TOKENS))
    settle(module, ids)
    return shave.trace(module, (ids,)), [ids.numpy()]


def _sentences() -> Samples:
    random = np.random.default_rng(1)
    return [[random.integers(1000, size=(1, TOKENS))] for _ in range(RANDOM_SAMPLES)]


def settle(module: nn.Module, inputs: torch.Tensor) -> None:
    """Give random weights the magnitudes of trained ones, so that a difference anywhere shows in the outputs.

    Untrained networks fade out or explode over their depth, and start layers with scales of zero. Vectors (biases,
    scales of normalisations and of layers) are drawn anew, and batch norms take the statistics of ``inputs``.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.squeeze().dim() == 1:
                scales = not name.endswith("bias")
                parameter.copy_(torch.rand_like(parameter) + 0.5 if scales else 0.1 * torch.randn_like(parameter))
        module.eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the mean over all batches seen, of which there is one
                layer.reset_running_stats()
                layer.train()
        module(inputs)
        module.eval()


# Trained weights


def _trained(model: RealModel) -> tuple[Program, list[Array]]:
    """The model with its batch fixed to 1, as it would be deployed, and its first test sample."""
    sample = np.ascontiguousarray(model.test_set()[0][:1])
    return shave.trace(model.load().module, (torch.from_numpy(sample),)), [sample]


def _samples_of(model: RealModel) -> Callable[[], Samples]:
    return lambda: [[batch] for batch in model.batches(TRAINED_SAMPLES, 1)]


def _normal(shape: tuple[int, ...], seed: int = 0) -> Array:
    values: np.ndarray[Any, Any] = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(np.float32)
