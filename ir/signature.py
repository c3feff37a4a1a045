"""Names, shapes and dtypes at the border of a program. Free of torch, so that a runtime can use it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shave.ir.errors import SignatureError

Dim = int | str
"""A size: a number, or an expression over named dynamic dimensions (``batch``, ``2*batch``)."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor at the border of a program.

    Attributes:
        name: Its name; unique among all inputs and outputs.
        shape: Sizes; a string names a dynamic dimension or an expression over such names.
        dtype: NumPy's name of the dtype (``float32``, ``int64``, ``bfloat16``, ``bool`` ...).
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a program, and the ranges of its dynamic dimensions.

    Attributes:
        inputs: In the order of the positional arguments.
        outputs: In the order of the results.
        dims: For every named dynamic dimension its smallest and largest size; None means no upper bound.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)

    def __str__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"({inputs}) -> ({outputs})"

    def bind(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        """Put positional and named arguments in the order of the inputs.

        Raises:
            SignatureError: An input is missing, unknown or given twice.
        """
        names = [spec.name for spec in self.inputs]
        if len(arguments) > len(names):
            raise SignatureError(
                f"{len(arguments)} inputs given, but the program takes {len(names)}: {', '.join(names)}"
            )
        bound = dict(zip(names, arguments, strict=False))
        for name, value in named.items():
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SignatureError(f"no input is named {name!r}; the inputs are {', '.join(names)}{hint}")
            if name in bound:
                raise SignatureError(f"input {name!r} is given twice")
            bound[name] = value
        if missing := [name for name in names if name not in bound]:
            raise SignatureError(f"missing input {', '.join(map(repr, missing))}; the program takes {self}")
        return [bound[name] for name in names]

    def check(self, shapes: Sequence[Sequence[int]], dtypes: Sequence[str]) -> dict[str, int]:
        """Check shapes and dtypes of all inputs, in order, and solve for the dynamic dimensions.

        Returns:
            The size of each dynamic dimension that stands alone in some input's shape.

        Raises:
            SignatureError: Names the first input and dimension that does not fit.
        """
        sizes: dict[str, int] = {}
        for spec, shape, dtype in zip(self.inputs, shapes, dtypes, strict=True):
            if dtype != spec.dtype:
                raise SignatureError(f"input {spec.name!r} has dtype {dtype}, but the program takes {spec}")
            if len(shape) != len(spec.shape):
                raise SignatureError(f"input {spec.name!r} has {len(shape)} dimensions, but the program takes {spec}")
            for axis, (size, want) in enumerate(zip(shape, spec.shape, strict=True)):
                where = f"input {spec.name!r}, dimension {axis}"
                if isinstance(want, int):
                    if size != want:
                        raise SignatureError(f"{where} is {size}, but the program takes {spec}")
                elif want in self.dims:
                    low, high = self.dims[want]
                    if size < low or (high is not None and size > high):
                        raise SignatureError(f"{where} ({want}) is {size}, outside of {low} to {high or 'any'}")
                    if sizes.setdefault(want, size) != size:
                        raise SignatureError(f"{where} ({want}) is {size}, but {want} is {sizes[want]} elsewhere")
        return sizes

    def to_json(self) -> dict[str, Any]:
        """Give plain data that :meth:`from_json` takes back."""
        return {
            "inputs": [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in self.inputs],
            "outputs": [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in self.outputs],
            "dims": {name: list(bounds) for name, bounds in self.dims.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Signature:
        """Rebuild a signature from :meth:`to_json`'s data.

        Raises:
            SignatureError: The data is not of that form.
        """
        try:
            specs = [
                tuple(TensorSpec(str(s["name"]), tuple(map(_dim, s["shape"])), str(s["dtype"])) for s in data[side])
                for side in ("inputs", "outputs")
            ]
            dims = {
                str(name): (int(low), None if high is None else int(high)) for name, (low, high) in data["dims"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SignatureError(f"not a signature: {error!r}") from error
        return Signature(specs[0], specs[1], dims)


def unique_names(names: Sequence[str]) -> list[str]:
    """Make names usable and distinct, keeping each as close to the original as can be."""
    taken: set[str] = set()
    result = []
    for name in names:
        base = name or "value"
        unique, count = base, 1
        while unique in taken:
            unique, count = f"{base}_{count}", count + 1
        taken.add(unique)
        result.append(unique)
    return result


def identifier(name: str) -> str:
    """Turn any name into a Python identifier (``conv.0/weight`` becomes ``conv_0_weight``)."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
    return f"_{name}" if name[0].isdigit() else name


def _dim(value: Any) -> Dim:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{value!r} is not a size")
    return value
