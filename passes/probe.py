"""Inputs to try a program on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from shave.ir.dtypes import dtype_name
from shave.ir.errors import PipelineError, SignatureError
from shave.ir.program import Program
from shave.ir.shapes import hints

MAX_SAMPLES = 8


def as_inputs(program: Program, batch: Any) -> tuple[torch.Tensor, ...]:
    """Put one batch of data in the form and order of a program's inputs.

    Args:
        program: Whose signature decides.
        batch: A tuple or list in the order of the inputs, a mapping by input name, or a bare array or tensor.

    Raises:
        SignatureError: An input is missing or unknown, or has the wrong shape or dtype.
    """
    if isinstance(batch, Mapping):
        values = program.signature.bind((), batch)
    else:
        values = program.signature.bind(batch if isinstance(batch, (tuple, list)) else (batch,), {})
    tensors = tuple(map(_tensor, values))
    program.signature.check([tuple(t.shape) for t in tensors], [dtype_name(t.dtype) for t in tensors])
    return tensors


def probe_inputs(program: Program, calibration: Iterable[Any] | None = None, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Give inputs to try a program on: the first batch of calibration data, else random ones of the traced sizes.

    Of a large batch the first 8 samples are taken, where the program lets its size vary: programs are tried often.

    Random floats are drawn from the standard normal distribution. Integers of 16 bits and more are 0 or 1: they are
    mostly indices and masks, for which larger ones may be out of range. 8-bit integers are mostly pixels, and take all
    values.
    """
    if calibration is not None:
        for batch in calibration:
            return first_samples(program, as_inputs(program, batch))
        raise PipelineError("the calibration data holds no batch")
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random(node.meta["val"], generator) for node in program.inputs)


def first_samples(program: Program, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The first 8 samples of a batch, where the program lets its size vary; else all of it."""
    batch = {spec.shape[0] if spec.shape else None for spec in program.signature.inputs}
    name = batch.pop()
    if batch or not isinstance(name, str) or name not in program.signature.dims:
        return inputs
    low, _ = program.signature.dims[name]
    return tuple(tensor[: max(low, MAX_SAMPLES)] for tensor in inputs)


def _random(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shape, dtype = hints(value.shape), value.dtype
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(shape, generator=generator, dtype=wide).to(dtype)
    if dtype in (torch.int8, torch.uint8):
        bounds = torch.iinfo(dtype)
        return torch.randint(bounds.min, bounds.max + 1, shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        raise SignatureError(f"an input is a {type(value).__name__}, not a torch.Tensor or NumPy array")
    # A copy, as torch warns of arrays that cannot be written (mapped files are such).
    return torch.from_numpy(value if value.flags.writeable else value.copy())
