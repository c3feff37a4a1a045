import torch
from torch import nn

import shave
from tests.modules import Attention, Tied


def cost_of(module, *inputs):
    return shave.trace(module, inputs).cost()


def test_convolutions():
    assert cost_of(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), torch.zeros(2, 6, 8, 8)).macs == (
        2 * 8 * 4 * 4 * 3 * 9
    )
    assert cost_of(nn.Conv1d(4, 8, 5), torch.zeros(1, 4, 10)).macs == 8 * 6 * 4 * 5
    assert cost_of(nn.ConvTranspose2d(4, 6, 3, stride=2), torch.zeros(1, 4, 5, 5)).macs == 4 * 25 * 6 * 9


def test_linear_and_attention():
    module = Attention(width=16, heads=2)
    cost = cost_of(module, torch.zeros(3, 5, 16))
    assert cost.macs == 3 * 5 * 16 * 48 + 3 * 2 * 5 * 5 * (8 + 8) + 3 * 5 * 16 * 16
    assert cost.parameters == sum(p.numel() for p in module.parameters())
    assert cost.weight_bytes == 4 * cost.parameters
    assert sum(cost.macs_by_node.values()) == cost.macs


def test_matrix_products():
    class Products(nn.Module):
        def forward(self, a, b):
            return torch.einsum("ij,jk->ik", a, b), a @ b, torch.addmm(torch.zeros(7), a, b)

    cost = cost_of(Products(), torch.zeros(3, 5), torch.zeros(5, 7))
    assert cost.macs == 3 * (3 * 5 * 7)


def test_a_shared_weight_counts_once():
    assert cost_of(Tied(), torch.zeros(2, 4)).parameters == 16


def test_peak_counts_what_lives_at_once():
    class Chain(nn.Module):
        def forward(self, x):
            y = torch.relu(x)
            return torch.tanh(y) + x

    # relu: x, y live (2); tanh: x, y, t (3); add: x, t, sum (3).
    assert cost_of(Chain(), torch.zeros(100)).peak_activation_bytes == 3 * 400


def test_dynamic_batch_counts_as_one_and_other_dimensions_as_traced():
    module = Attention(width=16, heads=2)
    dynamic = shave.trace(module, (torch.zeros(3, 5, 16),), dynamic_shapes={"x": {0: "batch", 1: "length"}})
    assert dynamic.cost() == cost_of(module, torch.zeros(1, 5, 16))
    assert dynamic.cost({"batch": 4, "length": 7}).macs == cost_of(module, torch.zeros(4, 7, 16)).macs
