"""What is timed: well-known architectures with seeded random weights, and the real models of ``../shared/data``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn

import shave
from benchmarks.real_models import DATA, Array, RealModel, real_models
from benchmarks.torchvision_import import import_torchvision
from shave.ir.program import Program

IMAGE = (1, 3, 224, 224)
CALIBRATION_IMAGES = 4
TOKENS = 128


@dataclass(frozen=True)
class Model:
    """One row of the table.

    Attributes:
        name: How people call it.
        load: Gives the program for batch 1, every size fixed, and arrays to run it on.
    """

    name: str
    load: Callable[[], tuple[Program, list[Array]]]


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
        *(Model(name, lambda key=key: _image_model(_torchvision(key))) for name, key in vision.items()),  # type: ignore[misc]
        Model("ViT-tiny/16", lambda: _image_model(_vit_tiny)),
        Model("Swin-tiny", lambda: _image_model(_torchvision("swin_t"))),
        Model("BERT-base (128 tokens)", _bert),
    ]
    taken = {model.name for model in known}
    for model in real:
        name = f"{model.name} (trained)" if model.name in taken else model.name
        known.append(Model(name, lambda model=model: _trained(model)))  # type: ignore[misc]
    return known


def in_float(program: Program) -> Program:
    """Unpack the weights that lie as integers behind a dequantize call, so that every engine gets them in float."""
    program = program.clone()
    with program.rewrite("in-float") as rewriter:
        for node in program.calls:
            if not _is_packed_weight(node):
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), program.weight)
            weight = cast(Callable[..., torch.Tensor], node.target)(*args, **kwargs)
            rewriter.replace(node, rewriter.weight(f"{node.name}_float", weight.contiguous(), sources=[node]))
    return program


PRECISIONS: dict[str, Callable[[Program], Program]] = {"fp32": in_float}
"""What makes the program of a precision from the model as it is."""


def _is_packed_weight(node: fx.Node) -> bool:
    return "dequantize" in str(node.target) and all(source.op == "get_attr" for source in node.all_input_nodes)


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


def _normal(shape: tuple[int, ...]) -> Array:
    values: np.ndarray[Any, Any] = np.random.default_rng(0).standard_normal(shape)
    return values.astype(np.float32)
