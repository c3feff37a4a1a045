"""Cases of the family ``movement``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.backends.tvm.cases.values import Case, floats


def cases() -> list[Case]:
    x, v = floats(2, 6, 5), floats(4, 6)
    return [
        Case("view", lambda x: x.reshape(3, 20), (x,)),
        Case("permute", lambda x: x.permute(2, 0, 1), (x,)),
        Case("transpose", lambda x: x.transpose(1, 2), (x,)),
        Case("t", lambda x: x.t(), (v,)),
        Case("mT", lambda x: x.mT, (x,)),
        Case("movedim", lambda x: x.movedim(0, 2), (x,)),
        Case("unsqueeze", lambda x: x.unsqueeze(1), (x,)),
        Case("squeeze", lambda x: x.squeeze(1), (floats(3, 1, 2),)),
        Case("flatten", lambda x: x.flatten(1), (x,)),
        Case("expand", lambda x: x.expand(3, 4, 6), (v,)),
        Case("expand 1", lambda x: x.expand(4, 6), (floats(4, 1),)),
        Case("repeat", lambda x: x.repeat(2, 1, 3), (x,)),
        Case("repeat new", lambda x: x.repeat(2, 3, 1), (v,)),
        Case("repeat_interleave", lambda x: x.repeat_interleave(3, 1), (x,)),
        Case("slice", lambda x: x[:, 1:5:2, -3:], (x,)),
        Case("select", lambda x: x[1, :, -1], (x,)),
        Case("split", lambda x: torch.split(x, 4, 1), (x,)),
        Case("split sizes", lambda x: torch.split(x, [1, 3, 1], 2), (x,)),
        Case("chunk", lambda x: x.chunk(3, 1), (x,)),
        Case("unbind", lambda x: x.unbind(0), (x,)),
        Case("cat", lambda a, b: torch.cat([a, b, a], 1), (x, floats(2, 3, 5))),
        Case("cat last", lambda a, b: torch.cat([a, b], -1), (x, floats(2, 6, 3))),
        Case("stack", lambda a, b: torch.stack([a, b], 1), (x, x + 1)),
        Case("flip", lambda x: x.flip([0, 2]), (x,)),
        Case("roll", lambda x: x.roll([2, -1], [1, 2]), (x,)),
        Case("roll flat", lambda x: x.roll(3), (x,)),
        Case("diagonal", lambda x: x.diagonal(1, 1, 2), (x,)),
        Case("unfold", lambda x: x.unfold(1, 3, 2), (x,)),
        Case("tril", lambda x: x.tril(1), (x,)),
        Case("triu", lambda x: x.triu(-1), (x,)),
        Case("pad", lambda x: F.pad(x, (1, 2, 3, 0), value=1.5), (x,)),
        Case("pad crop", lambda x: F.pad(x, (-1, 2)), (x,)),
        Case("pad reflect", lambda x: F.pad(x, (2, 1), mode="reflect"), (x,)),
        Case("pad replicate", lambda x: F.pad(x, (2, 1, 3, 1), mode="replicate"), (floats(1, 2, 4, 5),)),
        Case("pad circular", lambda x: F.pad(x, (2, 1), mode="circular"), (x,)),
        Case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (floats(2, 8, 3, 2),)),
        Case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (floats(2, 2, 4, 6),)),
        Case("channel_shuffle", lambda x: F.channel_shuffle(x, 3), (floats(2, 6, 3, 2),)),
        Case("im2col", lambda x: F.unfold(x, 3, padding=1), (floats(1, 2, 5, 6),)),
        Case("arange add", lambda x: x + torch.arange(5), (x,)),
        Case("arange step", lambda x: x + torch.arange(1.0, 2.0, 0.2), (x,)),
        Case("full", lambda x: torch.full_like(x, 2.0) + torch.ones(5) + torch.zeros(6, 1), (x,)),
        Case("linspace", lambda x: x + torch.linspace(-1, 1, 5), (x,)),
        Case("eye", lambda x: x[:, :5] + torch.eye(5), (x,)),
        Case("tile", lambda x: x.tile(2, 2), (v,)),
        Case("rot90", lambda x: x.rot90(1, [0, 1]), (v,)),
    ]
