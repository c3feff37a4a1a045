import math

import ml_dtypes
import numpy as np
import pytest
import torch

from shave.passes.compare import CompareError, compare, difference, to_float64


def test_figures_against_numbers_worked_out_by_hand() -> None:
    found = difference(np.array([[3.0, -4.0], [0.0, 1.0]]), np.array([[3.0, -4.5], [2.0, 1.0]]))
    assert found.max_abs == 2.0
    assert found.max_rel == 0.5
    assert found.sqnr_db == pytest.approx(10 * math.log10(26 / 4.25), rel=1e-12)
    assert found.cosine == pytest.approx((9 + 18 + 1) / math.sqrt(26 * (9 + 20.25 + 5)), rel=1e-12)
    assert found.top1 == 0.5
    assert found.equal == 0.5


def test_equal_tensors_differ_by_nothing() -> None:
    x = np.array([[0.0, math.nan], [math.inf, -math.inf]])
    found = difference(x, x.copy())
    assert (found.max_abs, found.max_rel, found.sqnr_db, found.cosine, found.equal) == (0.0, 0.0, math.inf, 1.0, 1.0)


@pytest.mark.parametrize(("want", "got"), [(1.0, math.nan), (math.nan, 1.0), (math.inf, -math.inf), (math.inf, 1.0)])
def test_what_is_not_finite_on_one_side_is_infinitely_far(want: float, got: float) -> None:
    found = difference(np.array([2.0, want]), np.array([2.0, got]))
    assert (found.max_abs, found.max_rel, found.sqnr_db, found.cosine) == (math.inf, math.inf, -math.inf, 0.0)


def test_equal_infinities_do_not_hide_other_differences() -> None:
    found = difference(np.array([math.inf, 1.0]), np.array([math.inf, 1.5]))
    assert (found.max_abs, found.max_rel) == (0.5, 0.5)


def test_a_zero_reference_has_no_relative_difference() -> None:
    found = difference(np.zeros(3), np.ones(3))
    assert (found.max_abs, found.max_rel, found.sqnr_db, found.cosine) == (1.0, math.inf, -math.inf, 0.0)


def test_numbers_whose_squares_overflow() -> None:
    found = difference(np.full(4, 1e200), np.full(4, 1.01e200))
    assert found.sqnr_db == pytest.approx(40.0, abs=1e-6)
    assert found.cosine == pytest.approx(1.0)


def test_nothing_is_broadcast() -> None:
    with pytest.raises(CompareError, match=r"shapes differ: \[3, 1\] and \[1, 3\]"):
        difference(np.ones((3, 1)), np.ones((1, 3)))


def test_all_kinds_of_tensors_are_taken() -> None:
    assert to_float64(torch.tensor([1.5], dtype=torch.bfloat16)).tolist() == [1.5]
    assert to_float64(np.array([1.5], dtype=ml_dtypes.bfloat16)).tolist() == [1.5]
    assert to_float64(torch.tensor([1 + 2j])).tolist() == [[1.0, 2.0]]
    assert to_float64(np.array([1 + 2j])).tolist() == [[1.0, 2.0]]
    assert to_float64(torch.tensor([True, False])).tolist() == [1.0, 0.0]
    assert to_float64(torch.ones(2, requires_grad=True)).tolist() == [1.0, 1.0]
    assert difference(torch.empty(0, 3), torch.empty(0, 3)).equal == 1.0


def test_batches_are_taken_together() -> None:
    batches = [(np.array([[1.0, 2.0]]),), (np.array([[3.0, 4.0], [5.0, 8.0]]),)]
    found = compare(lambda x: x, lambda x: {"y": x + (x == 8.0)}, batches, ["y"])
    assert found["y"].max_abs == 1.0
    assert found["y"].max_rel == 1 / 8
    assert found["y"].equal == pytest.approx(5 / 6)


def test_batches_of_several_lengths() -> None:
    batches = [(np.ones((1, 3)),), (np.ones((1, 5)),)]
    assert compare(lambda x: x, lambda x: x * 2, batches)["output_0"].max_abs == 1.0


def test_scalars_and_several_outputs() -> None:
    found = compare(lambda x: (x.sum(), x), lambda x: [x.sum() + 1, x], [(np.ones(3),)])
    assert (found["output_0"].max_abs, found["output_1"].max_abs) == (1.0, 0.0)


def test_results_that_cannot_be_compared() -> None:
    x = [(np.ones((2, 3)),)]
    with pytest.raises(CompareError, match="the reference gives 1 outputs, the other 2"):
        compare(lambda x: x, lambda x: (x, x), x)
    with pytest.raises(CompareError, match=r"output_0: shapes differ: \[2, 3\] and \[3, 2\]"):
        compare(lambda x: x, lambda x: x.T, x)
    with pytest.raises(CompareError, match="no inputs"):
        compare(lambda x: x, lambda x: x, [])
