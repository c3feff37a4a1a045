"""Whole model families with random weights: the compiled artifact gives what torch eager gives."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import shave
from benchmarks.zoo import randomise

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.timeout(1200),
    # Model packages warn of their own future.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

TOLERANCE = 1e-3
"""Largest difference, relative to the largest magnitude of the output."""

TORCHVISION = {
    "alexnet": 224,
    "convnext_tiny": 224,
    "densenet121": 224,
    "efficientnet_b0": 224,
    "efficientnet_v2_s": 224,
    "googlenet": 224,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 224,
    "mobilenet_v2": 224,
    "mobilenet_v3_large": 224,
    "mobilenet_v3_small": 224,
    "regnet_x_400mf": 224,
    "regnet_y_400mf": 224,
    "resnet18": 224,
    "resnet50": 224,
    "resnext50_32x4d": 224,
    "shufflenet_v2_x1_0": 224,
    "squeezenet1_1": 224,
    "swin_t": 224,
    "swin_v2_t": 224,
    "vgg11": 224,
    "vgg11_bn": 224,
    "vit_b_32": 224,
    "wide_resnet50_2": 224,
}

TIMM = [
    "resnet18",
    "mobilenetv3_small_100",
    "efficientnet_lite0",
    "deit_tiny_patch16_224",
    "mixer_s32_224",
    "convmixer_768_32",
    "repvgg_a0",
    "ghostnet_100",
    "levit_128s",
    "poolformer_s12",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "xcit_nano_12_p16_224",
    "coat_lite_tiny",
    "hardcorenas_a",
    "rexnet_100",
    "dla34",
    "hrnet_w18_small",
]


def check(module: nn.Module, *inputs: torch.Tensor, dynamic_shapes: Any = None, others: Any = ()) -> None:
    """Compile and compare on the traced inputs, and on ``others`` of other sizes."""
    module.eval()
    randomise(module)
    program = shave.trace(module, inputs, dynamic_shapes=dynamic_shapes)
    artifact = shave.compile(program)
    for each in (inputs, *others):
        with torch.no_grad():
            expected = _flat(module(*each))
        outputs = artifact(*each)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert len(outputs) == len(expected)
        for output, want in zip(outputs, expected, strict=True):
            want = want.numpy()
            assert output.shape == want.shape
            assert output.dtype == want.dtype
            assert np.isfinite(want).all()
            assert np.abs(want).max() > 0
            assert np.abs(output - want).max() <= TOLERANCE * np.abs(want).max()


def _flat(outputs: Any) -> list[torch.Tensor]:
    """What a module returns, as the program returns it."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    module = torchvision.models.get_model(name, weights=None, **options)
    check(module, torch.randn(1, 3, TORCHVISION[name], TORCHVISION[name]))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_32"])
def test_dynamic_batch(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None)
    sizes = [(torch.randn(n, 3, 224, 224),) for n in (1, 3)]
    check(module, torch.randn(2, 3, 224, 224), dynamic_shapes={"x": {0: "batch"}}, others=sizes)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False)
    size = module.default_cfg["input_size"]
    check(module, torch.randn(1, *size))


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=500, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    return BertModel(config)


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig(vocab_size=500, dim=128, n_layers=2, n_heads=4, hidden_dim=256))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=4, use_cache=False))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Tokens(nn.Module):
    """A language model that takes token numbers alone and gives its first output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, return_dict=False)[0]


@pytest.mark.parametrize("make", [bert, distilbert, gpt2, llama], ids=lambda make: make.__name__)
def test_transformers(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    tokens = functools.partial(torch.randint, 0, 500)
    check(Tokens(make()), tokens((2, 17)))
    check(
        Tokens(make()),
        tokens((2, 17)),
        dynamic_shapes={"tokens": {0: "batch", 1: "length"}},
        others=[(tokens((1, 5)),), (tokens((3, 40)),)],
    )
