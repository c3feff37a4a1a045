"""Cases of the family ``quantization``."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators

from tests.backends.tvm.cases.values import Case, floats, integers, positive

quantized = torch.ops.quantized_decomposed


def cases() -> list[Case]:
    x = floats(3, 5, 4) * 4
    scales, zeros = positive(5), integers(5)
    codes = integers(3, 5, 4, low=-128, high=128, dtype=torch.int8)
    return [
        Case("quantize", lambda x: quantized.quantize_per_tensor(x, 0.05, 3, -128, 127, torch.int8), (x,)),
        Case(
            "quantize half steps",
            lambda x: quantized.quantize_per_tensor(x, 0.5, 0, 0, 255, torch.uint8),
            (torch.arange(-3, 9) / 4,),
        ),
        Case("dequantize", lambda x: quantized.dequantize_per_tensor(x, 0.05, 3, -128, 127, torch.int8), (codes,)),
        Case(
            "quantize channel",
            lambda x, s, z: quantized.quantize_per_channel(x, s, z, 1, -128, 127, torch.int8),
            (x,),
            (scales, zeros),
        ),
        Case(
            "dequantize channel",
            lambda x, s, z: quantized.dequantize_per_channel(x, s, z, 1, -128, 127, torch.int8),
            (codes,),
            (scales, zeros),
        ),
        Case(
            "dequantize weight",
            lambda x, w, s, z: x + quantized.dequantize_per_channel(w, s, z, 1, -128, 127, torch.int8),
            (x,),
            (codes, scales, zeros),
        ),
    ]
