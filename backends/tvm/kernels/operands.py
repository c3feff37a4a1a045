"""The operands of an epilogue as parameters of a kernel, and where in them a tile finds its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shave.backends.tvm.adapter import Expr
from shave.backends.tvm.kernels.base import Flat, tensor
from shave.backends.tvm.kernels.epilogue import Epilogue, PerElement


class BlockedOperands:
    """Operands of a kernel with a blocked result [batch, blocks, *spatial, lanes].

    One value per channel is [blocks, lanes] (``base.pad_channels``), one per image and channel [batch, blocks, lanes].
    """

    def __init__(self, epilogue: Epilogue, result: Sequence[int | Expr]) -> None:
        """Declare the parameters."""
        batch, self._blocks, *_, self._lanes = result
        self._steps = epilogue.operands
        self._tensors: list[Any] = []
        for step in self._steps:
            if isinstance(step, PerElement):
                self._tensors.append(tensor("operand", result, step.dtype))
            else:
                shape = (batch, self._blocks, self._lanes) if step.per_image else (self._blocks, self._lanes)
                self._tensors.append(tensor("operand", shape))

    def flatten(self) -> None:
        """See them as rows of elements; inside the root block, ahead of :meth:`load`."""
        self._tensors = [Flat(operand) for operand in self._tensors]

    def load(
        self, operand: int, image: int | Expr, block: int | Expr, at: int | Expr, first: int | Expr, width: int
    ) -> Expr:
        """The part of an operand that meets ``width`` lanes of the result.

        Args:
            operand: Its number.
            image: Of the batch.
            block: Of channels.
            at: Position of the part in the result.
            first: First lane inside of its block.
            width: Number of lanes.
        """
        step, values = self._steps[operand], self._tensors[operand]
        if isinstance(step, PerElement):
            return values.load(at, width)
        row = image * self._blocks + block if step.per_image else block
        return values.load(row * self._lanes + first, width)


class RowOperands:
    """Operands of a kernel with a result of rows [..., columns]: one value per column is [columns]."""

    def __init__(self, epilogue: Epilogue, result: Sequence[int | Expr]) -> None:
        """Declare the parameters."""
        self._steps = epilogue.operands
        assert not any(getattr(step, "per_image", False) for step in self._steps), "rows belong to no image"
        self._tensors: list[Any] = [
            tensor("operand", result, step.dtype) if isinstance(step, PerElement) else tensor("operand", result[-1:])
            for step in self._steps
        ]

    def flatten(self) -> None:
        """See them as rows of elements; inside the root block, ahead of :meth:`load`."""
        self._tensors = [Flat(operand) for operand in self._tensors]

    def load(self, operand: int, column: int | Expr, at: int | Expr, width: int) -> Expr:
        """The part of an operand that meets ``width`` elements of the result, from ``column`` of a row on.

        Args:
            operand: Its number.
            column: The first of them.
            at: Position of the first of them in the result.
            width: Number of elements.
        """
        step, values = self._steps[operand], self._tensors[operand]
        return values.load(at if isinstance(step, PerElement) else column, width)
