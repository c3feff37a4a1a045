from shave.passes.suggest import nearest


def test_near_names_are_offered_and_far_ones_are_not() -> None:
    assert nearest("pruen", ["prune", "quantize"]) == "; did you mean 'prune'?"
    assert nearest("conv", ["conv1", "conv2", "xyz"]) in (
        "; did you mean 'conv1' or 'conv2'?",
        "; did you mean 'conv2' or 'conv1'?",
    )
    assert nearest("zzz", ["prune"]) == ""
