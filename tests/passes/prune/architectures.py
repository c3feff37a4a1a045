"""Small networks, one for each way in which channels hang together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """A network from layers and a function of the network and its input."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def conv(channels: int, out: int, size: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, padding=size // 2, **options)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        layer.weight.normal_()
        layer.bias.normal_()
    return layer


IMAGE = (2, 3, 8, 8)
TOKENS = (2, 9, 6)


def residual() -> nn.Module:
    return Net(
        lambda m, x: m.head(F.relu(m.norm(m.stem(x)) + m.body(F.relu(m.stem(x)))).mean((2, 3))),
        stem=conv(3, 8), norm=norm(8), body=conv(8, 8), head=nn.Linear(8, 5),
    )  # fmt: skip


def concatenated() -> nn.Module:
    return Net(lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 6), b=conv(3, 10), out=conv(16, 4))


def concatenated_with_itself() -> nn.Module:
    return Net(lambda m, x: m.out(torch.cat([m.a(x), m.a(x)], 1)), a=conv(3, 6), out=conv(12, 4))


def added_pieces() -> nn.Module:
    """A concatenation added to one layer whose channels it takes apart."""
    return Net(
        lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1) + m.c(x)),
        a=conv(3, 6), b=conv(3, 10), c=conv(3, 16), out=conv(16, 4),
    )  # fmt: skip


def halves() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.a(x).chunk(2, 1)
        return m.out(a * torch.sigmoid(b))

    return Net(forward, a=conv(3, 12), out=conv(6, 4))


def uneven_pieces() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b, c = m.a(x).split([3, 5, 4], 1)
        return m.x(a) + m.y(b) + m.z(F.relu(c))

    return Net(forward, a=conv(3, 12), x=conv(3, 4), y=conv(5, 4), z=conv(4, 4))


def depthwise() -> nn.Module:
    return Net(
        lambda m, x: m.point(F.relu6(m.norm(m.depth(m.stem(x))))),
        stem=conv(3, 8), depth=conv(8, 8, groups=8), norm=norm(8), point=conv(8, 4, 1),
    )  # fmt: skip


def depthwise_with_multiplier() -> nn.Module:
    return Net(
        lambda m, x: m.point(m.depth(m.stem(x))), stem=conv(3, 6), depth=conv(6, 12, groups=6), point=conv(12, 4, 1)
    )


def grouped() -> nn.Module:
    return Net(
        lambda m, x: m.out(F.relu(m.grouped(m.stem(x)))),
        stem=conv(3, 12), grouped=conv(12, 8, groups=4), out=conv(8, 5, 1),
    )  # fmt: skip


def transposed() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.up(m.stem(x))),
        stem=conv(3, 8), up=nn.ConvTranspose2d(8, 6, 2, stride=2), out=conv(6, 3, 1),
    )  # fmt: skip


def transposed_grouped() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.up(m.stem(x))),
        stem=conv(3, 8), up=nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), out=conv(12, 3, 1),
    )  # fmt: skip


def shuffled() -> nn.Module:
    """Two units of ShuffleNet."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        for branch in (m.first, m.second):
            a, b = x.chunk(2, 1)
            x = torch.cat([a, branch(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.out(x)

    return Net(forward, stem=conv(3, 24), first=conv(12, 12), second=conv(12, 12), out=conv(24, 4, 1))


def flattened() -> nn.Module:
    return Net(lambda m, x: m.head(F.max_pool2d(m.stem(x), 2).flatten(1)), stem=conv(3, 8), head=nn.Linear(8 * 16, 5))


def windows() -> nn.Module:
    """Attention within windows of 4x4 pixels, as in Swin, over channels last."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = m.norm(x).view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = m.qkv(y).reshape(y.shape[0], 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = (q * 0.4) @ k.transpose(-2, -1)
        scores = scores + m.bias.table.weight.permute(2, 0, 1).unsqueeze(0)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(y.shape[0], 16, c)
        y = m.proj(y).view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return m.head((x + y).mean((1, 2)))

    bias = nn.Module()
    bias.table = nn.Module()
    bias.table.weight = nn.Parameter(torch.randn(16, 16, 2))
    return Net(
        forward, stem=conv(3, 8), norm=nn.LayerNorm(8), qkv=nn.Linear(8, 24), proj=nn.Linear(8, 8),
        head=nn.Linear(8, 4), bias=bias,
    )  # fmt: skip


def grouped_queries() -> nn.Module:
    """Four query heads share two key heads, expanded by hand; as in Llama, and with rotary positions."""

    def rotated(x: Tensor, angles: Tensor) -> Tensor:
        one, other = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-other, one], -1) * angles.sin()

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        x = m.into(x)
        angles = torch.arange(length)[:, None] * torch.cat([m.rope.inverse, m.rope.inverse])
        y = m.norm(x)
        q = rotated(m.q(y).view(n, length, 4, 4).transpose(1, 2), angles)
        k = rotated(m.k(y).view(n, length, 2, 4).transpose(1, 2), angles)
        v = m.v(y).view(n, length, 2, 4).transpose(1, 2)
        k, v = (each[:, :, None].expand(n, 2, 2, length, 4).reshape(n, 4, length, 4) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + m.o(y.transpose(1, 2).reshape(n, length, 16))
        return m.head(x + m.down(F.silu(m.gate(x)) * m.up(x)))

    rope = nn.Module()
    rope.register_buffer("inverse", torch.tensor([1.0, 0.1]))
    layers = {
        "into": nn.Linear(6, 8), "norm": nn.RMSNorm(8), "q": nn.Linear(8, 16), "k": nn.Linear(8, 8),
        "v": nn.Linear(8, 8), "o": nn.Linear(16, 8), "gate": nn.Linear(8, 20), "up": nn.Linear(8, 20),
        "down": nn.Linear(20, 8), "head": nn.Linear(8, 5), "rope": rope,
    }  # fmt: skip
    return Net(forward, **layers)


def grouped_queries_in_one_operator() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = m.q(x).view(n, length, 6, 4).transpose(1, 2)
        k, v = (each(x).view(n, length, 2, 4).transpose(1, 2) for each in (m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.o(y.transpose(1, 2).reshape(n, length, 24))

    return Net(forward, q=nn.Linear(6, 24), k=nn.Linear(6, 8), v=nn.Linear(6, 8), o=nn.Linear(24, 5))


def fused_attention() -> nn.Module:
    """Queries, keys and values from one layer, one after the other."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (each.view(n, length, 2, 4).transpose(1, 2) for each in m.qkv(m.into(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v)
        return m.o(y.transpose(1, 2).reshape(n, length, 8))

    return Net(forward, into=nn.Linear(6, 8), qkv=nn.Linear(8, 24), o=nn.Linear(8, 5))


def attention_over_channels() -> nn.Module:
    """Keys and queries are transposed: scores are between channels, as in XCiT."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = m.qkv(x).view(n, length, 3, 2, 4).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        y = (scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(n, length, 8)
        return m.o(y)

    return Net(forward, qkv=nn.Linear(6, 24), o=nn.Linear(8, 5))


def gated() -> nn.Module:
    return Net(lambda m, x: m.down(F.glu(m.up(x), -1)), up=nn.Linear(6, 24), down=nn.Linear(12, 5))


def layer_norms() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.second(m.first(m.into(x)) + 1)),
        into=nn.Linear(6, 8), first=nn.LayerNorm(8), second=nn.LayerNorm(8, elementwise_affine=False),
        head=nn.Linear(8, 4),
    )  # fmt: skip


def group_norm() -> nn.Module:
    return Net(lambda m, x: m.out(m.norm(m.stem(x))), stem=conv(3, 12), norm=nn.GroupNorm(3, 12), out=conv(12, 4))


def instance_norm() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.norm(m.stem(x))), stem=conv(3, 6), norm=nn.InstanceNorm2d(6, affine=True), out=conv(6, 4)
    )


def prelu() -> nn.Module:
    return Net(lambda m, x: m.out(m.act(m.stem(x))), stem=conv(3, 8), act=nn.PReLU(8), out=conv(8, 4))


def pixel_shuffle() -> nn.Module:
    return Net(lambda m, x: m.out(F.pixel_shuffle(m.stem(x), 2)), stem=conv(3, 24), out=conv(6, 4))


def pixel_unshuffle() -> nn.Module:
    return Net(lambda m, x: m.out(F.pixel_unshuffle(m.stem(x), 2)), stem=conv(3, 6), out=conv(24, 4))


def squeeze_excite() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        scale = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return m.out(x * scale)

    return Net(forward, stem=conv(3, 12), down=conv(12, 4, 1), up=conv(4, 12, 1), out=conv(12, 4))


def shared_layer() -> nn.Module:
    """One layer applied twice: what it takes and what it gives are the same channels."""
    return Net(
        lambda m, x: m.head(m.body(torch.tanh(m.body(m.into(x))))),
        into=nn.Linear(6, 8), body=nn.Linear(8, 8), head=nn.Linear(8, 4),
    )  # fmt: skip


def tied_embedding() -> nn.Module:
    """A language model whose head is its table of embeddings."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        tokens = (x[..., 0].abs() * 10).long() % 7
        return F.linear(m.norm(m.table(tokens) + m.position.weight[: tokens.shape[1]]), m.table.weight)

    return Net(forward, table=nn.Embedding(7, 8), position=nn.Embedding(9, 8), norm=nn.LayerNorm(8))


def padded_channels() -> nn.Module:
    """The shortcut without weights of ResNet-20: channels of zeros on both sides."""
    return Net(
        lambda m, x: m.out(m.body(m.stem(x)) + F.pad(m.stem(x)[:, :, ::2, ::2], (0, 0, 0, 0, 3, 5))),
        stem=conv(3, 8), body=nn.Conv2d(8, 16, 3, stride=2, padding=1), out=conv(16, 4),
    )  # fmt: skip


def standardised_weights() -> nn.Module:
    """Weights are normalised over what they take before each use."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        weight = m.body.weight
        flat = F.batch_norm(weight.reshape(1, weight.shape[0], -1), None, None, training=True)
        return m.out(F.relu(F.conv2d(x, flat.reshape(weight.shape), m.body.bias, padding=1)))

    return Net(forward, stem=conv(3, 8), body=conv(8, 10), out=conv(10, 4))


def statistics_over_channels() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        mean, top = x.mean(1, keepdim=True), x.amax(1, keepdim=True)
        spread = x.std(1, correction=0, keepdim=True) + torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return m.out(x.softmax(1) * torch.sigmoid(mean + top) + x.log_softmax(1) / spread) + x.sum((1, 2, 3))[0]

    return Net(forward, stem=conv(3, 8), out=conv(8, 4))


def contracted_by_letters() -> nn.Module:
    return Net(
        lambda m, x: m.out(torch.einsum("nlc,ndc->nld", m.a(x), m.b(x)).softmax(-1) @ m.c(x)),
        a=nn.Linear(6, 8), b=nn.Linear(6, 8), c=nn.Linear(6, 10), out=nn.Linear(10, 4),
    )  # fmt: skip


def mixer() -> nn.Module:
    """Layers over tokens, and layers over channels."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.into(x)
        x = x + m.tokens_down(F.gelu(m.tokens_up(m.norm(x).transpose(1, 2)))).transpose(1, 2)
        return m.head(x.mean(1))

    return Net(
        forward, into=nn.Linear(6, 8), norm=nn.LayerNorm(8), tokens_up=nn.Linear(9, 12), tokens_down=nn.Linear(12, 9),
        head=nn.Linear(8, 4),
    )  # fmt: skip


def class_token() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.extra.token.expand(x.shape[0], -1, -1), x], 1) + m.extra.position
        return m.head(m.norm(x)[:, 0] * m.extra.scale)

    extra = nn.Module()
    extra.token = nn.Parameter(torch.randn(1, 1, 8))
    extra.position = nn.Parameter(torch.randn(1, 5, 8))
    extra.scale = nn.Parameter(torch.randn(8))
    return Net(forward, patches=nn.Conv2d(3, 8, 4, stride=4), norm=nn.LayerNorm(8), head=nn.Linear(8, 4), extra=extra)


def every_other_channel() -> nn.Module:
    return Net(
        lambda m, x: m.out(torch.stack([-m.a(x)[..., 1::2], m.a(x)[..., ::2]], -1).flatten(-2) * m.b(x)),
        a=nn.Linear(6, 8), b=nn.Linear(6, 8), out=nn.Linear(8, 4),
    )  # fmt: skip


def resized() -> nn.Module:
    return Net(
        lambda m, x: m.out(F.interpolate(F.avg_pool2d(m.stem(x), 2), scale_factor=2, mode="bilinear")),
        stem=conv(3, 8), out=conv(8, 4),
    )  # fmt: skip


def tiled_positions() -> nn.Module:
    """Tiling names the last axes alone."""
    extra = nn.Module()
    extra.position = nn.Parameter(torch.randn(1, 8, 4, 2))
    return Net(
        lambda m, x: m.out(F.relu(m.stem(x) + m.extra.position.tile((2, 4)))),
        stem=conv(3, 8),
        out=conv(8, 4),
        extra=extra,
    )


ON_IMAGES = (
    residual, concatenated, concatenated_with_itself, added_pieces, halves, uneven_pieces, depthwise,
    depthwise_with_multiplier, grouped, transposed, transposed_grouped, shuffled, flattened, windows, group_norm,
    instance_norm, prelu, pixel_shuffle, pixel_unshuffle, squeeze_excite, padded_channels, standardised_weights,
    statistics_over_channels, class_token, resized, tiled_positions,
)  # fmt: skip
ON_TOKENS = (
    grouped_queries, grouped_queries_in_one_operator, fused_attention, attention_over_channels, gated, layer_norms,
    shared_layer, tied_embedding, contracted_by_letters, mixer, every_other_channel,
)  # fmt: skip
EVERY = {make.__name__: (make, IMAGE) for make in ON_IMAGES} | {make.__name__: (make, TOKENS) for make in ON_TOKENS}
