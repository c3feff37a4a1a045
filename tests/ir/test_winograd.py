"""The operator: against torch's convolution in float64, and held to what torch asks of operators."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

import shave
from shave.ir.winograd import restore_weight, transform_weight

TILES = (2, 4, 6)
winograd = torch.ops.shave.winograd_conv2d.default


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Layer(torch.nn.Module):
    """One transformed convolution of 3 to 4 channels, behind which comes a relu."""

    def __init__(self, tile, bias=True):
        super().__init__()
        self.weight = torch.nn.Parameter(transform_weight(draw(4, 3, 3, 3), tile).float())
        self.bias = torch.nn.Parameter(draw(4, dtype=torch.float32)) if bias else None
        self.tile = tile

    def forward(self, x):
        return torch.relu(winograd(x, self.weight, self.bias, [1, 1], self.tile))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("shape", "padding"),
    [
        ((1, 1, 3, 3), (0, 0)),
        ((2, 5, 1, 1), (1, 1)),
        ((2, 3, 7, 5), (1, 1)),
        ((1, 4, 14, 13), (1, 0)),
        ((3, 2, 6, 11), (2, 2)),
        ((0, 2, 6, 6), (1, 1)),
        ((1, 2, 12, 24), (1, 1)),
        ((1, 2, 4, 4), (0, 3)),
    ],
)
def test_it_is_a_convolution(tile, shape, padding):
    x, weight, bias = draw(*shape), draw(4, shape[1], 3, 3, seed=1), draw(4, seed=2)
    for offset in (bias, None):
        given = winograd(x, transform_weight(weight, tile), offset, list(padding), tile)
        wanted = functional.conv2d(x, weight, offset, padding=padding)
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12)
        assert given.is_contiguous()


@pytest.mark.parametrize("tile", TILES)
def test_the_weight_is_laid_out_as_said(tile):
    weight = draw(4, 3, 3, 3)
    g = np.array(shave.ir.winograd.transforms(tile).G)
    transformed = transform_weight(weight, tile)
    assert transformed.shape == ((tile + 2) ** 2, 4, 3)
    wanted = g @ weight[2, 1].numpy() @ g.T
    np.testing.assert_allclose(transformed[:, 2, 1].reshape(tile + 2, tile + 2), wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("tile", TILES)
def test_weights_come_back(tile):
    weight = draw(5, 3, 3, 3)
    torch.testing.assert_close(restore_weight(transform_weight(weight, tile), tile), weight, rtol=0, atol=1e-14)
    # Rounded in between, no more is lost than by rounding the weight itself.
    rounded = restore_weight(transform_weight(weight, tile).float(), tile)
    assert (rounded - weight).abs().max() < 2**-23 * weight.abs().max()


@pytest.mark.parametrize("tile", TILES)
def test_gradients(tile):
    x, bias = draw(2, 2, 5, 4).requires_grad_(), draw(3).requires_grad_()
    weight = transform_weight(draw(3, 2, 3, 3), tile).requires_grad_()
    assert torch.autograd.gradcheck(lambda *leaves: winograd(*leaves, [1, 1], tile), (x, weight, bias), fast_mode=True)
    torch.autograd.grad(winograd(x, weight.detach(), None, [1, 1], tile).sum(), x)


def test_what_torch_asks_of_operators():
    x, weight = draw(2, 2, 5, 4).requires_grad_(), transform_weight(draw(3, 2, 3, 3), 4).requires_grad_()
    torch.library.opcheck(winograd, (x, weight, draw(3), [1, 1], 4))
    torch.library.opcheck(winograd, (x.detach(), weight.detach(), None, [0, 1], 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": draw(2, 5, 4)}, "x has 3 axes, not 4"),
        ({"weight": transform_weight(draw(3, 2, 3, 3), 2)}, r"weight is \[16, 3, 2\], not \[36, out, 2\]"),
        ({"x": draw(1, 3, 5, 4)}, r"weight is \[36, 3, 2\], not \[36, out, 3\]"),
        ({"bias": draw(4)}, r"bias is \[4\], not \[3\]"),
        ({"padding": [1, -1]}, r"padding \[1, -1\] is negative"),
        ({"tile": 3}, "no Winograd convolution with tile 3"),
        ({"x": draw(1, 2, 5, 4).float()}, "differ in dtype"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {
        "x": draw(1, 2, 5, 4),
        "weight": transform_weight(draw(3, 2, 3, 3), 4),
        "bias": draw(3),
        "padding": [1, 1],
        "tile": 4,
    }
    with pytest.raises(ValueError, match=message):
        winograd(*{**arguments, **change}.values())


@pytest.mark.parametrize("tile", TILES)
def test_programs_with_a_dynamic_batch(tile, tmp_path):
    program = shave.trace(Layer(tile), (torch.zeros(2, 3, 7, 5),), dynamic_shapes={"x": {0: "batch"}})
    program.verify(full=True)
    assert f"shave.winograd_conv2d(%x, @weight, @bias, [1, 1], {tile}) : float32[batch, 4, 7, 5]" in str(program)
    program.save(tmp_path / "layer.pt2")
    again = shave.read(tmp_path / "layer.pt2")
    assert again.structural_hash() == program.structural_hash()
    x = draw(5, 3, 7, 5, dtype=torch.float32)
    torch.testing.assert_close(again(x), Layer(tile)(x).detach(), rtol=0, atol=0)


def test_a_process_that_only_reads_knows_the_operator(tmp_path):
    shave.trace(Layer(4), (torch.zeros(2, 3, 7, 5),)).save(tmp_path / "layer.pt2")
    code = f"import shave; print(shave.read({str(tmp_path / 'layer.pt2')!r}).calls[0].target)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "shave.winograd_conv2d.default"


@pytest.mark.parametrize("tile", TILES)
def test_cost_counts_what_is_multiplied(tile):
    cost = shave.trace(Layer(tile), (torch.zeros(2, 3, 7, 13),), dynamic_shapes={"x": {0: "batch"}}).cost()
    tiles = -(-7 // tile) * -(-13 // tile)
    assert cost.macs == tiles * (tile + 2) ** 2 * 3 * 4
    assert cost.parameters == (tile + 2) ** 2 * 3 * 4 + 4
    assert cost.weight_bytes == 4 * cost.parameters
