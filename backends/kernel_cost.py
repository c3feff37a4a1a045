"""What each kernel of an artifact is there for, as its manifest tells: profiles compare its time with that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LARGEST = 1 << 62


@dataclass(frozen=True)
class KernelCost:
    """The work that one function of the library does in one call of the program.

    Attributes:
        name: Name of the function.
        family: The kernel family, or ``tail`` for scheduled code.
        calls: How often it is called.
        nodes: Names of the program's nodes that these calls compute.
        macs: Multiply-accumulates of all calls together.
        bytes: Bytes that these calls cannot avoid to read or write: the inputs and results of what they compute. Zero
            for a kernel that computes no node by itself, such as one that changes a layout.
        integers: Whether its multiply-accumulates are of 8-bit integers.
    """

    name: str
    family: str
    calls: int
    nodes: tuple[str, ...]
    macs: int
    bytes: int
    integers: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give plain data that :meth:`from_json` takes back."""
        return {**vars(self), "nodes": list(self.nodes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> KernelCost:
        """Rebuild one.

        Raises:
            TypeError: A field is of another type.
            ValueError: A number is negative or absurd.
            KeyError: A field is missing.
        """
        for name in ("name", "family"):
            if not isinstance(data[name], str):
                raise TypeError(f"{data[name]!r} is not text")
        for name in ("calls", "macs", "bytes"):
            if type(data[name]) is not int or not 0 <= data[name] < _LARGEST:
                raise ValueError(f"a kernel with {name} {data[name]!r}")
        if data["calls"] == 0:
            raise ValueError("a kernel that is never called")
        nodes = tuple(data["nodes"])
        if not all(isinstance(node, str) for node in nodes):
            raise TypeError("nodes that are not text")
        integers = data.get("integers", False)  # older artifacts do not tell
        if not isinstance(integers, bool):
            raise TypeError(f"{integers!r} is neither true nor false")
        return KernelCost(data["name"], data["family"], data["calls"], nodes, data["macs"], data["bytes"], integers)
