"""The named pipelines, and nothing else. A preset stands in pipeline text where a pass can: ``simplify, quantize``."""

_SIMPLIFY = "drop-identities, fold-constants, fold-batchnorm, dedupe, dead-code"

PRESETS = {
    # Changes nothing beyond rounding and leaves ordinary operators: where other passes start. The order:
    #   1. identities go first, since a no-op between a convolution and its batch norm hides the pair;
    #   2. constants are folded next, as the weights of convolutions and batch norms may be computed (cast, transposed);
    #   3. with both plain, batch norms go into the weights;
    #   4. then weights and subexpressions that have become equal are merged;
    #   5. and what nobody reads any more is dropped.
    "simplify": _SIMPLIFY,
    # What `shave.compile` runs unless told otherwise: the same, then operators that stand for kernels of shave's own.
    # Convolutions give way to smaller ones ahead of that; Winograd's method comes last, as other passes know nothing of
    # transformed weights.
    "exact": f"{_SIMPLIFY}, pool-first, winograd",
}
