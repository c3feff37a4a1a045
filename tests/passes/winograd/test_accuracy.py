import pytest
import torch
from torch.nn import functional

from shave.ir.cook_toom import transforms
from shave.ir.winograd import transform_weight, winograd_reference
from shave.passes.winograd.accuracy import MAX_CHANNELS, bound, direct_error, sample, winograd_error


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(channels=64, size=14, outputs=16):
    found = sample(draw(2, channels, size, size), draw(outputs, channels, 3, 3, seed=1))
    assert found is not None
    return found


def test_a_sample_is_cut_from_the_middle_of_the_first_image():
    x, weight = draw(2, 3, 40, 5), draw(40, 3, 3, 3, seed=1)
    found = sample(x, weight)
    assert found.x.shape == (1, 3, 14, 5)
    assert torch.equal(found.x[0], x[0, :, 13:27])
    assert torch.equal(found.weight, weight[:32:2])
    assert found.weight.shape[0] == MAX_CHANNELS
    wanted = functional.conv2d(x[:1].double(), weight.double())[:, :32:2, 13:25]
    assert torch.equal(found.exact, wanted)
    assert found.scale == wanted.abs().max()


def test_all_channels_of_a_narrow_layer_count():
    assert sample(draw(1, 3, 5, 5), draw(7, 3, 3, 3)).weight.shape[0] == 7


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 3e38])
def test_what_gives_no_scale_is_no_sample(value):
    assert sample(torch.full((1, 3, 6, 6), value), draw(4, 3, 3, 3).double() * 1e300) is None


def test_errors_are_of_the_size_that_is_documented():
    """Twice the figures in the table of docs/winograd.md, and half of them."""
    given = drawn()
    assert 1e-7 < direct_error(given) < 1e-6
    for tile, error in ((2, 4e-7), (4, 1.5e-6), (6, 9e-6)):
        assert error / 2.5 < winograd_error(given, tile) < error * 2.5


def test_what_overflows_has_an_infinite_error():
    given = sample(draw(1, 4, 14, 14) * 1e37, draw(4, 4, 3, 3, seed=1))
    assert direct_error(given) < 1e-6
    assert winograd_error(given, 6) == float("inf")


@pytest.mark.parametrize("tile", [2, 4, 6])
@pytest.mark.parametrize("channels", [1, 16])
def test_no_error_is_beyond_the_bound(tile, channels):
    weight = draw(4, channels, 3, 3, seed=tile)
    largest = float(weight.double().abs().sum((1, 2, 3)).max())
    limit = bound(weight, tile)
    transformed = transform_weight(weight, tile)
    for seed in range(20):
        x = draw(1, channels, tile + 2, tile + 2, seed=seed)
        x = x if seed % 2 else x.sign()
        exact = functional.conv2d(x.double(), weight.double())
        given = winograd_reference(x, transformed.float(), None, (0, 0), tile)
        assert (given - exact).abs().max() <= limit * float(x.abs().max()) * largest


@pytest.mark.parametrize(("tile", "roundings"), [(2, 8 + 2 * 2 + 1 + 2 * 3), (4, 8 + 2 * 4 + 1 + 2 * 5)])
def test_the_bound_of_one_tap_by_hand(tile, roundings):
    """For a kernel with nothing but a corner, G |g| GT is an outer product."""
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 0] = -3
    matrices = transforms(tile)
    line = abs(matrices.AT) @ (abs(matrices.G[:, 0]) * abs(matrices.BT).sum(1))
    assert bound(weight, tile) == pytest.approx(roundings * 2.0**-24 * line.max() ** 2, rel=1e-5)


def test_the_bound_knows_no_scale_and_grows_with_channels_and_tiles():
    weight = draw(4, 8, 3, 3)
    assert bound(1e6 * weight, 4) == pytest.approx(bound(weight, 4))
    assert bound(weight, 2) < bound(weight, 4) < bound(weight, 6)
    assert bound(weight, 4) < bound(draw(4, 80, 3, 3), 4)
    assert bound(0 * weight, 4) == 0
