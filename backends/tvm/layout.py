"""The two layouts of a value, and the changes between them.

*Plain* is row-major in the order of the operator's own dimensions. *Blocked* is [N, ceil(C / B), *spatial, B]: one
vector holds B = ``target.lanes`` channels of one pixel; where C is no multiple of B, the last block has lanes that hold
nothing and that nobody reads. A :class:`Value` starts in the layout its producer made; the other one is made
when somebody asks for it, once. So a chain of convolutions, additions and poolings stays blocked from end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shave.backends.tvm.adapter import relax, te, tirx
from shave.backends.tvm.sizes import Size


@dataclass
class Value:
    """One tensor of the program being emitted.

    Attributes:
        shape: Its extents in the plain layout.
        dtype: NumPy's name of its dtype.
        plain: The Relax variable that holds it in the plain layout, if there is one yet.
        blocked: The same for the blocked layout; only values of rank 3 to 5 have one.
    """

    shape: tuple[Size, ...]
    dtype: str
    plain: Any = None
    blocked: Any = None

    @property
    def only_blocked(self) -> bool:
        """Whether its producer made it blocked and nobody has asked for the plain form."""
        return self.plain is None and self.blocked is not None


def blocked_shape(shape: Sequence[Size], lanes: int) -> tuple[Size, ...]:
    """Extents of a value of the given plain shape in the blocked layout."""
    batch, channels, *spatial = shape
    assert isinstance(channels, int)
    return (batch, -(-channels // lanes), *spatial, lanes)


def can_block(shape: Sequence[Size]) -> bool:
    """Whether values of this shape have a blocked form: rank 3 to 5, and a known number of channels."""
    return 3 <= len(shape) <= 5 and isinstance(shape[1], int)


def block(builder: Any, plain: Any, shape: Sequence[Size], lanes: int) -> Any:
    """Emit the change from plain to blocked; the lanes that hold nothing become 0."""
    channels = shape[1]
    if channels == lanes and all(size == 1 for size in shape[2:]):
        return builder.emit(relax.op.reshape(plain, blocked_shape(shape, lanes)))

    def compute(x: Any, shape: Sequence[Size]) -> Any:
        def element(n: Any, c: Any, *rest: Any) -> Any:
            channel = c * lanes + rest[-1]
            value = x(n, channel, *rest[:-1])
            if channels % lanes == 0:
                return value
            return tirx.if_then_else(channel < channels, value, tirx.const(0, x.dtype))

        return te.compute(shape, element, name="block")

    result = list(blocked_shape(shape, lanes))
    return builder.emit_te(compute, plain, result, primfunc_name_hint="block")


def unblock(builder: Any, blocked: Any, shape: Sequence[Size], lanes: int) -> Any:
    """Emit the change from blocked to plain."""
    channels = shape[1]
    assert isinstance(channels, int)
    if channels % lanes == 0 and all(size == 1 for size in shape[2:]):
        return builder.emit(relax.op.reshape(blocked, shape))

    def compute(x: Any, shape: Sequence[Size]) -> Any:
        return te.compute(
            shape,
            lambda n, c, *spatial: x(n, tirx.floordiv(c, lanes), *spatial, tirx.floormod(c, lanes)),
            name="unblock",
        )

    return builder.emit_te(compute, blocked, list(shape), primfunc_name_hint="unblock")
