"""Products of two tensors of 8-bit codes that both depend on the inputs, as in attention that is written out.

What such a product is multiplied with, and what rounds it to codes again, is done by its kernel.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import fx

from shave.backends.tvm.quantized import Codes, dequantized, quantized
from shave.backends.tvm.regions import Region
from shave.backends.tvm.views import scaled_by
from shave.ir.ops import op_name

_WITHOUT_ADDEND = ("aten.matmul", "aten.mm", "aten.bmm", "aten.linear")
_WITH_ADDEND = ("aten.addmm", "aten.baddbmm")


@dataclass(frozen=True)
class CodeProduct(Region):
    """A product and what its kernel does to the result.

    Attributes:
        factor: What the result is multiplied by, ahead of its being rounded.
    """

    factor: float = 1.0


def find_code_products(graph: fx.Graph, taken: Collection[fx.Node] = ()) -> dict[fx.Node, CodeProduct]:
    """The regions of all such products.

    Args:
        graph: Every node carries its FakeTensor.
        taken: Nodes that belong to other regions.
    """
    regions = {}
    for node in graph.nodes:
        if node.op == "call_function" and node not in taken and factors(node) is not None:
            regions[node] = _region(node, taken)
    return regions


def factors(node: fx.Node) -> tuple[Codes, Codes] | None:
    """The codes that a call multiplies; None where it multiplies anything else."""
    name = op_name(node)
    if name not in (*_WITHOUT_ADDEND, *_WITH_ADDEND):
        return None
    first = 1 if name in _WITH_ADDEND else 0
    left, right = (_codes(argument) for argument in node.args[first : first + 2])
    return None if left is None or right is None else (left, right)


def _codes(node: Any) -> Codes | None:
    codes = dequantized(node)
    return codes if codes is not None and codes.node.op != "get_attr" and codes.node.meta["val"].dim() else None


def _region(product: fx.Node, taken: Collection[fx.Node]) -> CodeProduct:
    nodes, factor = [product], 1.0
    if op_name(product) in _WITH_ADDEND or (op_name(product) == "aten.linear" and len(product.args) > 2):
        return CodeProduct((product,))
    while True:
        readers = list(nodes[-1].users)
        if len(readers) != 1 or readers[0].op != "call_function" or readers[0] in taken:
            return CodeProduct(tuple(nodes), factor=factor)
        (reader,) = readers
        number, codes = scaled_by(reader), quantized(reader)
        if codes is not None:
            return CodeProduct((*nodes, reader), codes=codes, factor=factor)
        if number is None:
            return CodeProduct(tuple(nodes), factor=factor)
        nodes.append(reader)
        factor *= number
