from __future__ import annotations

import torch

from shave.ir.program import Program
from shave.passes.base import Context
from shave.passes.winograd.activations import samples
from shave.passes.winograd.layer import Layer, is_candidate, read
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten


def two_layers() -> tuple[Program, list[Layer]]:
    def forward(x, v, w):
        y = aten.relu.default(aten.conv2d.default(x, v, None, [1, 1], [1, 1]))
        return aten.conv2d.default(y, w, None, [1, 1], [2, 0])

    program = program_of(
        forward, {"x": torch.zeros(2, 3, 20, 5)}, draw({"v": (6, 3, 3, 3), "w": (4, 6, 3, 3)}), dynamic={"x": {0: "n"}}
    )
    layers = [read(node) for node in program.calls if is_candidate(node)]
    assert all(isinstance(layer, Layer) for layer in layers)
    return program, layers


def test_real_activations_come_from_the_first_batch() -> None:
    program, (first, second) = two_layers()
    batches = [(torch.randn(4, 3, 20, 5),), (torch.full((4, 3, 20, 5), torch.nan),)]
    found = samples(program, [first, second], Context(calibration=batches))
    x = batches[0][0]
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    torch.testing.assert_close(found[first.node].x, padded[:1, :, 4:18], rtol=0, atol=0)
    y = torch.relu(torch.conv2d(x, program.weight(first.weight), padding=1))
    padded = torch.nn.functional.pad(y, (0, 0, 2, 2))
    torch.testing.assert_close(found[second.node].x, padded[:1, :, 5:19], rtol=0, atol=1e-6)


def test_without_data_they_are_random_and_the_same_each_time() -> None:
    program, layers = two_layers()
    one, again, other = (samples(program, layers, Context(seed=seed)) for seed in (1, 1, 2))
    for layer in layers:
        assert one[layer.node].x.shape[1:] == (layer.direct.in_channels, 14, 5 + 2 * layer.padding[1])
        assert torch.equal(one[layer.node].x, again[layer.node].x)
        assert not torch.equal(one[layer.node].x, other[layer.node].x)


def test_where_data_gives_zeros_random_numbers_stand_in() -> None:
    program, (first, second) = two_layers()
    found = samples(program, [first, second], Context(calibration=[torch.zeros(1, 3, 20, 5)]))
    assert found[first.node].x.std() > 0.5
    assert found[second.node].x.std() > 0.5


def test_a_layer_of_zeros_has_no_sample() -> None:
    program, layers = two_layers()
    program.weight(layers[0].weight).zero_()
    assert set(samples(program, layers, Context())) == {layers[1].node}


def test_the_callers_generator_stays_untouched() -> None:
    program, layers = two_layers()
    before = torch.get_rng_state()
    samples(program, layers, Context(calibration=[torch.randn(1, 3, 20, 5, generator=torch.Generator())]))
    assert torch.equal(torch.get_rng_state(), before)
