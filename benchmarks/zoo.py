"""Public models with random weights, at the smallest inputs that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.torchvision_import import import_torchvision

LISTS = Path(__file__).parents[1] / "tests" / "sweep"

Case = tuple[nn.Module, tuple[Any, ...]]
"""A model in evaluation mode, and inputs for it."""

SIZES = (64, 96, 128, 160, 224, 256)
FRAMES = (8, 16)


def names() -> dict[str, list[str]]:
    """Every model by its source."""
    torchvision = [line.split() for line in _lines("torchvision_models.txt")]
    return {
        "torchvision classification": [name for part, name in torchvision if part == "classification"],
        "torchvision other": [name for part, name in torchvision if part != "classification"],
        "timm": _lines("timm_models.txt"),
        "transformers": list(_TRANSFORMERS),
    }


def _lines(file: str) -> list[str]:
    return [line for line in (LISTS / file).read_text().splitlines() if not line.startswith("#")]


def load(source: str, name: str) -> Case:
    """Make a model.

    Raises:
        RuntimeError: It runs at none of the sizes that were tried; the last error is in the message.
    """
    torch.manual_seed(0)
    import_torchvision()
    if source == "timm":
        return _timm(name)
    if source == "transformers":
        return _TRANSFORMERS[name]()
    return _torchvision(name)


def randomise(module: nn.Module) -> None:
    """Make a fresh model worth comparing: batch norms have mean 0 and variance 1, and some weights are all zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02, generator=generator)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.8, 1.25, generator=generator)


def _first_that_runs(cases: Iterator[Callable[[], Case]]) -> Case:
    failure: Exception | None = None
    for make in cases:
        try:
            module, inputs = make()
            module.eval()
            with torch.no_grad():
                module(*inputs)
        except Exception as error:  # noqa: PERF203 - a model says in many ways that it does not take a size
            failure = error
        else:
            randomise(module)
            return module, inputs
    raise RuntimeError(f"it runs at no size that was tried: {failure}") from failure


def _torchvision(name: str) -> Case:
    models = import_torchvision().models
    builder = models.get_model_builder(name)
    family = builder.__module__.split(".")[2]
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if family in ("segmentation", "detection"):
        options["weights_backbone"] = None
    module = models.get_model(name, **options)

    def inputs(size: int, frames: int) -> tuple[Any, ...]:
        if family == "video":
            return (torch.randn(1, 3, frames, size, size),)
        if family == "optical_flow":
            return torch.randn(1, 3, size, size), torch.randn(1, 3, size, size)
        if family == "detection":
            return ([torch.rand(3, size, size)],)
        return (torch.randn(1, 3, size, size),)

    sizes = product(SIZES, FRAMES if family == "video" else (1,))
    return _first_that_runs((lambda each=each: (module, inputs(*each))) for each in sizes)  # type: ignore[misc]


def _timm(name: str) -> Case:
    import timm

    def cases() -> Iterator[Callable[[], Case]]:
        resizable = True
        for size in SIZES[:3]:
            try:
                module = timm.create_model(name, img_size=size)
            except TypeError:
                resizable = False
                break
            except Exception:  # the size does not fit its windows or patches
                continue
            yield lambda module=module, size=size: (module, (torch.randn(1, 3, size, size),))  # type: ignore[misc]
        module = timm.create_model(name)
        channels, *own = module.default_cfg["input_size"]
        for size in SIZES[:3] if not resizable else ():
            yield lambda size=size: (module, (torch.randn(1, channels, size, size),))  # type: ignore[misc]
        yield lambda: (module, (torch.randn(1, channels, *own),))

    return _first_that_runs(cases())


class Tokens(nn.Module):
    """A language model that takes token numbers alone and gives its first output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(input_ids=tokens, return_dict=False)[0]
        return result


class Pixels(nn.Module):
    """An image model that gives its first output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(pixel_values=pixels, return_dict=False)[0]
        return result


def _tokens(model: str, config: str, **sizes: Any) -> Callable[[], Case]:
    def make() -> Case:
        import transformers

        module = getattr(transformers, model)(getattr(transformers, config)(vocab_size=500, **sizes))
        return _first_that_runs(iter([lambda: (Tokens(module), (torch.randint(0, 500, (2, 17)),))]))

    return make


def _pixels(model: str, config: str, size: int, **sizes: Any) -> Callable[[], Case]:
    def make() -> Case:
        import transformers

        module = getattr(transformers, model)(getattr(transformers, config)(image_size=size, **sizes))
        return _first_that_runs(iter([lambda: (Pixels(module), (torch.randn(1, 3, size, size),))]))

    return make


_TRANSFORMERS: dict[str, Callable[[], Case]] = {
    "bert": _tokens(
        "BertModel", "BertConfig", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    ),
    "distilbert": _tokens("DistilBertModel", "DistilBertConfig", dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "gpt2": _tokens("GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4, use_cache=False),
    "llama (grouped queries)": _tokens(
        "LlamaForCausalLM", "LlamaConfig", hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False,
    ),
    "t5 encoder": _tokens(
        "T5EncoderModel", "T5Config", d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, use_cache=False
    ),
    "vit": _pixels(
        "ViTModel", "ViTConfig", 64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    ),
    "mobilevit": _pixels("MobileViTModel", "MobileViTConfig", 64),
}  # fmt: skip
