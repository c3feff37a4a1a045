"""Scale and zero point of codes that were found while the program runs, as kernels read them: float32 [n, 3].

There is one row of numbers for a whole tensor, or one for each of its rows: the scale, the zero point of unsigned codes
(a whole number), and the reciprocal of the scale.
"""

from typing import Literal

Measured = Literal["nothing", "tensor", "row"]
"""What has numbers of its own; nothing where they are known ahead."""

SCALE, ZERO, RECIPROCAL = range(3)
NUMBERS = 3
