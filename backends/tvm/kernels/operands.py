"""The operands of an epilogue as parameters of a kernel, and where in them a tile finds its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shave.backends.tvm.adapter import Expr
from shave.backends.tvm.kernels.base import Flat, tensor
from shave.backends.tvm.kernels.epilogue import CODE_NUMBERS, Epilogue, PerChannel, PerElement, Quantize

_Shape = Sequence["int | Expr"]


class _Operands:
    """What operands of all layouts have in common."""

    def __init__(self, epilogue: Epilogue, result: _Shape, channels: Callable[[PerChannel], _Shape]) -> None:
        """Declare the parameters.

        Args:
            epilogue: Whose operands they are.
            result: Shape of the kernel's result.
            channels: Shape of an operand with a value per channel.
        """
        self._steps = epilogue.operands
        self._tensors: list[Any] = []
        for step in self._steps:
            if isinstance(step, Quantize):
                self._tensors.append(tensor("operand", (CODE_NUMBERS,), "int32"))
            elif isinstance(step, PerElement):
                self._tensors.append(tensor("operand", result, step.dtype))
            else:
                self._tensors.append(tensor("operand", channels(step)))

    def flatten(self) -> None:
        """See them as rows of elements; inside the root block, ahead of :meth:`load`."""
        self._tensors = [Flat(operand) for operand in self._tensors]

    def _part(self, operand: int, at: int | Expr, channel: Callable[[PerChannel], int | Expr], width: int) -> Expr:
        """``width`` elements, at a position in the result or from a channel on, or one number of the last step."""
        last = len(self._steps) - 1
        step = self._steps[min(operand, last)]
        if isinstance(step, Quantize):
            return self._tensors[last].load(operand - last)
        return self._tensors[operand].load(at if isinstance(step, PerElement) else channel(step), width)


class BlockedOperands(_Operands):
    """Operands of a kernel with a blocked result [batch, blocks, *spatial, lanes].

    One value per channel is [blocks, lanes] (``base.pad_channels``), one per image and channel [batch, blocks, lanes].
    """

    def __init__(self, epilogue: Epilogue, result: _Shape) -> None:
        """Declare the parameters."""
        batch, self._blocks, *_, self._lanes = result
        one = (self._blocks, self._lanes)
        super().__init__(epilogue, result, lambda step: (batch, *one) if step.per_image else one)

    def load(
        self, operand: int, image: int | Expr, block: int | Expr, at: int | Expr, first: int | Expr, width: int
    ) -> Expr:
        """The part of an operand that meets ``width`` lanes of the result.

        Args:
            operand: Its number; from that of a :class:`Quantize` on, each number of its operand.
            image: Of the batch.
            block: Of channels.
            at: Position of the part in the result.
            first: First lane inside of its block.
            width: Number of lanes.
        """

        def channel(step: PerChannel) -> int | Expr:
            row = image * self._blocks + block if step.per_image else block
            return row * self._lanes + first

        return self._part(operand, at, channel, width)


class RowOperands(_Operands):
    """Operands of a kernel with a result of rows [..., columns]: one value per column is [columns]."""

    def __init__(self, epilogue: Epilogue, result: _Shape) -> None:
        """Declare the parameters."""
        assert not any(getattr(step, "per_image", False) for step in epilogue.operands), "rows belong to no image"
        super().__init__(epilogue, result, lambda _: result[-1:])

    def load(self, operand: int, column: int | Expr, at: int | Expr, width: int) -> Expr:
        """The part of an operand that meets ``width`` elements of the result, from ``column`` of a row on.

        Args:
            operand: Its number; from that of a :class:`Quantize` on, each number of its operand.
            column: The first of them.
            at: Position of the first of them in the result.
            width: Number of elements.
        """
        return self._part(operand, at, lambda _: column, width)
