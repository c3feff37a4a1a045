import torch

import shave
from tests.modules import ConvNet


def test_text_shows_names_shapes_and_origins():
    program = shave.trace(ConvNet(), (torch.randn(2, 3, 7, 5),), dynamic_shapes={"x": {0: "batch"}})
    text = str(program)
    assert text.splitlines()[0] == "program(x: float32[batch, 3, 7, 5]) -> (output: float32[batch, 5]) {"
    assert "%conv2d = conv2d(%x, @stem.weight, None, [1, 1], [1, 1]) : float32[batch, 8, 7, 5]  # stem" in text
    assert text.splitlines()[-2:] == ["  return %linear", "}"]
