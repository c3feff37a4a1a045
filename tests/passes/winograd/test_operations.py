import pytest
import torch

import shave
from shave.passes.problems import Conv2d, WinogradConv2d
from shave.passes.winograd.operations import operations


@pytest.mark.parametrize(("groups", "stride", "padding", "dilation"), [(1, 1, 1, 1), (4, 2, 0, 1), (2, 3, 2, 2)])
def test_direct_convolutions_count_as_the_cost_of_the_program_does(groups, stride, padding, dilation):
    module = torch.nn.Conv2d(8, 12, (3, 5), stride, padding, dilation, groups, bias=False)
    problem = Conv2d(1, 8, 12, 17, 19, (3, 5), (stride, stride), (padding, padding), (dilation, dilation), groups)
    assert operations(problem) == shave.trace(module, (torch.zeros(1, 8, 17, 19),)).cost().macs


def test_products_and_transforms_of_one_tile():
    # 16 products for each pair of channels; BT has 8 entries and meets 4 + 4 lines, AT has 6 and meets 4 + 2.
    assert operations(WinogradConv2d(1, 5, 7, 2, 2, (1, 1), 2)) == 16 * 5 * 7 + 2 * (8 * 8 * 5 + (4 + 2) * 6 * 7)


def test_tiles_are_rounded_up_and_the_batch_does_not_count():
    one = operations(WinogradConv2d(1, 5, 7, 4, 4, (1, 1), 4))
    assert operations(WinogradConv2d(None, 5, 7, 9, 4, (1, 1), 4)) == 3 * one
    assert operations(WinogradConv2d(8, 5, 7, 6, 10, (0, 0), 4)) == 2 * one


def test_few_channels_are_not_worth_transforms_and_many_are():
    def gain(channels, tile):
        sizes = (channels, channels, 56, 56)
        direct = operations(Conv2d(1, *sizes, (3, 3), padding=(1, 1)))
        return direct / operations(WinogradConv2d(1, *sizes, (1, 1), tile))

    for tile, limit in ((2, 9 / 4), (4, 9 / 2.25), (6, 9 / 1.97)):  # 56 is no multiple of 6
        assert gain(3, tile) < 1
        assert 0.9 * limit < gain(1024, tile) < limit
