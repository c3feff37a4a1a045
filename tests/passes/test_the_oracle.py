"""The oracle rejects what it must: an oracle that lets everything through proves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from shave.ir.program import Program
from shave.passes.compare import CompareError
from tests.passes.handmade import program_of
from tests.passes.oracle import assert_equivalent, masked, masked_equivalence, random_inputs

aten = torch.ops.aten

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def giving(*values: torch.Tensor) -> Program:
    """A program that returns what it is told to, and reads its input."""
    weights = {f"value_{i}": value for i, value in enumerate(values)}
    return program_of(lambda x, *kept: kept, {"x": X}, weights)


@pytest.mark.parametrize(
    "got",
    [
        2 * X,
        -X,
        X[:, [1, 0, 2, 3, 4]],
        X[[1, 0, 2, 3]],
        torch.where(torch.arange(20).reshape(4, 5) == 7, math.nan, X),
        torch.where(torch.arange(20).reshape(4, 5) == 7, math.inf, X),
        X * (1 + 1.1e-5),
        X + 1.1e-5 * X.abs().max(),
        torch.where(torch.arange(20).reshape(4, 5) == 7, X + 1e-4, X),
        torch.zeros(4, 5),
        X.double(),
        X.bfloat16(),
    ],
    ids=[
        "double", "sign", "channels", "samples", "nan", "infinity", "scale", "offset", "one-element", "zeros",
        "wider-dtype", "narrower-dtype",
    ],
)  # fmt: skip
def test_wrong_outputs_are_rejected(got: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match=r"output 'output' (moved|went from)"):
        assert_equivalent(giving(X), giving(got), [X])


@pytest.mark.parametrize("got", [X[:1], X[:, :1], X[None], X.T, X.reshape(-1)])
def test_nothing_is_broadcast(got: torch.Tensor) -> None:
    # The reference is constant, so that broadcasting would find no difference.
    with pytest.raises(CompareError, match="shapes differ"):
        assert_equivalent(giving(torch.ones(4, 5)), giving(torch.ones_like(got)), [X])


def test_swapped_missing_and_additional_outputs_are_rejected() -> None:
    a, b = X, X + 1
    with pytest.raises(AssertionError, match="output 'output_0' moved"):
        assert_equivalent(giving(a, b), giving(b, a), [X])
    for other in (giving(a), giving(a, b, a)):
        with pytest.raises(AssertionError):
            assert_equivalent(giving(a, b), other, [X])


def test_every_output_is_judged_by_its_own_magnitude() -> None:
    large, small = X * 1e6, X
    with pytest.raises(AssertionError, match="output 'output_1' moved"):
        assert_equivalent(giving(large, small), giving(large, small + 0.1), [X])


def test_rounding_is_let_through() -> None:
    assert_equivalent(giving(X), giving(X * (1 + 2e-7)), [X])
    assert_equivalent(giving(X), giving(X + 1e-3), [X], atol=1.1e-3)
    assert_equivalent(giving(X), giving(X * 1.01), [X], rtol=1.1e-2)


def test_integers_and_booleans_must_be_equal() -> None:
    counts = torch.arange(20)
    assert_equivalent(giving(counts, counts > 3), giving(counts, counts > 3), [X])
    with pytest.raises(AssertionError, match="output 'output_1' moved"):
        assert_equivalent(giving(counts, counts > 3), giving(counts, counts > 4), [X])


def test_a_reference_without_finite_numbers_proves_nothing() -> None:
    nan = torch.full((4, 5), math.nan)
    with pytest.raises(AssertionError, match="no finite element"):
        assert_equivalent(giving(nan), giving(nan), [X])


def test_equal_specials_are_let_through() -> None:
    special = torch.tensor([1.0, math.inf, -math.inf, math.nan])
    assert_equivalent(giving(special), giving(special), [X])


# Surgery: two convolutions, of whose six channels between them some are removed.

KEPT = [0, 2, 5]
GONE = [1, 3, 4]


def two_layers(w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor) -> Program:
    def forward(x: object, w1: object, b1: object, w2: object, b2: object) -> object:
        return aten.conv2d.default(aten.sigmoid.default(aten.conv2d.default(x, w1, b1)), w2, b2)

    weights = {"first.weight": w1, "first.bias": b1, "second.weight": w2, "second.bias": b2}
    return program_of(forward, {"x": torch.zeros(2, 3, 7, 5)}, weights, dynamic={"x": {0: "batch"}})


@pytest.fixture(scope="module")
def layers() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((6, 3, 3, 3), (6,), (4, 6, 1, 1), (4,))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


ZEROED = {"second.weight": (slice(None), GONE)}


def test_surgery_that_is_right(layers: tuple[torch.Tensor, ...]) -> None:
    w1, b1, w2, b2 = layers
    original, cut = two_layers(*layers), two_layers(w1[KEPT], b1[KEPT], w2[:, KEPT], b2)
    before = original.structural_hash()
    masked_equivalence(original, cut, ZEROED, random_inputs(original, 0))
    assert original.structural_hash() == before
    with pytest.raises(AssertionError):
        assert_equivalent(original, cut, random_inputs(original, 0))


Surgery = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Program]


@pytest.mark.parametrize(
    "surgery",
    [
        lambda w1, b1, w2, b2: two_layers(w1[[0, 2, 4]], b1[[0, 2, 4]], w2[:, [0, 2, 4]], b2),
        lambda w1, b1, w2, b2: two_layers(w1[KEPT], b1[KEPT], w2[:, [0, 5, 2]], b2),
        lambda w1, b1, w2, b2: two_layers(w1[KEPT], b1[[0, 1, 2]], w2[:, KEPT], b2),
        lambda w1, b1, w2, b2: two_layers(w1[KEPT], b1[KEPT], w2[:, KEPT], torch.zeros_like(b2)),
        lambda w1, b1, w2, b2: two_layers(w1[KEPT], b1[KEPT], 2 * w2[:, KEPT], b2),
    ],
    ids=["other-channels", "other-order", "other-bias", "lost-bias", "double"],
)
def test_surgery_that_is_wrong(layers: tuple[torch.Tensor, ...], surgery: Surgery) -> None:
    original = two_layers(*layers)
    with pytest.raises(AssertionError, match="moved"):
        masked_equivalence(original, surgery(*layers), ZEROED, random_inputs(original, 0))


def test_masks_reach_all_readers_of_a_weight() -> None:
    weight = torch.ones(2, 2)
    program = program_of(
        lambda x, w: (aten.mm.default(x, w), aten.add.Tensor(x, w)), {"x": torch.ones(2, 2)}, {"w": weight}
    )
    product, total = masked(program, {"w": (slice(None), 1)})(torch.ones(2, 2))
    assert product.tolist() == [[2, 0], [2, 0]]
    assert total.tolist() == [[2, 1], [2, 1]]
    assert weight.tolist() == [[1, 1], [1, 1]]


def test_masks_that_fit_nothing_are_rejected(layers: tuple[torch.Tensor, ...]) -> None:
    program = two_layers(*layers)
    with pytest.raises(KeyError, match=r"third\.weight"):
        masked(program, {"third.weight": 0})
    with pytest.raises(ValueError, match="selects nothing"):
        masked(program, {"second.weight": (slice(None), [])})
    with pytest.raises(IndexError):
        masked(program, {"second.weight": (slice(None), [6])})


def test_inputs_follow_the_signature_and_the_seed() -> None:
    example = {"x": torch.zeros(2, 3), "mask": torch.zeros(2, dtype=torch.bool)}
    program = program_of(lambda x, mask: (x, mask), example, dynamic={"x": {0: "batch"}, "mask": {0: "batch"}})
    x, mask = random_inputs(program, 0, size=7)
    assert (x.shape, mask.shape, mask.dtype) == ((7, 3), (7,), torch.bool)
    assert torch.equal(x, random_inputs(program, 0, size=7)[0])
    assert not torch.equal(x, random_inputs(program, 1, size=7)[0])
