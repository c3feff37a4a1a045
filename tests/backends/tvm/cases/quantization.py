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
        Case(
            "choose",
            lambda x: quantized.choose_qparams.tensor(x, -128, 127, 1e-9, torch.int8),
            (x,),
        ),
        Case("choose rows", lambda x: quantized.choose_qparams_per_token_asymmetric(x, torch.int8), (x,)),
        Case(
            "quantize by computed numbers",
            lambda x, s, z: quantized.quantize_per_tensor.tensor(x, s, z, 0, 250, torch.uint8),
            (x, torch.full((1,), 0.0625, dtype=torch.float64), torch.full((1,), 7)),
        ),
        Case(
            "dequantize by computed numbers",
            lambda x, s, z: quantized.dequantize_per_tensor.tensor(x, s, z, -128, 127, torch.int8),
            (codes, torch.full((1,), 0.0625, dtype=torch.float64), torch.full((1,), 7)),
        ),
        Case(
            "quantize rows",
            lambda x, s, z: quantized.quantize_per_token(x, s, z, -128, 127, torch.int8),
            (x, positive(3, 5, 1).double(), integers(3, 5, 1)),
        ),
        Case(
            "dequantize rows",
            lambda x, s, z: quantized.dequantize_per_token(x, s, z, -128, 127, torch.int8, torch.float32),
            (codes, positive(3, 5, 1).double(), integers(3, 5, 1)),
        ),
    ]
