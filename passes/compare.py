"""How far two programs, artifacts or tensors are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shave.ir.errors import ShaveError

Array = npt.NDArray[Any]


class CompareError(ShaveError, ValueError):
    """Two results cannot be compared: their number, names or shapes differ."""


@dataclass(frozen=True)
class Difference:
    """How far a tensor is from its reference.

    Elements that are not finite count as equal where both are the same (NaN with NaN, an infinity with itself) and as
    infinitely far apart elsewhere.

    Attributes:
        max_abs: Largest absolute difference.
        max_rel: ``max_abs`` over the largest finite magnitude in the reference; 0 if there is no difference.
        sqnr_db: Signal to quantization noise, ``10 log10(sum(reference**2) / sum(difference**2))``, in dB; infinite
            if there is no difference.
        cosine: Cosine of the angle between the two as vectors; 1 if there is no difference.
        top1: Share of rows (all axes but the last) whose largest element is at the same place; None for tensors of
            fewer than two axes and for rows of one element.
        equal: Share of elements that are exactly equal.
    """

    max_abs: float
    max_rel: float
    sqnr_db: float
    cosine: float
    top1: float | None
    equal: float

    def to_json(self) -> dict[str, Any]:
        """Give plain data; numbers that JSON lacks become the texts ``inf``, ``-inf`` and ``nan``."""
        return {
            name: value if value is None or math.isfinite(value) else str(value) for name, value in vars(self).items()
        }

    def __str__(self) -> str:
        top1 = "" if self.top1 is None else f", top-1 agrees {100 * self.top1:.2f} %"
        return (
            f"max abs {self.max_abs:.3g}, max rel {self.max_rel:.3g}, SQNR {self.sqnr_db:.1f} dB, "
            f"cosine {self.cosine:.6f}{top1}"
        )


def difference(reference: Any, other: Any) -> Difference:
    """Compare two tensors or arrays of one shape, in float64.

    Raises:
        CompareError: The shapes differ: nothing is broadcast.
    """
    want, got = to_float64(reference), to_float64(other)
    if want.shape != got.shape:
        raise CompareError(f"shapes differ: {list(want.shape)} and {list(got.shape)}")
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    finite = np.isfinite(want) & np.isfinite(got)
    top1 = _top1(want, got)
    if bool(same.all()):
        return Difference(0.0, 0.0, math.inf, 1.0, top1, 1.0)
    equal = float(same.mean())
    if not bool((finite | same).all()):
        return Difference(math.inf, math.inf, -math.inf, 0.0, top1, equal)
    a, b = want[finite], got[finite]
    noise = a - b
    largest = float(np.abs(noise).max())
    scale = float(np.abs(a).max())
    # Norms of scaled vectors: squares of very small or large numbers would leave the range of float64.
    norm_a, norm_b, norm_noise = (_norm(vector) for vector in (a, b, noise))
    return Difference(
        max_abs=largest,
        max_rel=largest / scale if scale else math.inf,
        sqnr_db=20 * math.log10(norm_a / norm_noise) if norm_a else -math.inf,
        cosine=float((a / norm_a) @ (b / norm_b)) if norm_a and norm_b else 0.0,
        top1=top1,
        equal=equal,
    )


def compare(
    reference: Callable[..., Any],
    other: Callable[..., Any],
    batches: Iterable[Sequence[Any]],
    names: Sequence[str] = (),
) -> dict[str, Difference]:
    """Call two programs (or artifacts, or modules) on the same inputs and compare their outputs.

    Args:
        reference: What is right.
        other: What is judged by it.
        batches: Input tuples; the outputs of all batches are taken together.
        names: Names of the outputs; by default ``output_0`` ...

    Returns:
        For each output its difference.

    Raises:
        CompareError: There is no batch, or the number or shapes of outputs differ.
    """
    wants: list[list[Array]] = []
    gots: list[list[Array]] = []
    for batch in batches:
        want, got = outputs_of(reference(*batch)), outputs_of(other(*batch))
        if len(want) != len(got):
            raise CompareError(f"the reference gives {len(want)} outputs, the other {len(got)}")
        wants.append([to_float64(value).ravel() if value.ndim == 0 else to_float64(value) for value in want])
        gots.append([to_float64(value).ravel() if value.ndim == 0 else to_float64(value) for value in got])
    if not wants:
        raise CompareError("there are no inputs to compare on")
    labels = list(names) or [f"output_{i}" for i in range(len(wants[0]))]
    return {
        label: _joined(label, [batch[i] for batch in wants], [batch[i] for batch in gots])
        for i, label in enumerate(labels)
    }


def outputs_of(result: Any) -> list[Any]:
    """The tensors in what a model returned: one, a sequence, or a mapping in its own order."""
    if isinstance(result, Mapping):
        return list(result.values())
    return list(result) if isinstance(result, (tuple, list)) else [result]


def to_float64(value: Any) -> Array:
    """Turn a torch tensor of any dtype, or an array, into a float64 array (complex numbers get a last axis of two)."""
    if hasattr(value, "detach"):
        import torch

        tensor = value.detach().cpu()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        return np.asarray(tensor.to(torch.float64).numpy())
    array = np.asarray(value)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], axis=-1)
    return array.astype(np.float64)


def _joined(label: str, wants: list[Array], gots: list[Array]) -> Difference:
    for want, got in zip(wants, gots, strict=True):
        if want.shape != got.shape:
            raise CompareError(f"{label}: shapes differ: {list(want.shape)} and {list(got.shape)}")
    if len({want.shape[1:] for want in wants}) > 1:  # sequences of several lengths: only elements can be joined
        wants, gots = [want.ravel() for want in wants], [got.ravel() for got in gots]
    return difference(np.concatenate(wants), np.concatenate(gots))


def _top1(want: Array, got: Array) -> float | None:
    if want.ndim < 2 or want.shape[-1] < 2 or want.size == 0:
        return None
    return float((want.argmax(axis=-1) == got.argmax(axis=-1)).mean())


def _norm(vector: Array) -> float:
    scale = float(np.abs(vector).max())
    return scale * float(np.linalg.norm(vector / scale)) if scale else 0.0
