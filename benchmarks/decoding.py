"""Time and memory that weights in a small form take when an artifact is loaded, beside a plain copy of as many floats.

Run as ``python -m benchmarks.decoding``: one linear layer of 2048 to 4096 features, packed for 16 lanes, on one thread.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from shave.backends.encoding import Encoded, Encoding
from shave.backends.packing import Packing
from shave.ir.bits import pack

OUTPUTS, INPUTS, LANES, DEPTH = 2048, 4096, 16, 512
SHAPE = (OUTPUTS, INPUTS)
PACKING = Packing().transpose(1, 0).reshape(INPUTS, OUTPUTS // LANES, LANES).blocks(DEPTH)
ROUNDS = 5


def forms() -> Iterator[tuple[str, Encoded]]:
    """Small forms by name."""
    rng = np.random.default_rng(0)
    for bits in (8, 4, 3):
        codes = pack(rng.integers(0, 1 << bits, SHAPE).astype(np.uint8), bits)
        for name, tables in (("one table", 1), ("a table for each channel", OUTPUTS)):
            codebook = rng.normal(size=(tables, 1, 1 << bits)).astype(np.float32)
            yield f"{bits} bits, {name}", _packed("lookup", bits, {"codes": codes, "codebook": codebook})
        scale, zero = np.ones((OUTPUTS, 1), np.float32), np.zeros((OUTPUTS, 1), np.int32)
        parts = {"codes": codes, "scale": scale, "zero": zero}
        yield f"{bits} bits, scales of channels", _packed("affine", bits, parts)
    yield "float16", _packed("narrow", 0, {"values": rng.normal(size=SHAPE).astype(np.float16)})


def _packed(kind: str, bits: int, parts: dict[str, Any]) -> Encoded:
    return Encoded(Encoding(kind, bits, SHAPE), parts).then(PACKING)


def seconds(run: Callable[[], Any]) -> float:
    """The least of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def peak(run: Callable[[], Any]) -> int:
    """Most bytes that it holds at a time."""
    tracemalloc.start()
    run()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def main() -> None:
    weights = OUTPUTS * INPUTS
    whole = np.ones(SHAPE, np.float32)
    print("| stored as | ns a weight | peak, share of the decoded weight |")
    print("| --- | --: | --: |")
    print(f"| float32, copied | {seconds(whole.copy) / weights * 1e9:.1f} | {peak(whole.copy) / whole.nbytes:.2f} |")
    for name, form in forms():

        def run(form: Encoded = form) -> Any:
            return form.encoding.decode(form.parts)

        print(f"| {name} | {seconds(run) / weights * 1e9:.1f} | {peak(run) / whole.nbytes:.2f} |")


if __name__ == "__main__":
    main()
