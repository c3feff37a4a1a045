"""Cases of the family ``normalisation``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.backends.tvm.cases.values import Case, floats, positive


def _block(x: torch.Tensor, into: torch.Tensor, out: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A block of ConvNeXt: channels-last between two convolutions."""
    y = F.layer_norm(F.conv2d(x, into).permute(0, 2, 3, 1), (20,), w, b)
    return F.conv2d(y.permute(0, 3, 1, 2) * w[:, None, None], out)


def cases() -> list[Case]:
    x, image = floats(3, 5, 33), floats(2, 20, 5, 6)
    w, b = positive(33), floats(33)
    c, d = positive(20), floats(20)
    return [
        Case("softmax", lambda x: x.softmax(-1), (x * 5,)),
        Case("softmax inner", lambda x: x.softmax(1), (x,)),
        Case("softmax half", lambda x: x.softmax(-1), (floats(3, 40, dtype=torch.float16),), tolerance=2e-3),
        Case("log_softmax", lambda x: x.log_softmax(-1), (x,)),
        Case("layer_norm", lambda x, w, b: F.layer_norm(x, (33,), w, b), (x,), (w, b)),
        Case("layer_norm plain", lambda x: F.layer_norm(x, (5, 33)), (x,)),
        Case(
            "layer_norm of channels",
            _block,
            (image,),
            (floats(20, 20, 3, 3), floats(6, 20, 1, 1), c, d),
            tolerance=2e-5,
        ),
        Case("rms_norm", lambda x, w: F.rms_norm(x, (33,), w), (x,), (w,)),
        Case("group_norm", lambda x, w, b: F.group_norm(x, 4, w, b), (image,), (c, d)),
        Case("group_norm plain", lambda x: F.group_norm(x, 5), (image,)),
        Case("instance_norm", lambda x: F.instance_norm(x), (image,)),
        Case("batch_norm", lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), (image,), (d, c, c, d)),
        Case("local_response_norm", lambda x: F.local_response_norm(x, 3), (image,)),
        Case("layer_norm bf16", lambda x: F.layer_norm(x, (33,)), (x.bfloat16(),), tolerance=2e-2),
    ]
