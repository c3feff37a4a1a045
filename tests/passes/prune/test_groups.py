import functools

import numpy as np
import pytest
import torch
from torch import nn

import shave
from shave.passes.prune.groups import Role, find_groups
from tests.passes.handmade import draw, program_of
from tests.passes.prune.architectures import EVERY

aten = torch.ops.aten

FREE = {
    "residual": [("stem", "channels", 8)],
    "concatenated": [("a", "channels", 6), ("b", "channels", 10)],
    "concatenated_with_itself": [("a", "channels", 6)],
    "added_pieces": [("a", "channels", 6), ("b", "channels", 10)],
    "halves": [("a", "channels", 6)],
    "uneven_pieces": [("a:channels", "channels", 3), ("a:channels 2", "channels", 5), ("a:channels 3", "channels", 4)],
    "depthwise": [("stem", "channels", 8)],
    "depthwise_with_multiplier": [("stem", "channels", 6), ("depth", "channels", 2)],
    "grouped": [("stem:conv groups", "conv groups", 4), ("stem:channels", "channels", 3), ("grouped", "channels", 2)],
    "transposed": [("stem", "channels", 8), ("up", "channels", 6)],
    "transposed_grouped": [
        ("stem:conv groups", "conv groups", 2), ("stem:channels", "channels", 4), ("up", "channels", 6),
    ],
    "shuffled": [
        ("stem:channels", "channels", 6), ("stem:channels 2", "channels", 6), ("stem:channels 3", "channels", 12),
    ],
    "flattened": [("stem", "channels", 8)],
    "windows": [("stem", "channels", 8), ("qkv:heads", "heads", 2), ("qkv:head dims", "head dims", 4)],
    "group_norm": [("stem:norm groups", "norm groups", 3), ("stem:channels", "channels", 4)],
    "instance_norm": [("stem", "channels", 6)],
    "prelu": [("stem", "channels", 8)],
    "pixel_shuffle": [("stem", "channels", 6)],
    "pixel_unshuffle": [("stem", "channels", 6)],
    "squeeze_excite": [("stem", "channels", 12), ("down", "channels", 4)],
    "padded_channels": [("stem", "channels", 8), ("body:channels", "channels", 3), ("body:channels 2", "channels", 5)],
    "standardised_weights": [("stem", "channels", 8), ("body", "channels", 10)],
    "statistics_over_channels": [("stem", "channels", 8)],
    "class_token": [("patches", "channels", 8)],
    "resized": [("stem", "channels", 8)],
    "tiled_positions": [("stem", "channels", 8)],
    "grouped_queries": [
        ("into", "channels", 8), ("q:head dims", "head dims", 2), ("q:heads", "heads", 2), ("q:heads 2", "heads", 2),
        ("v", "head dims", 4), ("gate", "channels", 20),
    ],
    "grouped_queries_in_one_operator": [
        ("q:heads", "heads", 2), ("q:heads 2", "heads", 3), ("q:head dims", "head dims", 4), ("v", "head dims", 4),
    ],
    "fused_attention": [
        ("into", "channels", 8), ("qkv:heads", "heads", 2), ("qkv:head dims", "head dims", 4),
        ("qkv:head dims 2", "head dims", 4),
    ],
    "attention_over_channels": [("qkv:heads", "heads", 2), ("qkv:head dims", "head dims", 4)],
    "gated": [("up", "channels", 12)],
    "layer_norms": [("into", "channels", 8)],
    "shared_layer": [("into", "channels", 8)],
    "tied_embedding": [("table:channels", "channels", 8)],
    "contracted_by_letters": [("a", "head dims", 8), ("c", "channels", 10)],
    "mixer": [("into", "channels", 8), ("tokens_up", "channels", 12)],
    "every_other_channel": [("a", "channels", 4)],
}  # fmt: skip


@functools.cache
def traced(name):
    """A program that several tests look at and none changes."""
    torch.manual_seed(0)
    make, shape = EVERY[name]
    return shave.trace(make(), (torch.randn(*shape),))


@pytest.mark.parametrize("name", EVERY)
def test_what_hangs_together_is_one_group(name):
    free = [(group.name, group.kind, group.units) for group in find_groups(traced(name)) if not group.reason]
    assert free == FREE[name]


@pytest.mark.parametrize("name", EVERY)
def test_every_slice_and_value_lies_on_its_axis(name):
    for group in find_groups(traced(name)):
        parts = [(part.weight, part) for part in group.slices] + [(part.node, part) for part in group.values]
        for node, part in parts:
            assert part.index.shape[0] == group.units
            assert part.index.min() >= 0
            assert part.index.max() < node.meta["val"].shape[part.axis]
            assert len(np.unique(part.index)) == part.index.size


def test_roles():
    (group,) = [group for group in find_groups(traced("depthwise")) if not group.reason]
    roles = {(part.weight.target, part.axis): part.role for part in group.slices}
    assert roles == {
        ("stem.weight", 0): Role.PRODUCES,
        ("stem.bias", 0): Role.PRODUCES,
        ("depth.weight", 0): Role.CARRIES,
        ("depth.bias", 0): Role.CARRIES,
        **{(f"norm.{name}", 0): Role.CARRIES for name in ("weight", "bias", "running_mean", "running_var")},
        ("point.weight", 1): Role.CONSUMES,
    }


def test_a_layer_between_equal_channels_both_makes_and_takes_them():
    (group,) = [group for group in find_groups(traced("residual")) if not group.reason]
    roles = {part.axis: part.role for part in group.slices if part.weight.target == "body.weight"}
    assert roles == {0: Role.PRODUCES, 1: Role.CONSUMES}


def test_heads_name_the_dims_that_they_multiply_with():
    by_name = {group.name: group for group in find_groups(traced("windows"))}
    assert by_name["qkv:heads"].factors == ("qkv:head dims",)
    assert by_name["qkv:head dims"].factors == ("qkv:heads",)


def test_outputs_stay_and_say_so():
    groups = {group.name: group for group in find_groups(traced("residual"))}
    assert groups["head"].reason == "the program gives it as an output"


def test_an_operator_that_is_not_known_keeps_what_reaches_it_and_is_named():
    program = program_of(
        lambda x, a, b, c: aten.linear.default(
            aten.renorm.default(aten.linear.default(aten.linear.default(x, a), b), 2, 0, 1),
            c,
        ),
        {"x": torch.zeros(3, 6)},
        draw({"a.weight": (8, 6), "b.weight": (7, 8), "c.weight": (4, 7)}),
    )  # fmt: skip
    groups = {group.name: group for group in find_groups(program)}
    assert groups["a"].reason == ""
    assert groups["b"].reason == "aten.renorm (renorm_default) has no axis map"


def test_groups_are_the_same_for_equal_programs():
    one, other = (find_groups(traced("grouped_queries")) for _ in range(2))
    assert [(g.name, g.kind, g.units, g.factors) for g in one] == [(g.name, g.kind, g.units, g.factors) for g in other]


class Deep(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8 * (i + 1), 8) for i in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], -1)
        return x.sum(-1)


def test_dense_connections_make_one_group_a_layer():
    groups = find_groups(shave.trace(Deep(12), (torch.randn(2, 8),)))
    assert [(group.units, len(group.slices)) for group in groups] == [(8, 13 - i) for i in range(12)]
