"""The named pipelines, and nothing else. A preset stands in pipeline text wherever a pass can: ``exact, quantize``."""

PRESETS = {
    # Changes nothing beyond rounding; what `shave.compile` runs unless told otherwise. The order:
    #   1. identities go first, since a no-op between a convolution and its batch norm hides the pair;
    #   2. constants are folded next, as the weights of convolutions and batch norms may be computed (cast, transposed);
    #   3. with both plain, batch norms go into the weights;
    #   4. then weights and subexpressions that have become equal are merged;
    #   5. and what nobody reads any more is dropped.
    "exact": "drop-identities, fold-constants, fold-batchnorm, dedupe, dead-code",
}
